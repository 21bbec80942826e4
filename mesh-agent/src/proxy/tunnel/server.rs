//! The end of a tunnel that others have opened: who they are, and which connections they ask for.
//!
//! Strangers get this far, so everything has a limit and a time: handshakes at once and how long one may take, streams,
//! headers, resets. A tunnel on which nothing is asked for is closed after a while, so that half a request is no way to
//! stay either. Nothing is answered before the client's certificate is verified.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use rustls_pki_types::CertificateDer;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::authority::Authority;
use super::connection::{distrust, idle, owned, server_builder, silence};
use super::headers::{Claims, MESH_ERROR, reason_value};
use super::settings::TunnelSettings;
use super::state::{Guard, TunnelEnd, TunnelState};
use super::stream::{Chunk, Far, TunnelStream};
use crate::identity::{Credentials, Identity, PeerError, PeerSide, peer_identity};
use crate::proxy::socket::Stream;
use crate::telemetry::ResponseFlag;

/// Time for a client to hear why it is refused.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the tunnels that others open to a worker have in common.
pub struct TunnelServer {
    settings: TunnelSettings,
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
    connection: Connection<TlsStream<Stream>, Chunk>,
    chain: Vec<CertificateDer<'static>>,
    peer: Arc<Identity>,
}

impl TunnelServer {
    /// One for each worker.
    pub fn new(settings: &TunnelSettings) -> Self {
        Self { settings: settings.clone(), handshakes: Semaphore::new(settings.handshakes) }
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
        let Accepted { mut connection, chain, peer } = Box::pin(self.handshake(stream, credentials)).await?;

        let state = TunnelState::of(Arc::clone(&peer));
        let doubt = Notify::new();
        let mut silent = pin!(silence(connection.ping_pong(), &self.settings, &doubt, || {}));
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
                    connection.graceful_shutdown();
                }
                end = &mut silent => break end,
                request = connection.accept() => match request {
                    Some(Ok((request, respond))) => {
                        if let Some(request) = ConnectRequest::read(request, respond, &peer, &state) {
                            connect(request);
                        }
                    }
                    // Nobody misses anything.
                    Some(Err(error)) if error.is_io() && state.streams() == 0 => return Ok(()),
                    Some(Err(error)) => return Err(ServerError::Broken(state.broken(error))),
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
            let accepting = TlsAcceptor::from(credentials.server()).accept(stream).into_fallible();
            let tls = match accepting.await {
                Ok(tls) => tls,
                Err((error, stream)) => {
                    drop(permit);
                    let _ = timeout(LAST_WORDS, let_hear(stream)).await;
                    return Err(PeerError::from_io(&error).into());
                }
            };
            let (_, session) = tls.get_ref();
            let chain = owned(session.peer_certificates());
            let peer = Arc::new(peer_identity(Some(&chain))?);
            let opened = server_builder(&self.settings).handshake(tls).await;
            let connection =
                opened.map_err(|error| ServerError::Broken(TunnelState::default().broken(error)))?;
            Ok(Accepted { connection, chain, peer })
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
    respond: SendResponse<Chunk>,
    receive: RecvStream,
    guard: Guard,
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
                let invalid: super::authority::InvalidAuthority = invalid;
                answer(respond, StatusCode::BAD_REQUEST, &invalid.to_string());
                return None;
            }
        };
        let claims = Claims::read(&head.headers);
        Some(Self { peer: Arc::clone(peer), authority, claims, respond, receive, guard: state.enter() })
    }

    /// Answers that the connection is open.
    pub fn accept(mut self) -> Result<TunnelStream, io::Error> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::OK;
        match self.respond.send_response(response, false) {
            Ok(send) => Ok(TunnelStream::new(send, self.receive, Far::Client, self.guard)),
            Err(error) => Err(self.guard.broken(error)),
        }
    }

    /// Answers that it will not be, and why.
    pub fn reject(self, status: StatusCode, reason: &str) {
        answer(self.respond, status, reason);
    }

    /// Waits until the client does not want the connection any more.
    pub async fn client_gone(&mut self) {
        let respond = &mut self.respond;
        let _ = std::future::poll_fn(|cx: &mut Context<'_>| -> Poll<Result<Reason, h2::Error>> {
            respond.poll_reset(cx)
        })
        .await;
    }
}

fn answer(mut respond: SendResponse<Chunk>, status: StatusCode, reason: &str) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response.headers_mut().insert(MESH_ERROR, reason_value(reason));
    // Fails only where the client is gone.
    let _ = respond.send_response(response, true);
}
