//! What operators ask the agent: metrics and health over HTTP, everything else over a Unix socket that only root
//! may use. `meshctl` is the client of the latter.
//!
//! Nothing here is on the way of a connection; it runs on the control runtime and reads snapshots.

pub mod api;

mod checks;
mod explain;
mod http;
mod metrics;
mod policies;
mod routes;
mod socket;
mod state;
mod views;

use std::future::Future;
use std::io;
use std::sync::Arc;

use tokio::net::TcpListener;

pub use socket::{AdminSocket, SocketError};
pub use state::{
    AdminState, AgentFacts, BoxFuture, ConfigInspector, EnrolmentInspector, IdentityInspector, KernelAnswer,
    NodeInspector, SteeringInspector,
};

/// Serves `/metrics` and `/healthz` until `stop` resolves.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve_http(
    listener: TcpListener,
    state: Arc<AdminState>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, http::router(state)).with_graceful_shutdown(stop).await
}

/// Serves the API on the admin socket until `stop` resolves.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve_socket(
    socket: AdminSocket,
    state: Arc<AdminState>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(socket, routes::router(state)).with_graceful_shutdown(stop).await
}
