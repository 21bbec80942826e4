//! Health, metrics and status.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::control::StartError;
use crate::status::{Status, StatusView};

/// The content type of the text format that `prometheus-client` writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    status: Arc<Status>,
    stop: CancellationToken,
) -> Result<(), StartError> {
    let routes = Router::new()
        .route("/healthz/live", get(|| async { "alive\n" }))
        .route("/healthz/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/status", get(status_view))
        .with_state(status);
    axum::serve(listener, routes)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .map_err(StartError::Socket)
}

async fn ready(State(status): State<Arc<Status>>) -> (StatusCode, String) {
    match status.not_ready() {
        // Serving what is known is better than serving nothing: out of date is no reason not to be ready.
        None => (StatusCode::OK, format!("ready\n{}", lines(&status.stale()))),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

fn lines(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

async fn metrics(State(status): State<Arc<Status>>) -> impl IntoResponse {
    match status.metrics() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn status_view(State(status): State<Arc<Status>>) -> Json<StatusView> {
    Json(status.view())
}
