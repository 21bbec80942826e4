//! One tunnel that this side has opened: setting it up, opening streams in it, keeping watch over it.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use h2::Reason;
use h2::client::{Connection, SendRequest};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::aligned::Aligned;
use super::connection::{client_builder, distrust, idle, owned, silence};
use super::error::{Step, TunnelFailure};
use super::hbone::{Chunk, HboneStream};
use super::headers;
use super::request::TunnelRoute;
use super::settings::TunnelSettings;
use super::state::{Guard, TunnelEnd, TunnelState};
use super::stream::{Far, StreamKind, TunnelStream};
use super::tls::Noting;
use super::trunk::{Engine, Opener, Opening};
use crate::identity::{
    Credentials, HTTP2, Identity, PeerError, PeerSide, TRUNK, check_peer_is, peer_identity,
};
use crate::proxy::node_sockets::NodeSockets;
use crate::proxy::relay::BufferPool;
use crate::proxy::settings::ProxySettings;
use crate::proxy::socket::{self, Stream};

/// A tunnel is between these; only connections that agree in all of it share one.
#[derive(Clone)]
pub(super) struct Ends {
    pub(super) credentials: Arc<Credentials>,
    pub(super) source: Option<IpAddr>,
    pub(super) gateway: SocketAddr,
    pub(super) expected: Arc<[Identity]>,
    /// What is spoken in it if the other side can: else HBONE.
    pub(super) trunk: bool,
}

/// Streams of a tunnel are opened with it. The tunnel closes when it is dropped and its streams have ended.
pub(super) struct Tunnel {
    opener: Kind,
    pub(super) state: Rc<TunnelState>,
    /// Set once a stream was answered.
    proven: Cell<bool>,
    /// Set once no more streams may be opened.
    retired: Cell<bool>,
    /// Set while a stream that got no answer makes it doubtful that the peer is there.
    doubtful: Cell<bool>,
    doubt: Rc<Notify>,
}

/// What opens the streams.
enum Kind {
    Hbone(SendRequest<Chunk>),
    Trunk(Opener),
}

/// A tunnel's connection, to be driven to its end.
pub(super) struct Driver<IO> {
    connection: Protocol<IO>,
    chain: Vec<CertificateDer<'static>>,
    credentials: Arc<Credentials>,
    revision: watch::Receiver<u64>,
}

/// What is spoken.
enum Protocol<IO> {
    Hbone(Box<Connection<Noting<IO>, Chunk>>),
    Trunk(Box<Engine>),
}

/// A stream that could not be opened.
pub(super) enum NotOpened {
    /// The other side's answer.
    Answered(TunnelFailure),
    /// There was none, as the tunnel or the stream broke.
    Broken(TunnelFailure),
    /// The peer has not looked at it: it may be opened in another tunnel.
    NotProcessed(TunnelFailure),
}

impl From<NotOpened> for TunnelFailure {
    fn from(failed: NotOpened) -> Self {
        match failed {
            NotOpened::Answered(failure) | NotOpened::Broken(failure) | NotOpened::NotProcessed(failure) => {
                failure
            }
        }
    }
}

/// Connects and sets up a tunnel that is expected to have room for `capacity` streams.
pub(super) async fn establish(
    ends: &Ends,
    capacity: usize,
    settings: &ProxySettings,
    buffers: &Rc<BufferPool>,
    node: &NodeSockets,
) -> Result<(Tunnel, Driver<Aligned<Stream>>), TunnelFailure> {
    let period = settings.tunnel.handshake_timeout;
    let connecting = timeout(period, socket::connect(ends.gateway, ends.source, settings, node));
    let tcp = connecting.await.map_err(|_| TunnelFailure::Timeout(Step::Connect))?;
    let tcp = tcp.map_err(|error| TunnelFailure::Connect(Arc::new(error)))?;
    // What is on its way out, an alert or an orderly end, must not be lost.
    let mut tcp = Stream::new(tcp);
    tcp.end_in_order();
    let setting_up = async {
        let (verified, mut tls) = verify(Aligned::new(tcp), ends).await?;
        if ends.trunk && tls.get_ref().1.alpn_protocol() == Some(TRUNK) {
            let state = TunnelState::of(Arc::clone(&verified.peer));
            let started = Opener::start(tls, Rc::clone(&state), capacity, &settings.tunnel, buffers);
            let (opener, engine) = started.map_err(|error| TunnelFailure::Broken(Arc::new(error)))?;
            return Ok((
                Tunnel::new(Kind::Trunk(opener), state),
                verified.driver(Protocol::Trunk(Box::new(engine))),
            ));
        }
        tls.get_mut().0.stop();
        start_hbone(verified, tls, capacity, &settings.tunnel).await
    };
    timeout(period, setting_up).await.map_err(|_| TunnelFailure::Timeout(Step::Handshake))?
}

/// Sets up an HBONE tunnel over an open connection.
pub(super) async fn establish_over<IO: AsyncRead + AsyncWrite + Unpin>(
    io: IO,
    ends: &Ends,
    capacity: usize,
    settings: &TunnelSettings,
) -> Result<(Tunnel, Driver<IO>), TunnelFailure> {
    let setting_up = async {
        let (verified, tls) = verify(io, ends).await?;
        start_hbone(verified, tls, capacity, settings).await
    };
    let setting_up = timeout(settings.handshake_timeout, setting_up);
    setting_up.await.map_err(|_| TunnelFailure::Timeout(Step::Handshake))?
}

/// Who is at the other end, and what that was verified with.
struct Verified {
    peer: Arc<Identity>,
    chain: Vec<CertificateDer<'static>>,
    credentials: Arc<Credentials>,
    revision: watch::Receiver<u64>,
}

impl Verified {
    fn driver<IO>(self, connection: Protocol<IO>) -> Driver<IO> {
        let Self { chain, credentials, revision, .. } = self;
        Driver { connection, chain, credentials, revision }
    }
}

/// The TLS handshake. Nothing is sent before it is certain who is there.
async fn verify<IO: AsyncRead + AsyncWrite + Unpin>(
    io: IO,
    ends: &Ends,
) -> Result<(Verified, TlsStream<IO>), TunnelFailure> {
    let credentials = Arc::clone(&ends.credentials);
    let revision = credentials.trust().revision();
    let name = ServerName::IpAddress(ends.gateway.ip().into());
    let connector = TlsConnector::from(credentials.client());
    let protocols = if ends.trunk { vec![TRUNK.to_vec(), HTTP2.to_vec()] } else { vec![HTTP2.to_vec()] };
    let tls = connector.with_alpn(protocols).connect(name, io).await;
    let tls = tls.map_err(|error| PeerError::from_io(&error))?;
    let (_, session) = tls.get_ref();
    let chain = owned(session.peer_certificates());
    let peer = Arc::new(peer_identity(Some(&chain))?);
    check_peer_is(&peer, &ends.expected)?;
    Ok((Verified { peer, chain, credentials, revision }, tls))
}

async fn start_hbone<IO: AsyncRead + AsyncWrite + Unpin>(
    verified: Verified,
    tls: TlsStream<IO>,
    capacity: usize,
    settings: &TunnelSettings,
) -> Result<(Tunnel, Driver<IO>), TunnelFailure> {
    if tls.get_ref().1.alpn_protocol() != Some(HTTP2) {
        return Err(PeerError::Handshake("the peer does not speak HTTP/2 there".into()).into());
    }
    let state = TunnelState::of(Arc::clone(&verified.peer));
    let io = Noting { tls, state: Rc::clone(&state) };
    let opened = client_builder(settings, capacity).handshake(io).await;
    let (sender, connection) = opened.map_err(|error| broken(&state, error))?;
    Ok((Tunnel::new(Kind::Hbone(sender), state), verified.driver(Protocol::Hbone(Box::new(connection)))))
}

/// What to tell about a tunnel that broke before the answer.
fn broken(state: &TunnelState, error: h2::Error) -> TunnelFailure {
    ended(state, state.broken(error))
}

fn ended(state: &TunnelState, error: io::Error) -> TunnelFailure {
    match state.ended() {
        Some(TunnelEnd::Refused(reason) | TunnelEnd::Distrusted(reason)) => {
            TunnelFailure::Tls(reason.clone())
        }
        Some(TunnelEnd::Silent) | None => TunnelFailure::Broken(Arc::new(error)),
    }
}

impl Tunnel {
    fn new(opener: Kind, state: Rc<TunnelState>) -> Self {
        Self {
            opener,
            state,
            proven: Cell::new(false),
            retired: Cell::new(false),
            doubtful: Cell::new(false),
            doubt: Rc::default(),
        }
    }

    /// Takes one of the tunnel's streams, if one may be opened.
    pub(super) fn enter(&self, settings: &TunnelSettings) -> Option<Guard> {
        let room = self.is_usable() && self.state.streams() < self.capacity(settings);
        room.then(|| self.state.enter())
    }

    /// Streams that it may have, by our own limit and the peer's.
    pub(super) fn capacity(&self, settings: &TunnelSettings) -> usize {
        settings.streams().min(match &self.opener {
            Kind::Hbone(sender) => sender.current_max_send_streams(),
            Kind::Trunk(opener) => opener.peer_streams(),
        })
    }

    /// Whether streams may be opened: not after GOAWAY, and not while it is doubtful that somebody answers.
    pub(super) fn is_usable(&self) -> bool {
        !self.retired.get() && !self.doubtful.get() && self.is_open()
    }

    fn is_open(&self) -> bool {
        match &self.opener {
            Kind::Hbone(sender) => {
                let ready = sender.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
                !matches!(ready, Poll::Ready(Err(_)))
            }
            Kind::Trunk(opener) => opener.is_open(),
        }
    }

    /// Whether somebody got an answer through it.
    pub(super) fn is_proven(&self) -> bool {
        self.proven.get()
    }

    /// Opens no more streams; those that are open go on.
    pub(super) fn retire(&self) {
        self.retired.set(true);
    }

    /// Somebody got no answer in time. The peer may be slow with this one, or gone: a ping will tell.
    pub(super) fn doubt(&self) {
        self.doubtful.set(true);
        self.doubt.notify_one();
    }

    /// Asks for a connection and waits for the answer.
    pub(super) async fn connect(&self, route: &TunnelRoute, guard: Guard) -> Result<TunnelStream, NotOpened> {
        let kind = match &self.opener {
            Kind::Hbone(sender) => StreamKind::Hbone(self.connect_hbone(sender.clone(), route, guard).await?),
            Kind::Trunk(opener) => match opener.open(route, guard).await {
                Opening::Opened(stream) => StreamKind::Trunk(stream),
                Opening::Refused(failure) => {
                    self.proven.set(true);
                    return Err(NotOpened::Answered(failure));
                }
                Opening::NotProcessed(error) => {
                    return Err(NotOpened::NotProcessed(TunnelFailure::Broken(Arc::new(error))));
                }
                Opening::Broken(error) => return Err(NotOpened::Broken(ended(&self.state, error))),
            },
        };
        self.proven.set(true);
        Ok(TunnelStream { kind, far: Far::Server })
    }

    async fn connect_hbone(
        &self,
        mut sender: SendRequest<Chunk>,
        route: &TunnelRoute,
        guard: Guard,
    ) -> Result<HboneStream, NotOpened> {
        let failed = |error: h2::Error| {
            let not_processed =
                error.is_remote() && (error.reason() == Some(Reason::REFUSED_STREAM) || error.is_go_away());
            let error = broken(&self.state, error);
            if not_processed { NotOpened::NotProcessed(error) } else { NotOpened::Broken(error) }
        };
        let request = route.request().map_err(NotOpened::Answered)?;
        poll_fn(|cx| sender.poll_ready(cx)).await.map_err(failed)?;
        let (response, send) = sender.send_request(request, false).map_err(failed)?;
        let response = response.await.map_err(failed)?;
        self.proven.set(true);
        if !response.status().is_success() {
            let reason = headers::reason(response.headers());
            return Err(NotOpened::Answered(TunnelFailure::from_answer(response.status(), reason)));
        }
        Ok(HboneStream::new(send, response.into_body(), guard))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Driver<IO> {
    /// Drives the tunnel to its end. `forget` drops the handles by which streams are opened, as soon as there should
    /// be no more of them.
    pub(super) async fn drive(self, tunnel: &Weak<Tunnel>, settings: &TunnelSettings, forget: impl Fn()) {
        let Self { connection, chain, credentials, revision } = self;
        let Some((state, doubt)) =
            tunnel.upgrade().map(|tunnel| (Rc::clone(&tunnel.state), Rc::clone(&tunnel.doubt)))
        else {
            return;
        };
        let answered = || {
            if let Some(tunnel) = tunnel.upgrade() {
                tunnel.doubtful.set(false);
            }
        };
        let distrusted = distrust(credentials.trust(), revision, PeerSide::Server, &chain);
        let end = match connection {
            Protocol::Hbone(mut connection) => {
                let silent = silence(connection.ping_pong(), settings, &doubt, answered);
                let unused = async {
                    idle(&state, settings.idle_timeout).await;
                    // Without a handle the connection closes by itself, in good order.
                    forget();
                    std::future::pending().await
                };
                tokio::select! {
                    closed = &mut connection => closed.err().map(|error| log(&error)).and(None),
                    end = silent => Some(end),
                    end = distrusted => Some(end),
                    end = unused => Some(end),
                }
            }
            Protocol::Trunk(mut engine) => {
                let silent = silence(Rc::clone(engine.shared()), settings, &doubt, answered);
                let mut unused = pin!(idle(&state, settings.idle_timeout));
                let mut closing = false;
                let run = poll_fn(|cx| {
                    if !closing && unused.as_mut().poll(cx).is_ready() {
                        closing = true;
                        // Nobody opens streams any more; it closes with the last of those that are open.
                        forget();
                        engine.close_gracefully();
                    }
                    engine.poll_next(cx)
                });
                tokio::select! {
                    closed = run => closed.and_then(Result::err).map(|error| log(&error)).and(None),
                    end = silent => Some(end),
                    end = distrusted => Some(end),
                }
            }
        };
        if let Some(end) = end {
            tracing::debug!(%end, "a tunnel was ended");
            state.end(end);
        }
        forget();
        // Dropping the connection breaks what streams there are.
    }
}

fn log(error: &dyn std::fmt::Display) {
    tracing::debug!(%error, "a tunnel broke");
}
