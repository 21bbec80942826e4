//! The end of a tunnel that others have opened: who they are, and which connections they ask for.
//!
//! Strangers get this far, so everything has a limit and a time: handshakes at once and how long one may take, streams,
//! headers, resets. A tunnel on which nothing is asked for is closed after a while, so that half a request is no way to
//! stay either. Nothing is answered before the client's certificate is verified.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::server::{Connection, SendResponse};
use h2::{PingPong, Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use rustls_pki_types::CertificateDer;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::aligned::Aligned;
use super::authority::{Authority, InvalidAuthority};
use super::connection::{Pings, distrust, idle, owned, server_builder, silence};
use super::hbone::{Chunk, HboneStream};
use super::headers::{Claims, MESH_ERROR, reason_value};
use super::settings::TunnelSettings;
use super::state::{Guard, TunnelEnd, TunnelState};
use super::stream::{Far, StreamKind, TunnelStream};
use super::trunk::{Engine, Open, OpenRequest, Shared};
use crate::identity::{Credentials, Identity, PeerError, PeerSide, TRUNK, peer_identity};
use crate::proxy::relay::BufferPool;
use crate::proxy::socket::Stream;
use crate::telemetry::ResponseFlag;

/// Time for a client to hear why it is refused.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the tunnels that others open to a worker have in common.
pub struct TunnelServer {
    settings: TunnelSettings,
    buffers: Rc<BufferPool>,
    handshakes: Semaphore,
}

/// Why a tunnel that somebody opened came to nothing, or to a bad end.
#[derive(Debug, Error)]
pub enum ServerError {
    /// There are too many handshakes, or this one took too long.
    #[error("the TLS handshake took too long")]
    Timeout,
    /// The client is not to be trusted, or the TLS handshake failed.
    #[error("{0}")]
    Tls(#[from] PeerError),
    /// The client broke it.
    #[error("the tunnel broke: {0}")]
    Broken(io::Error),
    /// We ended it.
    #[error("{0}")]
    Ended(TunnelEnd),
}

impl ServerError {
    /// The kind of end, for reports.
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::Timeout | Self::Tls(_) | Self::Ended(TunnelEnd::Distrusted(_) | TunnelEnd::Refused(_)) => {
                ResponseFlag::TlsFailure
            }
            Self::Broken(_) | Self::Ended(TunnelEnd::Silent) => ResponseFlag::DownstreamConnectionTermination,
        }
    }
}

/// A tunnel whose client is known.
struct Accepted {
    protocol: Protocol,
    chain: Vec<CertificateDer<'static>>,
    peer: Arc<Identity>,
    state: Rc<TunnelState>,
}

/// What is spoken in it.
enum Protocol {
    Hbone(Box<Connection<TlsStream<Aligned<Stream>>, Chunk>>),
    Trunk(Box<Engine>),
}

impl Protocol {
    fn close_gracefully(&mut self) {
        match self {
            Self::Hbone(connection) => connection.graceful_shutdown(),
            Self::Trunk(engine) => engine.close_gracefully(),
        }
    }

    /// Drives the tunnel until a connection is asked for, or to its end.
    fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
        peer: &Arc<Identity>,
        state: &Rc<TunnelState>,
    ) -> Poll<Option<io::Result<ConnectRequest>>> {
        match self {
            Self::Hbone(connection) => loop {
                return match ready!(connection.poll_accept(cx)) {
                    Some(Ok((request, respond))) => {
                        match ConnectRequest::read(request, respond, peer, state) {
                            Some(request) => Poll::Ready(Some(Ok(request))),
                            None => continue,
                        }
                    }
                    // Nobody misses anything.
                    Some(Err(error)) if error.is_io() && state.streams() == 0 => Poll::Ready(None),
                    Some(Err(error)) => Poll::Ready(Some(Err(state.broken(error)))),
                    None => Poll::Ready(None),
                };
            },
            Self::Trunk(engine) => loop {
                return match ready!(engine.poll_next(cx)) {
                    Some(Ok(request)) => match ConnectRequest::open(request, peer) {
                        Some(request) => Poll::Ready(Some(Ok(request))),
                        None => continue,
                    },
                    Some(Err(_)) if state.streams() == 0 => Poll::Ready(None),
                    Some(Err(error)) => Poll::Ready(Some(Err(error))),
                    None => Poll::Ready(None),
                };
            },
        }
    }
}

/// Asks the client whether it is there.
enum Pinger {
    Hbone(Option<PingPong>),
    Trunk(Rc<Shared>),
}

impl Pings for Pinger {
    async fn ping(&mut self) -> Result<(), ()> {
        match self {
            Self::Hbone(pings) => pings.ping().await,
            Self::Trunk(shared) => shared.ping().await,
        }
    }
}

impl TunnelServer {
    /// One for each worker. `buffers` are the worker's.
    pub fn new(settings: &TunnelSettings, buffers: Rc<BufferPool>) -> Self {
        Self { settings: settings.clone(), buffers, handshakes: Semaphore::new(settings.handshakes) }
    }

    /// Serves a tunnel to its end, and has `connect` take each connection that is asked for: it must not block, so it
    /// will spawn what takes time. Once `drain` completes no more are taken, and those that are open go on.
    pub async fn serve(
        &self,
        mut stream: Stream,
        credentials: &Credentials,
        drain: impl Future<Output = ()>,
        connect: impl Fn(ConnectRequest),
    ) -> Result<(), ServerError> {
        // Bytes on their way out must not be lost when the tunnel ends: the last of them says why.
        stream.end_in_order();
        let revision = credentials.trust().revision();
        // Boxed: it takes room that is given back.
        let Accepted { mut protocol, chain, peer, state } =
            Box::pin(self.handshake(stream, credentials)).await?;

        let doubt = Notify::new();
        let pings = match &mut protocol {
            Protocol::Hbone(connection) => Pinger::Hbone(connection.ping_pong()),
            Protocol::Trunk(engine) => Pinger::Trunk(Rc::clone(engine.shared())),
        };
        let mut silent = pin!(silence(pings, &self.settings, &doubt, || {}));
        let mut distrusted = pin!(distrust(credentials.trust(), revision, PeerSide::Client, &chain));
        let leisure = self.settings.idle_timeout + self.settings.idle_grace;
        let mut no_more = pin!(async {
            tokio::select! {
                () = drain => {}
                () = idle(&state, leisure) => {}
            }
        });
        let mut closing = false;
        let end = loop {
            tokio::select! {
                biased;
                end = &mut distrusted => break end,
                () = &mut no_more, if !closing => {
                    closing = true;
                    protocol.close_gracefully();
                }
                end = &mut silent => break end,
                request = poll_fn(|cx| protocol.poll_accept(cx, &peer, &state)) => match request {
                    Some(Ok(request)) => connect(request),
                    Some(Err(error)) => return Err(ServerError::Broken(error)),
                    None => return Ok(()),
                },
            }
        };
        // Dropping the connection breaks what streams there are.
        state.end(end.clone());
        Err(ServerError::Ended(end))
    }

    async fn handshake(&self, stream: Stream, credentials: &Credentials) -> Result<Accepted, ServerError> {
        let deadline = Instant::now() + self.settings.handshake_timeout;
        let handshake = async {
            // Closed by nobody.
            let permit = self.handshakes.acquire().await.ok();
            let config =
                if self.settings.trunks { credentials.server() } else { credentials.server_without_trunks() };
            let accepting = TlsAcceptor::from(config).accept(Aligned::new(stream)).into_fallible();
            let mut tls = match accepting.await {
                Ok(tls) => tls,
                Err((error, stream)) => {
                    drop(permit);
                    let _ = timeout(LAST_WORDS, let_hear(stream.into_inner())).await;
                    return Err(PeerError::from_io(&error).into());
                }
            };
            let (_, session) = tls.get_ref();
            let chain = owned(session.peer_certificates());
            let peer = Arc::new(peer_identity(Some(&chain))?);
            let state = TunnelState::of(Arc::clone(&peer));
            let protocol = if session.alpn_protocol() == Some(TRUNK) {
                let engine = Engine::serve(tls, Rc::clone(&state), &self.settings, &self.buffers);
                Protocol::Trunk(Box::new(engine.map_err(ServerError::Broken)?))
            } else {
                tls.get_mut().0.stop();
                let opened = server_builder(&self.settings).handshake(tls).await;
                let opened = opened.map_err(|error| ServerError::Broken(state.broken(error)));
                Protocol::Hbone(Box::new(opened?))
            };
            Ok(Accepted { protocol, chain, peer, state })
        };
        timeout_at(deadline, handshake).await.unwrap_or(Err(ServerError::Timeout))
    }
}

/// Ends a connection so that the client can read why it was refused: closing it with bytes unread would reset it, and
/// that overtakes the alert.
async fn let_hear(mut stream: Stream) {
    let _ = stream.shutdown().await;
    let mut ignored = [0; 1024];
    while let Ok(1..) = stream.read(&mut ignored).await {}
}

/// A connection that somebody asks for. Dropped without an answer, its stream is reset.
pub struct ConnectRequest {
    /// Who asks, proven.
    pub peer: Arc<Identity>,
    /// Where the connection should lead.
    pub authority: Authority,
    /// What the client says of itself, not proven.
    pub claims: Claims,
    asked: Asked,
}

/// How it was asked.
enum Asked {
    Hbone { respond: SendResponse<Chunk>, receive: RecvStream, guard: Guard },
    Trunk(OpenRequest),
}

impl ConnectRequest {
    /// Reads a request; one that is none is answered.
    fn read(
        request: Request<RecvStream>,
        respond: SendResponse<Chunk>,
        peer: &Arc<Identity>,
        state: &Rc<TunnelState>,
    ) -> Option<Self> {
        let (head, receive) = request.into_parts();
        if head.method != Method::CONNECT {
            answer(respond, StatusCode::METHOD_NOT_ALLOWED, "only CONNECT is served here");
            return None;
        }
        let text = head.uri.authority().map_or("", http::uri::Authority::as_str);
        let authority = match text.parse() {
            Ok(authority) => authority,
            Err(invalid) => {
                let invalid: InvalidAuthority = invalid;
                answer(respond, StatusCode::BAD_REQUEST, &invalid.to_string());
                return None;
            }
        };
        let claims = Claims::read(&head.headers);
        let asked = Asked::Hbone { respond, receive, guard: state.enter() };
        Some(Self { peer: Arc::clone(peer), authority, claims, asked })
    }

    /// Reads what was asked for in a trunk; what is none is answered.
    fn open(request: OpenRequest, peer: &Arc<Identity>) -> Option<Self> {
        let Open { authority, forwarded, baggage, trace_parent } = &request.open;
        let authority = match authority.parse() {
            Ok(authority) => authority,
            Err(invalid) => {
                let invalid: InvalidAuthority = invalid;
                request.reject(StatusCode::BAD_REQUEST, &invalid.to_string());
                return None;
            }
        };
        let claims = Claims::of(baggage, forwarded, trace_parent);
        Some(Self { peer: Arc::clone(peer), authority, claims, asked: Asked::Trunk(request) })
    }

    /// Answers that the connection is open.
    pub fn accept(self) -> Result<TunnelStream, io::Error> {
        let kind = match self.asked {
            Asked::Hbone { mut respond, receive, guard } => {
                let mut response = Response::new(());
                *response.status_mut() = StatusCode::OK;
                match respond.send_response(response, false) {
                    Ok(send) => StreamKind::Hbone(HboneStream::new(send, receive, guard)),
                    Err(error) => return Err(guard.broken(error)),
                }
            }
            Asked::Trunk(request) => StreamKind::Trunk(request.accept()?),
        };
        Ok(TunnelStream { kind, far: Far::Client })
    }

    /// Answers that it will not be, and why.
    pub fn reject(self, status: StatusCode, reason: &str) {
        match self.asked {
            Asked::Hbone { respond, .. } => answer(respond, status, reason),
            Asked::Trunk(request) => request.reject(status, reason),
        }
    }

    /// Waits until the client does not want the connection any more.
    pub async fn client_gone(&mut self) {
        match &mut self.asked {
            Asked::Hbone { respond, .. } => {
                let _ = poll_fn(|cx: &mut Context<'_>| -> Poll<Result<Reason, h2::Error>> {
                    respond.poll_reset(cx)
                })
                .await;
            }
            Asked::Trunk(request) => request.client_gone().await,
        }
    }
}

fn answer(mut respond: SendResponse<Chunk>, status: StatusCode, reason: &str) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response.headers_mut().insert(MESH_ERROR, reason_value(reason));
    // Fails only where the client is gone.
    let _ = respond.send_response(response, true);
}
