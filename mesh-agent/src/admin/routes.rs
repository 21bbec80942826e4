//! The API on the admin socket.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{
    Check, ConnectionInfo, ErrorBody, Explanation, IdentityReport, LogFilter, PodInfo, PodPolicies,
    ServiceInfo, Status, SteeringReport, Toggle, WorkloadInfo, path,
};
use super::explain;
use super::state::AdminState;

type Shared = State<Arc<AdminState>>;

/// What `meshctl` asks.
pub(super) fn router(state: Arc<AdminState>) -> Router {
    Router::new()
        .route(path::STATUS, get(status))
        .route(path::CHECK, get(check))
        .route(path::PODS, get(pods))
        .route(path::WORKLOADS, get(workloads))
        .route(path::SERVICES, get(services))
        .route(path::CONNECTIONS, get(connections))
        .route(path::EXPLAIN, get(explain))
        .route(path::IDENTITIES, get(identities))
        .route(path::POLICIES, get(policies))
        .route(path::BPF, get(bpf))
        .route(path::BPF_STATS, axum::routing::put(bpf_stats))
        .route(path::DUMP, get(dump))
        .route(path::LOG, get(log).put(set_log))
        .fallback(async || {
            ApiError::NotFound("this agent does not know that request; is meshctl newer?".into())
        })
        .with_state(state)
}

/// A request that could not be answered.
#[derive(Debug)]
pub(super) enum ApiError {
    /// What was asked about is not there.
    NotFound(String),
    /// The question makes no sense.
    Invalid(String),
    /// The answer could not be had.
    Failed(String),
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, error) = match self {
            Self::NotFound(error) => (StatusCode::NOT_FOUND, error),
            Self::Invalid(error) => (StatusCode::BAD_REQUEST, error),
            Self::Failed(error) => (StatusCode::INTERNAL_SERVER_ERROR, error),
        };
        (status, Json(ErrorBody { error })).into_response()
    }
}

type Answer<T> = Result<Json<T>, ApiError>;

/// Runs what may make system calls or take long where nobody else waits.
async fn answer<T: Send + 'static>(
    state: Arc<AdminState>,
    ask: impl FnOnce(&AdminState) -> Result<T, ApiError> + Send + 'static,
) -> Answer<T> {
    match tokio::task::spawn_blocking(move || ask(&state)).await {
        Ok(answer) => answer.map(Json),
        Err(_) => Err(ApiError::Failed("the agent failed to answer; its log says why".into())),
    }
}

#[derive(Deserialize)]
struct Selection {
    namespace: Option<String>,
}

#[derive(Deserialize)]
struct Question {
    client: String,
    destination: String,
}

async fn status(State(state): Shared) -> Answer<Status> {
    answer(state, |state| Ok(state.status())).await
}

async fn check(State(state): Shared) -> Json<Vec<Check>> {
    Json(state.checks().await)
}

async fn pods(State(state): Shared) -> Answer<Vec<PodInfo>> {
    answer(state, |state| Ok(state.pod_infos())).await
}

async fn workloads(State(state): Shared, Query(selection): Query<Selection>) -> Answer<Vec<WorkloadInfo>> {
    answer(state, move |state| Ok(state.workload_infos(selection.namespace.as_deref()))).await
}

async fn services(State(state): Shared, Query(selection): Query<Selection>) -> Answer<Vec<ServiceInfo>> {
    answer(state, move |state| Ok(state.service_infos(selection.namespace.as_deref()))).await
}

async fn connections(State(state): Shared) -> Answer<Vec<ConnectionInfo>> {
    answer(state, |state| Ok(state.connection_infos())).await
}

async fn explain(State(state): Shared, Query(question): Query<Question>) -> Answer<Explanation> {
    answer(state, move |state| state.explain(&question.client, &question.destination)).await
}

async fn identities(State(state): Shared) -> Answer<IdentityReport> {
    answer(state, |state| Ok(state.identities.report())).await
}

#[derive(Deserialize)]
struct PodSelection {
    pod: Option<String>,
}

async fn policies(State(state): Shared, Query(selection): Query<PodSelection>) -> Answer<Vec<PodPolicies>> {
    answer(state, move |state| {
        let found = state.pod_policies(selection.pod.as_deref());
        match selection.pod {
            Some(pod) if found.is_empty() => {
                let unknown =
                    || format!("no enrolled pod of this node is called {pod:?}; see `meshctl pods`");
                let elsewhere = explain::elsewhere(&pod, &state.mesh.load());
                Err(ApiError::NotFound(elsewhere.unwrap_or_else(unknown)))
            }
            _ => Ok(found),
        }
    })
    .await
}

async fn bpf(State(state): Shared) -> Answer<SteeringReport> {
    answer(state, |state| full_report(state).map_err(ApiError::Failed)).await
}

/// The kernel's side with everything, also what takes a walk to count.
fn full_report(state: &AdminState) -> Result<SteeringReport, String> {
    Ok(SteeringReport { maps: state.steering.map_entries()?, ..state.steering.report()? })
}

async fn bpf_stats(State(state): Shared, Json(toggle): Json<Toggle>) -> Answer<Toggle> {
    answer(state, move |state| {
        state.steering.measure_run_times(toggle.enabled).map(|()| toggle).map_err(ApiError::Failed)
    })
    .await
}

async fn dump(State(state): Shared) -> Answer<Value> {
    let checks = state.checks().await;
    answer(state, move |state| {
        let steering = match full_report(state) {
            Ok(report) => json!(report),
            Err(error) => json!({ "error": error }),
        };
        Ok(json!({
            "status": state.status(),
            "checks": checks,
            "pods": state.pod_infos(),
            "workloads": state.workload_infos(None),
            "services": state.service_infos(None),
            "connections": state.connection_infos(),
            "identities": state.identities.report(),
            "policies": state.pod_policies(None),
            "steering": steering,
        }))
    })
    .await
}

async fn log(State(state): Shared) -> Json<LogFilter> {
    Json(LogFilter { filter: state.log.current() })
}

async fn set_log(State(state): Shared, Json(wanted): Json<LogFilter>) -> Answer<LogFilter> {
    state.log.set(&wanted.filter).map_err(|error| ApiError::Invalid(error.to_string()))?;
    tracing::info!(filter = %wanted.filter, "log filter changed");
    Ok(Json(wanted))
}
