//! One kind, listed once and then followed.
//!
//! ```text
//! place ──▶ list, page by page ──▶ watch ──▶ watch ...
//!   ▲           ▲                    │
//!   │           └── 410: too old ────┤
//!   └── 404, and until it is there ──┘      any other failure: the watch again, after a while
//! ```
//!
//! A watch that is silent for longer than the server's bookmarks are apart is begun anew: its connection may be dead
//! without anybody having been told.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_xds::backoff::Backoff;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::api::{Api, ApiError, Place, WatchEvent};
use super::{Event, Seen, WatchMetrics};
use crate::authority::clock::rfc3339;
use crate::model::{self, Kind, ObjectName, Resource, ResourceKey};
use crate::source::{Origin, Problem, WatchState};

/// Objects of a page, as in `kubectl` and client-go.
const PAGE: u32 = 500;
/// Fewer, where objects are large.
const SMALLEST_PAGE: u32 = 50;
/// A page is in memory as a whole.
const LARGE_PAGE_BYTES: usize = 4 << 20;
/// The server sends a bookmark about every minute.
const SILENCE: Duration = Duration::from_secs(150);
/// A watch is begun anew at latest then; the server would end it by itself.
const WATCH_SECONDS: u32 = 290;
/// One that ends earlier is no reason to begin the next at once.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);
/// First and longest wait after failures, at random up to it.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Between looks for a kind that is not there.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// A kind that was there must be missing for so long before its objects count as gone: an API server that has just
/// started may not know all of its kinds yet.
const MISSED_FOR: Duration = Duration::from_secs(10);

/// What keeps a kind up to date.
pub(super) struct Feed {
    kind: Kind,
    /// Namespace whose policies are for the whole mesh.
    root: Arc<str>,
    api: Api,
    events: mpsc::Sender<Event>,
    metrics: WatchMetrics,
    place: Option<Place>,
    /// Where the watch goes on; none before everything was listed.
    version: Option<String>,
    state: WatchState,
    missed_since: Option<Instant>,
    backoff: Backoff,
}

/// Why there is a pause.
enum Pause {
    /// Nobody listens any more.
    Closed,
    Api(ApiError),
    /// The API does not have the kind.
    Missing,
}

impl From<ApiError> for Pause {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl<T> From<mpsc::error::SendError<T>> for Pause {
    fn from(_: mpsc::error::SendError<T>) -> Self {
        Self::Closed
    }
}

impl Feed {
    pub(super) fn new(
        kind: Kind,
        root: Arc<str>,
        api: Api,
        events: mpsc::Sender<Event>,
        metrics: WatchMetrics,
    ) -> Self {
        metrics.set_up(kind, false);
        Self {
            kind,
            root,
            api,
            events,
            metrics,
            place: None,
            version: None,
            state: WatchState::Listing,
            missed_since: None,
            backoff: Backoff::new(BACKOFF, fastrand::Rng::new()),
        }
    }

    /// Follows the kind for ever, whatever fails.
    pub(super) async fn run(mut self) {
        loop {
            let Err(pause) = self.follow().await;
            let delay = match self.explain(pause).await {
                Ok(delay) => delay,
                Err(_) => return,
            };
            sleep(delay).await;
        }
    }

    /// What the pause means, and how long it is; an error if nobody listens.
    async fn explain(&mut self, pause: Pause) -> Result<Duration, Pause> {
        match pause {
            Pause::Closed => return Err(Pause::Closed),
            Pause::Missing => return self.missing().await,
            Pause::Api(ApiError::Expired) => self.version = None,
            Pause::Api(error) => {
                if matches!(error, ApiError::NotFound) {
                    // Another version may be served by now, or none.
                    (self.place, self.version) = (None, None);
                }
                self.broken(error.to_string()).await?;
            }
        }
        Ok(self.backoff.delay())
    }

    async fn follow(&mut self) -> Result<Infallible, Pause> {
        loop {
            let place = self.place().await?;
            if self.version.is_none() {
                self.version = Some(self.list(&place).await?);
            }
            self.watch(&place).await?;
        }
    }

    async fn place(&mut self) -> Result<Place, Pause> {
        if let Some(place) = &self.place {
            return Ok(place.clone());
        }
        let place = self.api.place(self.kind).await?.ok_or(Pause::Missing)?;
        self.missed_since = None;
        self.place = Some(place.clone());
        Ok(place)
    }

    /// Tells of all objects and returns the version of the list.
    async fn list(&mut self, place: &Place) -> Result<String, Pause> {
        self.metrics.lists(self.kind);
        self.events.send(Event::Listing(self.kind)).await?;
        let (mut limit, mut token) = (PAGE, None);
        loop {
            let page = self.api.page(place, limit, token.take()).await?;
            self.metrics.contact(self.kind);
            let listed = page.read()?;
            for object in page.objects(&listed) {
                self.tell(object?).await?;
            }
            if page.bytes() > LARGE_PAGE_BYTES {
                limit = (limit / 2).max(SMALLEST_PAGE);
            }
            token = listed.metadata.r#continue.filter(|token| !token.is_empty());
            if token.is_none() {
                self.events.send(Event::Listed(self.kind)).await?;
                return Ok(listed.metadata.resource_version);
            }
        }
    }

    /// Tells of changes until the watch ends in the course of things.
    async fn watch(&mut self, place: &Place) -> Result<(), Pause> {
        let Some(version) = self.version.clone() else {
            return Ok(());
        };
        let began = Instant::now();
        let mut events = self.api.watch(place, &version, WATCH_SECONDS).await?;
        self.metrics.contact(self.kind);
        self.is(WatchState::Watching { api_version: place.api_version.clone() }).await?;
        while let Ok(event) = timeout(SILENCE, events.next()).await {
            let Some(event) = event? else { break };
            self.metrics.contact(self.kind);
            self.backoff.reset();
            let (WatchEvent::Present(object) | WatchEvent::Gone(object) | WatchEvent::Bookmark(object)) =
                &event;
            let version = text(object, "/metadata/resourceVersion").map(str::to_owned);
            match event {
                WatchEvent::Present(object) => self.tell(object).await?,
                WatchEvent::Gone(object) => {
                    if let Some(key) = key(self.kind, &object) {
                        self.events.send(Event::Gone(key)).await?;
                    }
                }
                WatchEvent::Bookmark(_) => {}
            }
            self.version = version.or(self.version.take());
        }
        if began.elapsed() < SHORTEST_WATCH {
            sleep(self.backoff.delay()).await;
        } else {
            self.backoff.reset();
        }
        Ok(())
    }

    async fn tell(&self, object: Value) -> Result<(), Pause> {
        if let Some(seen) = read(self.kind, &self.root, object) {
            self.events.send(Event::Seen(Box::new(seen))).await?;
        }
        Ok(())
    }

    /// The API does not have the kind: there are none, once that is certain.
    async fn missing(&mut self) -> Result<Duration, Pause> {
        let since = *self.missed_since.get_or_insert_with(Instant::now);
        self.metrics.contact(self.kind);
        let known = !matches!(self.state, WatchState::Listing | WatchState::Missing);
        if known && since.elapsed() < MISSED_FOR {
            self.broken("the API does not have the kind any more".to_owned()).await?;
            return Ok(self.backoff.delay());
        }
        if self.state != WatchState::Missing {
            self.events.send(Event::Listing(self.kind)).await?;
            self.events.send(Event::Listed(self.kind)).await?;
            info!(
                kind = self.kind.name(),
                group = self.kind.group(),
                "the API does not have this kind: there are none until its CustomResourceDefinition is installed"
            );
            self.is(WatchState::Missing).await?;
        }
        Ok(LOOK_AGAIN.mul_f64(0.5 + fastrand::f64()))
    }

    async fn broken(&mut self, reason: String) -> Result<(), Pause> {
        let kind = self.kind.name();
        let since = match &self.state {
            WatchState::Broken { since, .. } => since.clone(),
            _ => {
                warn!(kind, reason, "the Kubernetes API cannot be asked; what is known stays");
                rfc3339(SystemTime::now())
            }
        };
        self.metrics.failures(self.kind);
        self.is(WatchState::Broken { since, reason }).await
    }

    /// Says how the watch is, if that is news.
    async fn is(&mut self, state: WatchState) -> Result<(), Pause> {
        if self.state == state {
            return Ok(());
        }
        // What the API does not have is not behind.
        let up = matches!(state, WatchState::Watching { .. } | WatchState::Missing);
        self.metrics.set_up(self.kind, up);
        if up && let WatchState::Broken { since, .. } = &self.state {
            info!(kind = self.kind.name(), since, "the Kubernetes API is followed again");
        }
        self.state = state.clone();
        self.events.send(Event::State(self.kind, state)).await?;
        Ok(())
    }
}

/// Reads an object; `None` if it has no name, which the API does not allow.
fn read(kind: Kind, root: &str, object: Value) -> Option<Seen> {
    let key = key(kind, &object)?;
    let generation = object.pointer("/metadata/generation").and_then(Value::as_i64);
    let policy = kind.is_policy().then(|| object.clone());
    let (resource, mut findings) = model::read(kind, object);
    findings.extend(resource.as_ref().and_then(|resource| resource.misplaced(root)));
    let stand_in = match (&resource, policy) {
        (None, Some(object)) => Resource::stand_in(&key, &object, &findings),
        _ => None,
    };
    let problem = |finding| Problem::new(Origin::Api { generation }, Some(&key), finding);
    let problems = findings.iter().map(problem).collect();
    Some(Seen { key, resource, stand_in, problems })
}

fn key(kind: Kind, object: &Value) -> Option<ResourceKey> {
    let name = text(object, "/metadata/name")?;
    let namespace = if kind.namespaced() { text(object, "/metadata/namespace")? } else { "" };
    Some(ResourceKey { kind, name: ObjectName::new(namespace, name) })
}

fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer).and_then(Value::as_str)
}
