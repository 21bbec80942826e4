//! As much of the Kubernetes API as an authority takes: a secret with optimistic concurrency, and reviews of tokens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A running server.
#[derive(Clone, Default)]
pub(in crate::authority) struct ApiServer(Arc<Mutex<Objects>>);

#[derive(Default)]
struct Objects {
    version: u64,
    /// By `namespace/name`.
    secrets: BTreeMap<String, Value>,
    writes: u32,
    conflicts: u32,
    /// Answers to the next writes instead of doing them.
    write_errors: Vec<u16>,
    /// The status of a review, by token.
    reviews: BTreeMap<String, Value>,
    reviewed: u32,
}

impl ApiServer {
    pub(in crate::authority) async fn start() -> (Self, Client) {
        let server = Self::default();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/api/v1/namespaces/{namespace}/secrets", post(create))
            .route("/api/v1/namespaces/{namespace}/secrets/{name}", get(read).put(replace))
            .route("/apis/authentication.k8s.io/v1/tokenreviews", post(review))
            .with_state(server.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        let client = Client::try_from(Config::new(format!("http://{address}").parse().unwrap())).unwrap();
        (server, client)
    }

    pub(in crate::authority) fn secret(&self, name: &str) -> Option<Value> {
        self.0.lock().unwrap().secrets.get(name).cloned()
    }

    pub(in crate::authority) fn put(&self, namespace: &str, name: &str, data: Value) {
        let mut objects = self.0.lock().unwrap();
        let metadata = json!({"namespace": namespace, "name": name});
        let secret = json!({"kind": "Secret", "apiVersion": "v1", "metadata": metadata, "data": data});
        objects.store(&format!("{namespace}/{name}"), secret);
    }

    /// Writes that took effect, and such that came too late.
    pub(in crate::authority) fn writes(&self) -> (u32, u32) {
        let objects = self.0.lock().unwrap();
        (objects.writes, objects.conflicts)
    }

    pub(in crate::authority) fn fail_next_write(&self, status: u16) {
        self.0.lock().unwrap().write_errors.push(status);
    }

    pub(in crate::authority) fn set_review(&self, token: &str, status: Value) {
        self.0.lock().unwrap().reviews.insert(token.to_owned(), status);
    }

    pub(in crate::authority) fn reviewed(&self) -> u32 {
        self.0.lock().unwrap().reviewed
    }
}

impl Objects {
    fn store(&mut self, name: &str, mut secret: Value) -> Value {
        self.version += 1;
        secret["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.secrets.insert(name.to_owned(), secret.clone());
        secret
    }

    fn write(&mut self, name: &str, secret: Value) -> Response {
        if let Some(status) = self.write_errors.pop() {
            return refused(status, "for the test");
        }
        let held = self.secrets.get(name).map(|held| held["metadata"]["resourceVersion"].clone());
        let sent = secret["metadata"].get("resourceVersion").cloned();
        if held != sent {
            self.conflicts += 1;
            return refused(409, "the object has been modified");
        }
        self.writes += 1;
        Json(self.store(name, secret)).into_response()
    }
}

fn refused(code: u16, message: &str) -> Response {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code,
    });
    (StatusCode::from_u16(code).unwrap(), Json(status)).into_response()
}

async fn read(State(server): State<ApiServer>, Path((namespace, name)): Path<(String, String)>) -> Response {
    match server.secret(&format!("{namespace}/{name}")) {
        Some(secret) => Json(secret).into_response(),
        None => refused(404, "not found"),
    }
}

async fn create(
    State(server): State<ApiServer>,
    Path(namespace): Path<String>,
    Json(secret): Json<Value>,
) -> Response {
    let name = secret["metadata"]["name"].as_str().unwrap().to_owned();
    server.0.lock().unwrap().write(&format!("{namespace}/{name}"), secret)
}

async fn replace(
    State(server): State<ApiServer>,
    Path((namespace, name)): Path<(String, String)>,
    Json(secret): Json<Value>,
) -> Response {
    server.0.lock().unwrap().write(&format!("{namespace}/{name}"), secret)
}

async fn review(State(server): State<ApiServer>, Json(mut review): Json<Value>) -> Response {
    let mut objects = server.0.lock().unwrap();
    objects.reviewed += 1;
    assert_eq!(review["spec"]["audiences"], json!(["istio-ca"]));
    let token = review["spec"]["token"].as_str().unwrap();
    review["status"] = objects.reviews.get(token).cloned().unwrap_or(json!({"authenticated": false}));
    Json(review).into_response()
}
