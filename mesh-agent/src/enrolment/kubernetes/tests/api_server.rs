//! As much of the Kubernetes API as a watch and a patch take: list, watch with bookmarks and resumption, merge
//! patches of metadata, and being away.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch};
use axum::{Json, Router};
use futures::stream;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A running server. Its objects are changed through it.
#[derive(Clone)]
pub(super) struct ApiServer {
    objects: Arc<Mutex<Objects>>,
    /// Length of the log, or 0 to end every watch.
    log_length: Arc<watch::Sender<usize>>,
}

#[derive(Default)]
struct Objects {
    version: u64,
    /// By kind (`pods`, `namespaces`) and name.
    current: BTreeMap<(&'static str, String), Value>,
    log: Vec<Event>,
    /// The oldest version that a watch may resume from.
    horizon: u64,
    away: bool,
    patches: Vec<(String, Value)>,
    lists: u32,
}

#[derive(Clone)]
struct Event {
    version: u64,
    kind: &'static str,
    line: Value,
}

impl ApiServer {
    pub(super) async fn start() -> (Self, Client) {
        let server = Self { objects: Arc::default(), log_length: Arc::default() };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/api/v1/{kind}", get(list_or_watch))
            .route("/api/v1/namespaces/{namespace}/pods/{name}", patch(patch_pod))
            .with_state(server.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        let client = Client::try_from(Config::new(format!("http://{address}").parse().unwrap())).unwrap();
        (server, client)
    }

    /// Creates or replaces an object.
    pub(super) fn apply(&self, kind: &'static str, mut object: Value) {
        let mut objects = self.objects.lock().unwrap();
        objects.version += 1;
        object["metadata"]["resourceVersion"] = objects.version.to_string().into();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let old = objects.current.insert((kind, name), object.clone());
        let change = if old.is_some() { "MODIFIED" } else { "ADDED" };
        self.record(&mut objects, kind, change, object);
    }

    pub(super) fn delete(&self, kind: &'static str, name: &str) {
        let mut objects = self.objects.lock().unwrap();
        objects.version += 1;
        let mut object = objects.current.remove(&(kind, name.to_owned())).unwrap();
        object["metadata"]["resourceVersion"] = objects.version.to_string().into();
        self.record(&mut objects, kind, "DELETED", object);
    }

    /// Sends a bookmark for the current version.
    pub(super) fn bookmark(&self) {
        let mut objects = self.objects.lock().unwrap();
        for (kind, api) in [("pods", "Pod"), ("namespaces", "Namespace")] {
            let metadata = json!({"resourceVersion": objects.version.to_string()});
            let object = json!({"kind": api, "apiVersion": "v1", "metadata": metadata});
            self.record(&mut objects, kind, "BOOKMARK", object);
        }
    }

    /// Forgets the past and ends all watches, so that resuming one is answered with 410 Gone.
    pub(super) fn expire(&self) {
        let mut objects = self.objects.lock().unwrap();
        objects.version += 1;
        objects.horizon = objects.version;
        self.log_length.send_replace(0);
        self.log_length.send_replace(objects.log.len());
    }

    /// Ends all watches and answers nothing but 503 until told to come back.
    pub(super) fn set_away(&self, away: bool) {
        let mut objects = self.objects.lock().unwrap();
        objects.away = away;
        self.log_length.send_replace(0);
        self.log_length.send_replace(objects.log.len());
    }

    pub(super) fn patches(&self) -> Vec<(String, Value)> {
        self.objects.lock().unwrap().patches.clone()
    }

    pub(super) fn lists(&self) -> u32 {
        self.objects.lock().unwrap().lists
    }

    pub(super) fn annotation(&self, pod: &str, key: &str) -> Option<String> {
        let objects = self.objects.lock().unwrap();
        let pod = objects.current.get(&("pods", pod.to_owned()))?;
        pod["metadata"]["annotations"][key].as_str().map(str::to_owned)
    }

    fn record(&self, objects: &mut Objects, kind: &'static str, change: &str, object: Value) {
        let line = json!({"type": change, "object": object});
        objects.log.push(Event { version: objects.version, kind, line });
        self.log_length.send_replace(objects.log.len());
    }

    /// The events of a kind after `version`, until the server ends all watches.
    fn watch(&self, kind: &'static str, version: u64) -> Response {
        let server = self.clone();
        let lengths = self.log_length.subscribe();
        let lines = stream::unfold((server, lengths, 0), move |(server, mut lengths, mut next)| async move {
            loop {
                let event = server.objects.lock().unwrap().log.get(next).cloned();
                match event {
                    Some(event) => {
                        next += 1;
                        if event.kind == kind && event.version > version {
                            let line = format!("{}\n", event.line);
                            return Some((Ok::<_, Infallible>(line), (server, lengths, next)));
                        }
                    }
                    None => {
                        lengths.changed().await.ok()?;
                        if *lengths.borrow_and_update() < next {
                            return None;
                        }
                    }
                }
            }
        });
        Body::from_stream(lines).into_response()
    }
}

async fn list_or_watch(
    State(server): State<ApiServer>,
    Path(kind): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let (kind, list_kind) = match kind.as_str() {
        "pods" => ("pods", "PodList"),
        _ => ("namespaces", "NamespaceList"),
    };
    if kind == "pods" {
        assert_eq!(query["fieldSelector"], "spec.nodeName=one");
    }
    let mut objects = server.objects.lock().unwrap();
    if objects.away {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if query.get("watch").is_some_and(|watch| watch == "true") {
        let version: u64 = query["resourceVersion"].parse().unwrap();
        if version < objects.horizon {
            let gone = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "too old resource version", "reason": "Expired", "code": 410,
            });
            return format!("{}\n", json!({"type": "ERROR", "object": gone})).into_response();
        }
        drop(objects);
        return server.watch(kind, version);
    }
    objects.lists += 1;
    let items: Vec<_> =
        objects.current.iter().filter(|((of, _), _)| *of == kind).map(|(_, object)| object.clone()).collect();
    let metadata = json!({"resourceVersion": objects.version.to_string()});
    Json(json!({"kind": list_kind, "apiVersion": "v1", "metadata": metadata, "items": items})).into_response()
}

async fn patch_pod(
    State(server): State<ApiServer>,
    Path((_, name)): Path<(String, String)>,
    body: String,
) -> Response {
    let patch: Value = serde_json::from_str(&body).unwrap();
    let pod = {
        let mut objects = server.objects.lock().unwrap();
        objects.patches.push((name.clone(), patch["metadata"]["annotations"].clone()));
        objects.current.get(&("pods", name)).cloned()
    };
    let Some(mut pod) = pod else {
        return StatusCode::NOT_FOUND.into_response();
    };
    assert_eq!(patch["metadata"]["uid"], pod["metadata"]["uid"]);
    let annotations = pod["metadata"]["annotations"].as_object_mut().unwrap();
    for (key, value) in patch["metadata"]["annotations"].as_object().unwrap() {
        annotations.insert(key.clone(), value.clone());
    }
    annotations.retain(|_, value| !value.is_null());
    server.apply("pods", pod.clone());
    Json(pod).into_response()
}
