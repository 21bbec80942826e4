//! What may be asked over the network: metrics and health, nothing that changes or names anything secret.

use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use super::metrics::AgentCollector;
use super::state::AdminState;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct Http {
    state: Arc<AdminState>,
    metrics: Arc<Registry>,
}

/// `/metrics`, `/healthz/ready` and `/healthz/live`.
pub(super) fn router(state: Arc<AdminState>) -> Router {
    let mut metrics = Registry::default();
    state.telemetry.register(&mut metrics);
    metrics.register_collector(Box::new(AgentCollector(Arc::clone(&state))));
    Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz/ready", get(ready))
        .route("/healthz/live", get(async || "alive\n"))
        .with_state(Http { state, metrics: Arc::new(metrics) })
}

/// A scrape reads maps of the kernel and walks over all connections: not on a thread that others wait for.
async fn scrape(State(http): State<Http>) -> Response {
    let text = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        encode(&mut text, &http.metrics).map(|()| text)
    });
    match text.await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Ok(Err(_)) | Err(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "metrics: cannot be written\n").into_response()
        }
    }
}

async fn ready(State(http): State<Http>) -> (StatusCode, String) {
    let health = http.state.health();
    if health.ready {
        return (StatusCode::OK, "ready\n".into());
    }
    let mut body = String::from("not ready:\n");
    for reason in health.missing {
        // Writing to a string cannot fail.
        let _ = writeln!(body, "  {reason}");
    }
    (StatusCode::SERVICE_UNAVAILABLE, body)
}
