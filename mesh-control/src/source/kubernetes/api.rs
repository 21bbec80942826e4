//! Requests to the API server: which versions there are, pages of lists, watches.

use std::error::Error;
use std::pin::Pin;
use std::time::Duration;

use futures::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
use kube::Client;
use kube::api::{ListParams, WatchParams};
use kube::core::Request;
use serde::Deserialize;
use serde::de::DeserializeSeed;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::keep;
use crate::model::Kind;

/// The API server begins to answer in that time, or is away.
const PATIENCE: Duration = Duration::from_secs(30);
/// A page, even over a slow line.
const PAGE_PATIENCE: Duration = Duration::from_secs(60);
/// Larger answers are refused: reading one must not exhaust the memory.
const MAX_PAGE_BYTES: u64 = 256 << 20;
/// Objects have at most 1.5 MiB where they are stored; some grow a little on their way here.
const MAX_EVENT_BYTES: u64 = 16 << 20;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// The version to go on from is too old: everything has to be listed anew.
    #[error("the API server has forgotten the version to go on from")]
    Expired,
    /// There is nothing at that path.
    #[error("the API server does not know the path")]
    NotFound,
    /// Everything else.
    #[error("{0}")]
    Failed(String),
}

/// The API server.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
}

/// Where the objects of a kind are.
#[derive(Debug, Clone)]
pub(super) struct Place {
    kind: Kind,
    /// Group and version, such as `v1` or `security.istio.io/v1`.
    pub(super) api_version: String,
}

impl Place {
    fn path(&self) -> String {
        let root = if self.kind.group().is_empty() { "api" } else { "apis" };
        format!("/{root}/{}/{}", self.api_version, self.kind.plural())
    }

    /// Whether names, labels and annotations are all that is used: asking for no more spares nodes' lists of images.
    fn metadata_only(&self) -> bool {
        matches!(self.kind, Kind::Namespace | Kind::Node)
    }
}

impl Api {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Where the kind is served, in the best version that is understood; `None` if it is not.
    pub(super) async fn place(&self, kind: Kind) -> Result<Option<Place>, ApiError> {
        let group = kind.group();
        if !kind.is_custom() {
            let api_version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
            return Ok(Some(Place { kind, api_version }));
        }
        let served: Group = match self.discover(&format!("/apis/{group}")).await {
            Err(ApiError::NotFound) => return Ok(None),
            served => served?,
        };
        for version in kind.versions() {
            if !served.versions.iter().any(|served| served.version == *version) {
                continue;
            }
            let api_version = format!("{group}/{version}");
            let served: GroupVersion = match self.discover(&format!("/apis/{api_version}")).await {
                Err(ApiError::NotFound) => continue,
                served => served?,
            };
            if served.resources.iter().any(|resource| resource.name == kind.plural()) {
                return Ok(Some(Place { kind, api_version }));
            }
        }
        Ok(None)
    }

    async fn discover<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<T, ApiError> {
        let request = http_get(path)?;
        let text = patiently(PATIENCE, self.client.request_text(request)).await?;
        serde_json::from_str(&text).map_err(|error| ApiError::Failed(format!("{path}: {error}")))
    }

    /// A page of a list; the first one, or the one that a former page told of.
    pub(super) async fn page(
        &self,
        place: &Place,
        limit: u32,
        token: Option<String>,
    ) -> Result<Page, ApiError> {
        let parameters = ListParams { limit: Some(limit), continue_token: token, ..ListParams::default() };
        let request = Request::new(place.path());
        let request = if place.metadata_only() {
            request.list_metadata(&parameters)
        } else {
            request.list(&parameters)
        };
        let request = request.map_err(|error| ApiError::Failed(error.to_string()))?;
        let read = async {
            let mut body = Vec::new();
            let answer = Box::pin(self.client.request_stream(request).await?);
            answer.take(MAX_PAGE_BYTES + 1).read_to_end(&mut body).await.map_err(kube::Error::ReadEvents)?;
            Ok(body)
        };
        let body = patiently(PAGE_PATIENCE, read).await?;
        if body.len() as u64 > MAX_PAGE_BYTES {
            let reason = format!("{limit} objects take more than {} MiB", MAX_PAGE_BYTES >> 20);
            return Err(ApiError::Failed(reason));
        }
        Ok(Page { kind: place.kind, body })
    }

    /// What changes after `version`, for at most so many seconds.
    pub(super) async fn watch(&self, place: &Place, version: &str, seconds: u32) -> Result<Events, ApiError> {
        let parameters = WatchParams { timeout: Some(seconds), ..WatchParams::default() };
        let request = Request::new(place.path());
        let request = if place.metadata_only() {
            request.watch_metadata(&parameters, version)
        } else {
            request.watch(&parameters, version)
        };
        let request = request.map_err(|error| ApiError::Failed(error.to_string()))?;
        let answer = patiently(PATIENCE, self.client.request_stream(request)).await?;
        Ok(Events { kind: place.kind, answer: Box::pin(answer), line: Vec::new() })
    }
}

/// Text of a page.
pub(super) struct Page {
    kind: Kind,
    body: Vec<u8>,
}

/// A page as it is written.
#[derive(Deserialize)]
pub(super) struct Listed<'a> {
    pub(super) metadata: ListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

/// What a page says of its list.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMeta {
    /// The version of the list, from which a watch goes on.
    pub(super) resource_version: String,
    /// Names the next page; absent or empty on the last one.
    #[serde(default)]
    pub(super) r#continue: Option<String>,
}

impl Page {
    pub(super) fn bytes(&self) -> usize {
        self.body.len()
    }

    pub(super) fn read(&self) -> Result<Listed<'_>, ApiError> {
        serde_json::from_slice(&self.body)
            .map_err(|error| ApiError::Failed(format!("a list of {} cannot be read: {error}", self.kind)))
    }

    /// The objects, each built only when it is its turn.
    pub(super) fn objects(&self, listed: &Listed<'_>) -> impl Iterator<Item = Result<Value, ApiError>> {
        listed.items.iter().flatten().map(|item| object(self.kind, item.get()))
    }
}

/// What a watch tells.
pub(super) enum WatchEvent {
    /// An object is there, new or changed.
    Present(Value),
    /// An object is gone; this is how it was.
    Gone(Value),
    /// Nothing happened up to a version.
    Bookmark(Value),
}

/// The events of a watch.
pub(super) struct Events {
    kind: Kind,
    answer: Pin<Box<dyn AsyncBufRead + Send>>,
    line: Vec<u8>,
}

/// An event as it is written.
#[derive(Deserialize)]
struct Line<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// As much of an error as tells what to do.
#[derive(Deserialize)]
struct Failure {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

impl Events {
    /// The next one; `None` when the server has ended the watch, which it does in the course of things.
    pub(super) async fn next(&mut self) -> Result<Option<WatchEvent>, ApiError> {
        self.line.clear();
        let read = (&mut self.answer).take(MAX_EVENT_BYTES).read_until(b'\n', &mut self.line).await;
        read.map_err(|error| ApiError::Failed(chain(&error)))?;
        if self.line.is_empty() {
            return Ok(None);
        }
        if self.line.last() != Some(&b'\n') {
            let limit = MAX_EVENT_BYTES >> 20;
            let reason = format!("the watch was cut off, or told of an object of more than {limit} MiB");
            return Err(ApiError::Failed(reason));
        }
        let unreadable = |error| ApiError::Failed(format!("an event of the watch cannot be read: {error}"));
        let line: Line<'_> = serde_json::from_slice(&self.line).map_err(unreadable)?;
        let text = line.object.get();
        Ok(Some(match line.r#type {
            "ADDED" | "MODIFIED" => WatchEvent::Present(object(self.kind, text)?),
            "DELETED" => WatchEvent::Gone(object(self.kind, text)?),
            "BOOKMARK" => WatchEvent::Bookmark(object(self.kind, text)?),
            _ => {
                let failure: Failure = serde_json::from_str(text).map_err(unreadable)?;
                return Err(by_code(failure.code, failure.message));
            }
        }))
    }
}

fn object(kind: Kind, text: &str) -> Result<Value, ApiError> {
    keep::of_kind(kind)
        .deserialize(&mut serde_json::Deserializer::from_str(text))
        .map_err(|error| ApiError::Failed(format!("an object of kind {kind} cannot be read: {error}")))
}

#[derive(Deserialize)]
struct Group {
    #[serde(default)]
    versions: Vec<Version>,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

#[derive(Deserialize)]
struct GroupVersion {
    #[serde(default)]
    resources: Vec<NamedResource>,
}

#[derive(Deserialize)]
struct NamedResource {
    name: String,
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>, ApiError> {
    http::Request::get(path).body(Vec::new()).map_err(|error| ApiError::Failed(error.to_string()))
}

async fn patiently<T>(
    patience: Duration,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ApiError> {
    match timeout(patience, request).await {
        Ok(answer) => answer.map_err(|error| match error {
            kube::Error::Api(status) => by_code(status.code, status.message),
            error => ApiError::Failed(chain(&error)),
        }),
        Err(_) => Err(ApiError::Failed(format!("the API server did not answer in {patience:?}"))),
    }
}

fn by_code(code: u16, message: String) -> ApiError {
    match code {
        404 => ApiError::NotFound,
        410 => ApiError::Expired,
        401 | 403 => ApiError::Failed(format!(
            "{message}: allow the service account of mesh-control to list and watch it"
        )),
        _ => ApiError::Failed(format!("{message} ({code})")),
    }
}

/// An error with what is behind it: the outermost alone says little ("client error").
fn chain(error: &dyn Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        texts.push(error.to_string());
        cause = error.source();
    }
    // Many say what their cause says.
    texts.dedup_by(|cause, outer| outer.contains(cause.as_str()));
    texts.join(": ")
}
