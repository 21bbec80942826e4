//! The requests that the stand-in answers.

use std::collections::BTreeMap;
use std::convert::Infallible;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Query, State as Server};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use futures::stream;
use serde_json::{Value, json};

use super::state::{Answered, List, State, right, text};
use super::{ApiServer, Trouble};

/// What a path names.
#[derive(Debug, Clone, Default)]
struct Path {
    group: String,
    version: String,
    namespace: String,
    plural: String,
    name: String,
    subresource: String,
}

pub(super) fn router(server: ApiServer) -> Router {
    Router::new().fallback(answer).layer(DefaultBodyLimit::max(4 << 20)).with_state(server)
}

async fn answer(
    Server(server): Server<ApiServer>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    Query(query): Query<BTreeMap<String, String>>,
    body: Bytes,
) -> Response {
    if server.state().trouble == Trouble::Silent {
        return std::future::pending().await;
    }
    if server.state().away {
        return refused(503, "the server is away");
    }
    let Some(path) = Path::parse(uri.path()) else {
        return discovery(&server.state(), uri.path());
    };
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let watches = query.get("watch").is_some_and(|watch| watch == "true" || watch == "1");
    let verb = match method {
        Method::GET if watches => "watch",
        Method::GET if path.name.is_empty() => "list",
        Method::GET => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => return refused(405, "no such verb"),
    };
    let resource = if path.subresource.is_empty() {
        path.plural.clone()
    } else {
        format!("{}/{}", path.plural, path.subresource)
    };
    let patch = PatchKind::of(&headers);
    let response = match verb {
        _ if server.state().forbidden.contains(&right(verb, &resource, &path.group)) => {
            refused(403, "for the test")
        }
        _ if server.state().type_at(&path.group, &path.version, &path.plural).is_none() => {
            (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
        }
        "watch" => watch(&server, &path, &query),
        "list" => list(&mut server.state(), &path, &query),
        "get" => get(&server.state(), &path),
        _ => server.change(|state| write(state, verb, &path, &body, patch)),
    };
    let Path { group, version, namespace, name, .. } = path;
    let status = response.status().as_u16();
    let answered = Answered { verb, group, version, resource, namespace, name, query, body, status };
    server.state().answered.push(answered);
    response
}

impl Path {
    /// `None` for what is not about a resource.
    fn parse(path: &str) -> Option<Self> {
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let mut parsed = Self::default();
        match parts.first() {
            Some(&"api") => parts.insert(1, ""),
            Some(&"apis") => {}
            _ => return None,
        }
        let (head, rest) = parts.split_at_checked(3)?;
        let [_, group, version] = head else { return None };
        (parsed.group, parsed.version) = ((*group).to_owned(), (*version).to_owned());
        let rest = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => {
                parsed.namespace = (*namespace).to_owned();
                rest
            }
            rest => rest,
        };
        let mut rest = rest.iter().map(|part| (*part).to_owned());
        parsed.plural = rest.next()?;
        parsed.name = rest.next().unwrap_or_default();
        parsed.subresource = rest.next().unwrap_or_default();
        Some(parsed)
    }
}

fn discovery(state: &State, path: &str) -> Response {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let of_group = |group: &str| state.types.iter().filter(|known| known.group == group).collect::<Vec<_>>();
    let answer = match parts.as_slice() {
        ["version"] => json!({
            "major": "1", "minor": "34", "gitVersion": "v1.34.4", "gitCommit": "", "gitTreeState": "", "buildDate": "",
            "goVersion": "", "compiler": "", "platform": "linux/amd64",
        }),
        ["apis", group] if !of_group(group).is_empty() => {
            let mut versions: Vec<&String> =
                of_group(group).iter().flat_map(|known| &known.versions).collect();
            versions.dedup();
            let version = |version| json!({"groupVersion": format!("{group}/{version}"), "version": version});
            let versions: Vec<Value> = versions.into_iter().map(version).collect();
            json!({"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": versions})
        }
        ["apis", group, version] => {
            let served = of_group(group);
            let served = served.iter().filter(|known| known.versions.iter().any(|served| served == version));
            let resources: Vec<Value> = served
                .flat_map(|known| {
                    let status = known.status.then(|| format!("{}/status", known.plural));
                    let names = std::iter::once(known.plural.clone()).chain(status);
                    names.map(|name| {
                        json!({"name": name, "namespaced": known.namespaced, "kind": known.kind, "verbs": []})
                    })
                })
                .collect();
            if resources.is_empty() {
                return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
            }
            json!({
                "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{group}/{version}"),
                "resources": resources,
            })
        }
        _ => return (StatusCode::NOT_FOUND, "404 page not found\n").into_response(),
    };
    Json(answer).into_response()
}

fn list(state: &mut State, path: &Path, query: &BTreeMap<String, String>) -> Response {
    let collection = (path.group.clone(), path.plural.clone());
    let mut list = match query.get("continue").filter(|token| !token.is_empty()) {
        Some(token) => match state.lists.remove(token) {
            Some(list) => list,
            None => return refused(410, "The provided continue parameter is too old"),
        },
        None => List { version: state.version, rest: state.all(&collection, &path.namespace) },
    };
    list.rest.retain(|object| selected(object, query));
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
    let limit: usize = limit.unwrap_or(usize::MAX).min(state.page);
    let rest = list.rest.split_off(limit.min(list.rest.len()));
    let mut metadata = json!({"resourceVersion": list.version.to_string()});
    if !rest.is_empty() {
        metadata["remainingItemCount"] = rest.len().into();
        metadata["continue"] = state.keep(List { version: list.version, rest }).into();
    }
    let items: Vec<&Value> = list.rest.iter().map(AsRef::as_ref).collect();
    let kind =
        state.type_at(&path.group, &path.version, &path.plural).map(|known| format!("{}List", known.kind));
    Json(json!({"kind": kind, "apiVersion": api_version(path), "metadata": metadata, "items": items}))
        .into_response()
}

/// Of field selectors there are those for a pod's node and for a name.
fn selected(object: &Value, query: &BTreeMap<String, String>) -> bool {
    let selector = query.get("fieldSelector").and_then(|selector| selector.split_once('='));
    selector.is_none_or(|(field, wanted)| match field {
        "spec.nodeName" => object["spec"]["nodeName"] == wanted,
        "metadata.name" => object["metadata"]["name"] == wanted,
        _ => false,
    })
}

/// The events of a kind after a version, until the server ends all watches.
fn watch(server: &ApiServer, path: &Path, query: &BTreeMap<String, String>) -> Response {
    let version = query.get("resourceVersion").and_then(|version| version.parse::<u64>().ok()).unwrap_or(0);
    let (epoch, horizon) = {
        let state = server.state();
        (state.epoch, state.horizon)
    };
    if version < horizon {
        let gone = status(410, "too old resource version");
        return format!("{}\n", json!({"type": "ERROR", "object": gone})).into_response();
    }
    let collection = (path.group.clone(), path.plural.clone());
    let (namespace, query) = (path.namespace.clone(), query.clone());
    let kind =
        server.state().type_at(&path.group, &path.version, &path.plural).map(|known| known.kind.clone());
    let bookmarked = json!({"kind": kind, "apiVersion": api_version(path)});
    let next = move |state: &State, from: usize| {
        let log = state.log.get(from..).unwrap_or_default();
        let found = log.iter().enumerate().find(|(_, event)| {
            let ours = event.collection.as_ref().is_none_or(|of| *of == collection);
            let here = namespace.is_empty() || event.collection.is_none() || event.namespace == namespace;
            // A bookmark tells of the version that it was made at.
            let after = event.version > version || (event.collection.is_none() && event.version == version);
            ours && here && after && (event.collection.is_none() || selected(&event.object, &query))
        });
        found.map(|(skipped, event)| {
            let mut object = Value::clone(&event.object);
            if event.collection.is_none() {
                object["kind"] = bookmarked["kind"].clone();
                object["apiVersion"] = bookmarked["apiVersion"].clone();
            }
            (from + skipped + 1, format!("{}\n", json!({"type": event.change, "object": object})))
        })
    };
    let changes = server.shared.changes.subscribe();
    let start = server.state().log.iter().position(|event| event.version >= version).unwrap_or(usize::MAX);
    let start = start.min(server.state().log.len());
    let lines = stream::unfold(
        (server.clone(), changes, start, next),
        move |(server, mut changes, from, next)| async move {
            loop {
                let found = {
                    let state = server.state();
                    if state.epoch != epoch {
                        return None;
                    }
                    next(&state, from)
                };
                if let Some((after, line)) = found {
                    return Some((Ok::<_, Infallible>(line), (server, changes, after, next)));
                }
                changes.changed().await.ok()?;
            }
        },
    );
    Body::from_stream(lines).into_response()
}

fn get(state: &State, path: &Path) -> Response {
    let kind = state.type_at(&path.group, &path.version, &path.plural).map(|known| known.kind.clone());
    let object = kind.and_then(|kind| state.object(&kind, &path.namespace, &path.name));
    object.map_or_else(|| refused(404, "not found"), |object| Json(object).into_response())
}

/// How a patch says what is to change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PatchKind {
    /// RFC 7396.
    Merge,
    /// The same, but lists of objects with names are merged by them.
    Strategic,
    /// RFC 6902: all of its steps or none.
    Steps,
}

impl PatchKind {
    fn of(headers: &HeaderMap) -> Self {
        match headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes) {
            Some(b"application/json-patch+json") => Self::Steps,
            Some(b"application/strategic-merge-patch+json") => Self::Strategic,
            _ => Self::Merge,
        }
    }

    fn apply(self, mut object: Value, patch: &Value) -> Result<Value, String> {
        if self != Self::Steps {
            return Ok(merged(object, patch, self));
        }
        let steps: json_patch::Patch =
            serde_json::from_value(patch.clone()).map_err(|error| error.to_string())?;
        json_patch::patch(&mut object, &steps).map_err(|error| error.to_string())?;
        Ok(object)
    }
}

fn write(state: &mut State, verb: &str, path: &Path, body: &Value, patch: PatchKind) -> Response {
    if path.plural == "tokenreviews" {
        let mut review = body.clone();
        let token = text(&body["spec"], "token");
        review["status"] = state.reviews.get(&token).cloned().unwrap_or(json!({"authenticated": false}));
        return (StatusCode::CREATED, Json(review)).into_response();
    }
    if path.plural == "selfsubjectaccessreviews" {
        let mut review = body.clone();
        let asked = &review["spec"]["resourceAttributes"];
        let what = right(&text(asked, "verb"), &text(asked, "resource"), &text(asked, "group"));
        review["status"] = json!({"allowed": !state.forbidden.contains(&what)});
        return (StatusCode::CREATED, Json(review)).into_response();
    }
    if let Trouble::RefusesWrites(status) = state.trouble {
        return refused(status, "for the test");
    }
    if let Some(status) = state.write_errors.pop() {
        return refused(status, "for the test");
    }
    let kind = state.type_at(&path.group, &path.version, &path.plural).map(|known| known.kind.clone());
    let kind = kind.unwrap_or_default();
    let name = if path.name.is_empty() { text(&body["metadata"], "name") } else { path.name.clone() };
    let held = state.object(&kind, &path.namespace, &name);
    let mut object = match (verb, held) {
        ("create", Some(_)) => return refused(409, "already exists"),
        ("create", None) => body.clone(),
        (_, None) => return refused(404, "not found"),
        ("delete", Some(held)) => {
            return match state.delete(&kind, &path.namespace, &name) {
                Ok(()) => Json(held).into_response(),
                Err(error) => refused(500, &error),
            };
        }
        (_, Some(held)) => {
            let sent = &body["metadata"]["resourceVersion"];
            if !sent.is_null() && *sent != held["metadata"]["resourceVersion"] {
                return refused(
                    409,
                    "the object has been modified; please apply your changes to the latest version",
                );
            }
            let uid = &body["metadata"]["uid"];
            if !uid.is_null() && *uid != held["metadata"]["uid"] {
                return refused(409, "the UID in the precondition does not match the UID in record");
            }
            let changed = if verb == "patch" { patch.apply(held, body) } else { Ok(body.clone()) };
            match changed {
                Ok(object) => object,
                Err(error) => return refused(422, &error),
            }
        }
    };
    object["kind"] = kind.into();
    object["apiVersion"] = api_version(path).into();
    object["metadata"]["namespace"] = path.namespace.as_str().into();
    match state.apply(object) {
        Ok(object) if verb == "create" => (StatusCode::CREATED, Json(Value::clone(&object))).into_response(),
        Ok(object) => Json(Value::clone(&object)).into_response(),
        Err(error) => refused(422, &error),
    }
}

fn merged(mut object: Value, patch: &Value, kind: PatchKind) -> Value {
    match patch {
        Value::Object(changes) => {
            if !object.is_object() {
                object = json!({});
            }
            for (key, change) in changes {
                if change.is_null() {
                    if let Some(fields) = object.as_object_mut() {
                        fields.remove(key);
                    }
                } else {
                    object[key] = merged(object[key].take(), change, kind);
                }
            }
            object
        }
        Value::Array(changes) if kind == PatchKind::Strategic && has_names(changes) => {
            let mut items = object.as_array().cloned().unwrap_or_default();
            for change in changes {
                match items.iter_mut().find(|item| item["name"] == change["name"]) {
                    Some(item) => *item = merged(item.take(), change, kind),
                    None => items.push(change.clone()),
                }
            }
            Value::Array(items)
        }
        _ => patch.clone(),
    }
}

fn has_names(items: &[Value]) -> bool {
    items.iter().all(|item| item["name"].is_string())
}

fn api_version(path: &Path) -> String {
    if path.group.is_empty() { path.version.clone() } else { format!("{}/{}", path.group, path.version) }
}

fn refused(code: u16, message: &str) -> Response {
    let http = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (http, Json(status(code, message))).into_response()
}

fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        422 => "Invalid",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code,
    })
}
