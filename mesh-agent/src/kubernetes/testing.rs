//! As much of the Kubernetes API as the agent asks: lists in pages, watches with bookmarks and resumption, patches, reviews of
//! its own rights, and being away. Every request is written down.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use futures::stream;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A running server. Its objects are changed through it.
#[derive(Clone)]
pub(crate) struct ApiServer {
    objects: Arc<Mutex<Objects>>,
    /// Length of the log, or 0 to end every watch.
    log_length: Arc<watch::Sender<usize>>,
}

#[derive(Default)]
struct Objects {
    version: u64,
    /// By kind (`pods`, `namespaces`, ...) and name.
    current: BTreeMap<(&'static str, String), Value>,
    log: Vec<Event>,
    /// The oldest version that a watch may resume from.
    horizon: u64,
    away: bool,
    patches: Vec<(String, Value)>,
    lists: u32,
    asked: BTreeSet<String>,
    /// What is answered with 403, as [`ApiServer::asked`] writes it.
    forbidden: BTreeSet<String>,
    /// Items per page, at most.
    page: Option<usize>,
}

/// The kinds it has, and what they are called in a list.
const KINDS: [(&str, &str); 4] =
    [("pods", "Pod"), ("namespaces", "Namespace"), ("nodes", "Node"), ("daemonsets", "DaemonSet")];

type Answer = Result<Response, Refused>;

/// A request that is not answered as it would like, with status, reason and message.
struct Refused(StatusCode, &'static str, &'static str);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(status, reason, message) = self;
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": status.as_u16(),
        });
        (status, Json(body)).into_response()
    }
}

const NOT_FOUND: Refused = Refused(StatusCode::NOT_FOUND, "NotFound", "there is none");

#[derive(Clone)]
struct Event {
    version: u64,
    kind: &'static str,
    line: Value,
}

impl ApiServer {
    pub(crate) async fn start() -> (Self, Client) {
        let server = Self { objects: Arc::default(), log_length: Arc::default() };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/version", get(version))
            .route("/api/v1/{kind}", get(list_or_watch))
            .route("/api/v1/nodes/{name}", get(get_node).patch(patch_node))
            .route("/api/v1/namespaces/{namespace}/pods/{name}", patch(patch_pod))
            .route("/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}", get(get_daemon_set))
            .route("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", post(review))
            .with_state(server.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        let client = super::client::with(Config::new(format!("http://{address}").parse().unwrap())).unwrap();
        (server, client)
    }

    /// Creates or replaces an object.
    pub(crate) fn apply(&self, kind: &'static str, mut object: Value) {
        let mut objects = self.objects.lock().unwrap();
        objects.version += 1;
        object["metadata"]["resourceVersion"] = objects.version.to_string().into();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let old = objects.current.insert((kind, name), object.clone());
        let change = if old.is_some() { "MODIFIED" } else { "ADDED" };
        self.record(&mut objects, kind, change, object);
    }

    pub(crate) fn delete(&self, kind: &'static str, name: &str) {
        let mut objects = self.objects.lock().unwrap();
        objects.version += 1;
        let mut object = objects.current.remove(&(kind, name.to_owned())).unwrap();
        object["metadata"]["resourceVersion"] = objects.version.to_string().into();
        self.record(&mut objects, kind, "DELETED", object);
    }

    /// Sends a bookmark for the current version.
    pub(crate) fn bookmark(&self) {
        let mut objects = self.objects.lock().unwrap();
        for (kind, api) in KINDS {
            let metadata = json!({"resourceVersion": objects.version.to_string()});
            let object = json!({"kind": api, "apiVersion": "v1", "metadata": metadata});
            self.record(&mut objects, kind, "BOOKMARK", object);
        }
    }

    /// Forgets the past and ends all watches, so that resuming one is answered with 410 Gone.
    pub(crate) fn expire(&self) {
        let mut objects = self.objects.lock().unwrap();
        objects.version += 1;
        objects.horizon = objects.version;
        self.log_length.send_replace(0);
        self.log_length.send_replace(objects.log.len());
    }

    /// Ends all watches and answers nothing but 503 until told to come back.
    pub(crate) fn set_away(&self, away: bool) {
        let mut objects = self.objects.lock().unwrap();
        objects.away = away;
        self.log_length.send_replace(0);
        self.log_length.send_replace(objects.log.len());
    }

    pub(crate) fn patches(&self) -> Vec<(String, Value)> {
        self.objects.lock().unwrap().patches.clone()
    }

    pub(crate) fn lists(&self) -> u32 {
        self.objects.lock().unwrap().lists
    }

    pub(crate) fn annotation(&self, pod: &str, key: &str) -> Option<String> {
        let objects = self.objects.lock().unwrap();
        let pod = objects.current.get(&("pods", pod.to_owned()))?;
        pod["metadata"]["annotations"][key].as_str().map(str::to_owned)
    }

    /// What was asked, as `verb resource` or `verb resource.group`.
    pub(crate) fn asked(&self) -> BTreeSet<String> {
        self.objects.lock().unwrap().asked.clone()
    }

    /// Answers such requests with 403.
    pub(crate) fn forbid(&self, what: &str) {
        self.objects.lock().unwrap().forbidden.insert(what.to_owned());
    }

    /// No longer.
    pub(crate) fn permit(&self, what: &str) {
        self.objects.lock().unwrap().forbidden.remove(what);
    }

    /// Sends lists in pages of this many items, whatever the client would take.
    pub(crate) fn set_page(&self, items: usize) {
        self.objects.lock().unwrap().page = Some(items);
    }

    /// An object as it is now.
    pub(crate) fn object(&self, kind: &'static str, name: &str) -> Option<Value> {
        self.objects.lock().unwrap().current.get(&(kind, name.to_owned())).cloned()
    }

    /// Writes the request down; the objects, unless it is not answered.
    fn admit(&self, what: &str) -> Result<MutexGuard<'_, Objects>, Refused> {
        let mut objects = self.objects.lock().unwrap();
        objects.asked.insert(what.to_owned());
        if objects.away {
            return Err(Refused(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "away"));
        }
        if objects.forbidden.contains(what) {
            return Err(Refused(StatusCode::FORBIDDEN, "Forbidden", "you may not"));
        }
        Ok(objects)
    }

    fn one(&self, what: &str, kind: &'static str, name: &str) -> Answer {
        let found = self.admit(what)?.current.get(&(kind, name.to_owned())).cloned();
        found.map(|object| Json(object).into_response()).ok_or(NOT_FOUND)
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
) -> Answer {
    let (kind, api) = KINDS.into_iter().find(|(known, _)| *known == kind).unwrap();
    let selector = match kind {
        "pods" => Some("spec.nodeName=one"),
        "nodes" => Some("metadata.name=one"),
        _ => None,
    };
    assert_eq!(query.get("fieldSelector").map(String::as_str), selector, "{kind}");
    let watches = query.get("watch").is_some_and(|watch| watch == "true");
    let mut objects = server.admit(&format!("{} {kind}", if watches { "watch" } else { "list" }))?;
    if watches {
        let version: u64 = query["resourceVersion"].parse().unwrap();
        if version < objects.horizon {
            let gone = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "too old resource version", "reason": "Expired", "code": 410,
            });
            return Ok(format!("{}\n", json!({"type": "ERROR", "object": gone})).into_response());
        }
        drop(objects);
        return Ok(server.watch(kind, version));
    }
    objects.lists += 1;
    let all: Vec<_> =
        objects.current.iter().filter(|((of, _), _)| *of == kind).map(|(_, object)| object.clone()).collect();
    let first = query.get("continue").map_or(0, |token| token.parse().unwrap());
    let limit = query.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
    let page = objects.page.unwrap_or(usize::MAX).min(limit);
    let items: Vec<_> = all.iter().skip(first).take(page).collect();
    let mut metadata = json!({"resourceVersion": objects.version.to_string()});
    if first + items.len() < all.len() {
        metadata["continue"] = (first + items.len()).to_string().into();
    }
    let kind = format!("{api}List");
    Ok(Json(json!({"kind": kind, "apiVersion": "v1", "metadata": metadata, "items": items})).into_response())
}

async fn get_node(State(server): State<ApiServer>, Path(name): Path<String>) -> Answer {
    server.one("get nodes", "nodes", &name)
}

async fn get_daemon_set(State(server): State<ApiServer>, Path((_, name)): Path<(String, String)>) -> Answer {
    server.one("get daemonsets.apps", "daemonsets", &name)
}

/// A JSON patch of a test and a replacement of one field of the specification.
async fn patch_node(State(server): State<ApiServer>, Path(name): Path<String>, body: String) -> Answer {
    let patch: Value = serde_json::from_str(&body).unwrap();
    let found = server.admit("patch nodes")?.current.get(&("nodes", name)).cloned();
    let mut node = found.ok_or(NOT_FOUND)?;
    for step in patch.as_array().unwrap() {
        let place = step["path"].as_str().unwrap();
        match step["op"].as_str().unwrap() {
            "test" if node.pointer(place) != Some(&step["value"]) => {
                return Err(Refused(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", "the test failed"));
            }
            "test" => {}
            "replace" => *node.pointer_mut(place).unwrap() = step["value"].clone(),
            other => panic!("{other}"),
        }
    }
    server.apply("nodes", node.clone());
    Ok(Json(node).into_response())
}

async fn patch_pod(
    State(server): State<ApiServer>,
    Path((_, name)): Path<(String, String)>,
    body: String,
) -> Answer {
    let patch: Value = serde_json::from_str(&body).unwrap();
    let pod = {
        let mut objects = server.admit("patch pods")?;
        objects.patches.push((name.clone(), patch["metadata"]["annotations"].clone()));
        objects.current.get(&("pods", name)).cloned()
    };
    let mut pod = pod.ok_or(NOT_FOUND)?;
    assert_eq!(patch["metadata"]["uid"], pod["metadata"]["uid"]);
    let annotations = pod["metadata"]["annotations"].as_object_mut().unwrap();
    for (key, value) in patch["metadata"]["annotations"].as_object().unwrap() {
        annotations.insert(key.clone(), value.clone());
    }
    annotations.retain(|_, value| !value.is_null());
    server.apply("pods", pod.clone());
    Ok(Json(pod).into_response())
}

async fn version(State(server): State<ApiServer>) -> Answer {
    drop(server.admit("version")?);
    let version = json!({
        "major": "1", "minor": "34", "gitVersion": "v1.34.4", "gitCommit": "", "gitTreeState": "", "buildDate": "",
        "goVersion": "", "compiler": "", "platform": "linux/amd64",
    });
    Ok(Json(version).into_response())
}

async fn review(State(server): State<ApiServer>, Json(mut review): Json<Value>) -> Answer {
    let asked = &review["spec"]["resourceAttributes"];
    let text = |field: &str| asked[field].as_str().unwrap_or_default();
    let mut what = format!("{} {}", text("verb"), text("resource"));
    if !text("group").is_empty() {
        what = format!("{what}.{}", text("group"));
    }
    let allowed = !server.admit("create selfsubjectaccessreviews")?.forbidden.contains(&what);
    review["status"] = json!({"allowed": allowed});
    Ok(Json(review).into_response())
}
