//! HTTP over TLS, for callers that keep their connections: the API server.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures::StreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::server::ResolvesServerCert;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::incoming::{self, Connection};
use super::tls;
use crate::control::StartError;

/// Connections at the same time; an API server has a few. More wait in the kernel's queue.
const CONNECTIONS: usize = 128;
/// Requests at the same time on one connection.
const STREAMS: u32 = 32;
/// Time for the head of a request to come, and of a connection that says nothing to be believed alive.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves until `stop`, then lets the requests end.
pub(crate) async fn serve(
    listener: TcpListener,
    certificate: Arc<dyn ResolvesServerCert>,
    routes: Router,
    stop: CancellationToken,
) -> Result<(), StartError> {
    let config = tls::showing(certificate, &["h2", "http/1.1"])?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = pin!(tls::shake_hands(incoming::accept(listener, places), config));
    let mut open = JoinSet::new();
    while let Some(Some(connection)) = stop.run_until_cancelled(connections.next()).await {
        while open.try_join_next().is_some() {}
        match connection {
            Ok(connection) => {
                open.spawn(answer(connection, routes.clone(), stop.clone()));
            }
            Err(error) => debug!(%error, "a connection was not taken"),
        }
    }
    open.join_all().await;
    Ok(())
}

async fn answer(connection: TlsStream<Connection>, routes: Router, stop: CancellationToken) {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(PATIENCE).max_concurrent_streams(STREAMS);
    let service = TowerToHyperService::new(routes);
    let mut serving = pin!(server.serve_connection(TokioIo::new(connection), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection broke");
    }
}
