//! As much of the Kubernetes API as writers take: objects of any kind with optimistic concurrency, lists and watches of
//! them, merge patches, discovery. Without sockets, so that a test may stop the clock.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use futures::stream;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::watch;

/// A running server.
#[derive(Clone)]
pub(crate) struct ApiServer {
    objects: Arc<Mutex<Objects>>,
    changed: Arc<watch::Sender<usize>>,
}

#[derive(Default)]
struct Objects {
    /// By path.
    objects: BTreeMap<String, Value>,
    /// What happened: the path, the type of the event and the object.
    events: Vec<(String, &'static str, Value)>,
    /// What discovery says, by `group/version`.
    groups: BTreeMap<String, Value>,
    /// Method and path of every write, in order.
    writes: Vec<String>,
    trouble: Trouble,
}

/// What the server answers instead of what it should.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Trouble {
    #[default]
    None,
    /// This status to every write.
    Refuses(u16),
    /// Nothing, to anything.
    Away,
}

impl ApiServer {
    pub(crate) fn new() -> Self {
        Self { objects: Arc::default(), changed: Arc::default() }
    }

    pub(crate) fn client(&self) -> Client {
        let router = Router::new().fallback(answer).with_state(self.clone());
        Client::new(router, "default")
    }

    /// Lets discovery know a kind; `parts` are its subresources.
    pub(crate) fn define(&self, group_version: &str, plural: &str, kind: &str, parts: &[&str]) {
        let mut objects = self.objects.lock().unwrap();
        let group = objects.groups.entry(group_version.to_owned()).or_insert_with(|| {
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": []})
        });
        let names =
            std::iter::once(plural.to_owned()).chain(parts.iter().map(|part| format!("{plural}/{part}")));
        for name in names {
            let resource = json!({
                "name": name, "singularName": "", "namespaced": true, "kind": kind, "verbs": ["get", "list", "watch"],
            });
            group["resources"].as_array_mut().unwrap().push(resource);
        }
    }

    pub(crate) fn trouble(&self, trouble: Trouble) {
        self.objects.lock().unwrap().trouble = trouble;
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.objects.lock().unwrap().objects.get(path).cloned()
    }

    /// Stores an object as somebody else would.
    pub(crate) fn put(&self, path: &str, object: Value) -> Value {
        let mut objects = self.objects.lock().unwrap();
        let event = if objects.objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        self.store(&mut objects, path, event, object)
    }

    pub(crate) fn writes(&self) -> Vec<String> {
        self.objects.lock().unwrap().writes.clone()
    }

    fn store(&self, objects: &mut Objects, path: &str, event: &'static str, mut object: Value) -> Value {
        let version = objects.events.len() + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        objects.objects.insert(path.to_owned(), object.clone());
        objects.events.push((path.to_owned(), event, object.clone()));
        self.changed.send_replace(version);
        object
    }

    fn write(&self, method: &Method, path: &str, body: &[u8]) -> Response {
        let mut objects = self.objects.lock().unwrap();
        objects.writes.push(format!("{method} {path}"));
        if let Trouble::Refuses(code) = objects.trouble {
            return refused(code);
        }
        let sent: Value = serde_json::from_slice(body).unwrap();
        if method == Method::POST {
            let path = format!("{path}/{}", sent["metadata"]["name"].as_str().unwrap());
            if objects.objects.contains_key(&path) {
                return refused(409);
            }
            return Json(self.store(&mut objects, &path, "ADDED", sent)).into_response();
        }
        let path = path.strip_suffix("/status").unwrap_or(path);
        let Some(held) = objects.objects.get(path) else { return refused(404) };
        let version = sent["metadata"].get("resourceVersion");
        if version.is_some() && version != held["metadata"].get("resourceVersion") {
            return refused(409);
        }
        let object = if method == Method::PUT { sent } else { merged(held.clone(), sent) };
        Json(self.store(&mut objects, path, "MODIFIED", object)).into_response()
    }

    fn read(&self, path: &str, query: &BTreeMap<String, String>) -> Response {
        let objects = self.objects.lock().unwrap();
        if let Some(group) = path.strip_prefix("/apis/").and_then(|version| objects.groups.get(version)) {
            return Json(group).into_response();
        }
        if let Some(object) = objects.objects.get(path) {
            return Json(object).into_response();
        }
        // Collections end with the plural, objects with a name of the tests' choosing.
        if !path.ends_with('s') {
            return refused(404);
        }
        if query.get("watch").is_some_and(|watch| watch == "true") {
            let after = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
            return self.watch(path.to_owned(), query.clone(), after);
        }
        let items: Vec<_> = objects
            .objects
            .iter()
            .filter(|(of, object)| selected(path, query, of, object))
            .map(|(_, object)| object.clone())
            .collect();
        let version = objects.events.len().to_string();
        let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items});
        Json(list).into_response()
    }

    fn watch(&self, path: String, query: BTreeMap<String, String>, after: usize) -> Response {
        let server = self.clone();
        let lines = stream::unfold((after, self.changed.subscribe()), move |(seen, mut changed)| {
            let (server, path, query) = (server.clone(), path.clone(), query.clone());
            async move {
                changed.wait_for(|version| *version > seen).await.ok()?;
                let objects = server.objects.lock().unwrap();
                let mut lines = String::new();
                for (of, event, object) in &objects.events[seen..] {
                    if selected(&path, &query, of, object) {
                        lines.push_str(&format!("{}\n", json!({"type": event, "object": object})));
                    }
                }
                Some((Ok::<_, Infallible>(lines), (objects.events.len(), changed)))
            }
        });
        Body::from_stream(lines).into_response()
    }
}

async fn answer(
    State(server): State<ApiServer>,
    method: Method,
    uri: Uri,
    Query(query): Query<BTreeMap<String, String>>,
    body: Bytes,
) -> Response {
    let trouble = server.objects.lock().unwrap().trouble;
    match trouble {
        Trouble::Away => std::future::pending().await,
        _ if method == Method::GET => server.read(uri.path(), &query),
        _ => server.write(&method, uri.path(), &body),
    }
}

/// Whether the object at `of` is in the collection at `path`, of one namespace or of all.
fn selected(path: &str, query: &BTreeMap<String, String>, of: &str, object: &Value) -> bool {
    let (collection, name) = of.rsplit_once('/').unwrap();
    let (group, plural) = path.rsplit_once('/').unwrap();
    let in_it = collection == path
        || collection.starts_with(&format!("{group}/namespaces/"))
            && collection.ends_with(&format!("/{plural}"));
    let selector = query.get("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name="));
    in_it && selector.is_none_or(|wanted| wanted == name) && object["metadata"]["name"] == name
}

/// A merge patch; lists of objects with names are merged by them, as in a strategic one.
fn merged(mut held: Value, sent: Value) -> Value {
    match (&mut held, sent) {
        (Value::Object(fields), Value::Object(sent)) => {
            for (name, value) in sent {
                let before = fields.remove(&name).unwrap_or_default();
                fields.insert(name, merged(before, value));
            }
            held
        }
        (Value::Array(items), Value::Array(sent)) if sent.iter().all(|item| item["name"].is_string()) => {
            for value in sent {
                let item = items.iter_mut().find(|item| item["name"] == value["name"]).unwrap();
                *item = merged(item.take(), value);
            }
            held
        }
        (_, sent) => sent,
    }
}

fn refused(code: u16) -> Response {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason, "reason": reason,
        "code": code,
    });
    (StatusCode::from_u16(code).unwrap(), Json(status)).into_response()
}
