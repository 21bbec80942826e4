//! One tunnel that this side has opened: setting it up, opening streams in it, keeping watch over it.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use h2::Reason;
use h2::client::{Connection, SendRequest};
use http::Request;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::connection::{client_builder, distrust, idle, owned, silence};
use super::error::{Step, TunnelFailure};
use super::headers;
use super::settings::TunnelSettings;
use super::state::{Guard, TunnelEnd, TunnelState};
use super::stream::{Chunk, Far, TunnelStream};
use super::tls::Noting;
use crate::identity::{Credentials, Identity, PeerError, PeerSide, check_peer_is, peer_identity};
use crate::proxy::settings::ProxySettings;
use crate::proxy::socket;

/// A tunnel is between these; only connections that agree in all of it share one.
#[derive(Clone)]
pub(super) struct Ends {
    pub(super) credentials: Arc<Credentials>,
    pub(super) source: Option<IpAddr>,
    pub(super) gateway: SocketAddr,
    pub(super) expected: Arc<[Identity]>,
}

/// Streams of a tunnel are opened with it. The tunnel closes when it is dropped and its streams have ended.
pub(super) struct Tunnel {
    sender: SendRequest<Chunk>,
    pub(super) state: Rc<TunnelState>,
    /// Set once a stream was answered.
    proven: Cell<bool>,
    /// Set once no more streams may be opened.
    retired: Cell<bool>,
    /// Set while a stream that got no answer makes it doubtful that the peer is there.
    doubtful: Cell<bool>,
    doubt: Rc<Notify>,
}

/// A tunnel's connection, to be driven to its end.
pub(super) struct Driver<IO> {
    connection: Connection<Noting<IO>, Chunk>,
    chain: Vec<CertificateDer<'static>>,
    credentials: Arc<Credentials>,
    revision: watch::Receiver<u64>,
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
) -> Result<(Tunnel, Driver<TcpStream>), TunnelFailure> {
    let period = settings.tunnel.handshake_timeout;
    let connecting = timeout(period, socket::connect(ends.gateway, ends.source, settings));
    let tcp = connecting.await.map_err(|_| TunnelFailure::Timeout(Step::Connect))?;
    let tcp = tcp.map_err(|error| TunnelFailure::Connect(Arc::new(error)))?;
    establish_over(tcp, ends, capacity, &settings.tunnel).await
}

/// Sets up a tunnel over an open connection.
pub(super) async fn establish_over<IO: AsyncRead + AsyncWrite + Unpin>(
    io: IO,
    ends: &Ends,
    capacity: usize,
    settings: &TunnelSettings,
) -> Result<(Tunnel, Driver<IO>), TunnelFailure> {
    let handshake = timeout(settings.handshake_timeout, handshake(io, ends, capacity, settings));
    handshake.await.map_err(|_| TunnelFailure::Timeout(Step::Handshake))?
}

async fn handshake<IO: AsyncRead + AsyncWrite + Unpin>(
    io: IO,
    ends: &Ends,
    capacity: usize,
    settings: &TunnelSettings,
) -> Result<(Tunnel, Driver<IO>), TunnelFailure> {
    let credentials = Arc::clone(&ends.credentials);
    let revision = credentials.trust().revision();
    let name = ServerName::IpAddress(ends.gateway.ip().into());
    let tls = TlsConnector::from(credentials.client()).connect(name, io).await;
    let tls = tls.map_err(|error| PeerError::from_io(&error))?;

    // Nothing is sent before it is certain who is there.
    let (_, session) = tls.get_ref();
    let chain = owned(session.peer_certificates());
    let peer = Arc::new(peer_identity(Some(&chain))?);
    check_peer_is(&peer, &ends.expected)?;
    if session.alpn_protocol() != Some(b"h2") {
        return Err(PeerError::Handshake("the peer does not speak HTTP/2 there".into()).into());
    }

    let state = TunnelState::of(peer);
    let io = Noting { tls, state: Rc::clone(&state) };
    let opened = client_builder(settings, capacity).handshake(io).await;
    let (sender, connection) = opened.map_err(|error| broken(&state, error))?;
    let tunnel = Tunnel {
        sender,
        state,
        proven: Cell::new(false),
        retired: Cell::new(false),
        doubtful: Cell::new(false),
        doubt: Rc::default(),
    };
    Ok((tunnel, Driver { connection, chain, credentials, revision }))
}

/// What to tell about a tunnel that broke before the answer.
fn broken(state: &TunnelState, error: h2::Error) -> TunnelFailure {
    match state.ended() {
        Some(TunnelEnd::Refused(reason) | TunnelEnd::Distrusted(reason)) => {
            TunnelFailure::Tls(reason.clone())
        }
        Some(TunnelEnd::Silent) | None => TunnelFailure::Broken(Arc::new(state.broken(error))),
    }
}

impl Tunnel {
    /// Takes one of the tunnel's streams, if one may be opened.
    pub(super) fn enter(&self, settings: &TunnelSettings) -> Option<Guard> {
        let room = self.is_usable() && self.state.streams() < self.capacity(settings);
        room.then(|| self.state.enter())
    }

    /// Streams that it may have, by our own limit and the peer's.
    pub(super) fn capacity(&self, settings: &TunnelSettings) -> usize {
        settings.streams().min(self.sender.current_max_send_streams())
    }

    /// Whether streams may be opened: not after GOAWAY, and not while it is doubtful that somebody answers.
    pub(super) fn is_usable(&self) -> bool {
        !self.retired.get() && !self.doubtful.get() && self.is_open()
    }

    fn is_open(&self) -> bool {
        let ready = self.sender.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
        !matches!(ready, Poll::Ready(Err(_)))
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
    pub(super) async fn connect(
        &self,
        request: Request<()>,
        guard: Guard,
    ) -> Result<TunnelStream, NotOpened> {
        let failed = |error: h2::Error| {
            let not_processed =
                error.is_remote() && (error.reason() == Some(Reason::REFUSED_STREAM) || error.is_go_away());
            let error = broken(&self.state, error);
            if not_processed { NotOpened::NotProcessed(error) } else { NotOpened::Broken(error) }
        };
        let mut sender = self.sender.clone();
        poll_fn(|cx| sender.poll_ready(cx)).await.map_err(failed)?;
        let (response, send) = sender.send_request(request, false).map_err(failed)?;
        let response = response.await.map_err(failed)?;
        self.proven.set(true);
        if !response.status().is_success() {
            let reason = headers::reason(response.headers());
            return Err(NotOpened::Answered(TunnelFailure::from_answer(response.status(), reason)));
        }
        Ok(TunnelStream::new(send, response.into_body(), Far::Server, guard))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Driver<IO> {
    /// Drives the tunnel to its end. `forget` drops the handles by which streams are opened, as soon as there should
    /// be no more of them.
    pub(super) async fn drive(self, tunnel: &Weak<Tunnel>, settings: &TunnelSettings, forget: impl Fn()) {
        let Self { mut connection, chain, credentials, revision } = self;
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
        let silent = silence(connection.ping_pong(), settings, &doubt, answered);
        let distrusted = distrust(credentials.trust(), revision, PeerSide::Server, &chain);
        let unused = async {
            idle(&state, settings.idle_timeout).await;
            // Without a handle the connection closes by itself, in good order.
            forget();
            std::future::pending().await
        };
        let end = tokio::select! {
            closed = &mut connection => {
                if let Err(error) = closed {
                    tracing::debug!(%error, "a tunnel broke");
                }
                None
            }
            end = silent => Some(end),
            end = distrusted => Some(end),
            end = unused => Some(end),
        };
        if let Some(end) = end {
            tracing::debug!(%end, "a tunnel was ended");
            state.end(end);
        }
        forget();
        // Dropping the connection breaks what streams there are.
    }
}
