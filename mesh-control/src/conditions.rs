//! What became of a policy or an entry, written into its status as Istio's users know it.
//!
//! The leader watches each kind and keeps nothing of it: an object comes, is judged as everything else judges it, and is
//! written only if its status does not say so yet. What was written comes back as another event and is found right. A
//! kind that is not there is looked for again now and then; one whose objects cannot be written is begun again later,
//! all of it, so that nothing is forgotten.

mod condition;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use kube::api::{ApiResource, Patch, PatchParams};
use kube::core::{DynamicObject, GroupVersionKind};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt, discovery};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::admission::KINDS;
use crate::metrics::Metrics;
use crate::model::Kind;
use condition::Condition;

/// Time between two writes of one kind: ten thousand policies are written in minutes, and the API server does not notice.
const PAUSE: Duration = Duration::from_millis(20);
/// Attempts to write one object.
const ATTEMPTS: u32 = 4;
/// Time after the first failed attempt; each further one waits twice as long.
const RETRY: Duration = Duration::from_millis(500);
/// Time until a kind that is missing, or cannot be written, is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Who the API server says has written.
const FIELD_MANAGER: &str = "mesh-control-status";
/// HTTP statuses.
const FORBIDDEN: u16 = 403;
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;

/// Why the objects of a kind have no status from here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("the API server does not have the kind")]
    Missing,
    #[error("the kind has no status subresource: its definition is older than the mesh needs")]
    NoStatus,
    #[error("{0}: allow the service account of mesh-control to list, watch and patch the status of the kind")]
    Forbidden(String),
    #[error("{0}")]
    Failed(String),
}

/// Writes the status of all kinds.
#[derive(Clone)]
pub(crate) struct StatusWriter {
    client: Client,
    root_namespace: String,
    look_again: Duration,
    problems: Arc<Mutex<BTreeMap<Kind, Problem>>>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for StatusWriter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("StatusWriter").field("problems", &self.problems).finish_non_exhaustive()
    }
}

impl StatusWriter {
    pub(crate) fn new(client: Client, root_namespace: &str, metrics: Arc<Metrics>) -> Self {
        Self {
            client,
            root_namespace: root_namespace.to_owned(),
            look_again: LOOK_AGAIN,
            problems: Arc::default(),
            metrics,
        }
    }

    /// Why kinds have no status from here, if any have none.
    pub(crate) fn problems(&self) -> BTreeMap<&'static str, String> {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.iter().map(|(kind, problem)| (kind.name(), problem.to_string())).collect()
    }

    /// Writes for as long as it is polled.
    pub(crate) async fn keep(&self) {
        futures::future::join_all(KINDS.map(|kind| self.keep_kind(kind))).await;
    }

    async fn keep_kind(&self, kind: Kind) {
        loop {
            let Err(problem) = self.watch(kind).await;
            self.note(kind, Some(problem));
            sleep(self.look_again).await;
        }
    }

    async fn watch(&self, kind: Kind) -> Result<Infallible, Problem> {
        let resource = self.find(kind).await?;
        let objects = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        let mut events = pin!(watcher(objects, watcher::Config::default()).default_backoff());
        loop {
            match events.next().await {
                Some(Ok(Event::InitApply(object) | Event::Apply(object))) => {
                    self.settle(kind, &resource, &object).await?;
                }
                Some(Ok(Event::InitDone)) => self.note(kind, None),
                Some(Ok(Event::Init | Event::Delete(_))) => {}
                Some(Err(watcher::Error::InitialListFailed(error))) => match Problem::of(&error) {
                    problem @ (Problem::Missing | Problem::Forbidden(_)) => return Err(problem),
                    problem => debug!(%kind, %problem, "listing is tried again"),
                },
                Some(Err(error)) => debug!(%kind, %error, "watching is tried again"),
                None => return Err(Problem::Failed("the watch ended".to_owned())),
            }
        }
    }

    /// The newest version of the kind that the API server has.
    async fn find(&self, kind: Kind) -> Result<ApiResource, Problem> {
        let mut problem = Problem::Missing;
        for version in kind.versions() {
            let named = GroupVersionKind::gvk(kind.group(), version, kind.name());
            match discovery::pinned_kind(&self.client, &named).await {
                Ok((resource, capabilities)) => {
                    let writable = capabilities.subresources.iter().any(|(part, _)| part.plural == "status");
                    return if writable { Ok(resource) } else { Err(Problem::NoStatus) };
                }
                Err(error) => problem = Problem::of(&error),
            }
        }
        Err(problem)
    }

    /// Writes what the status does not say yet.
    async fn settle(
        &self,
        kind: Kind,
        resource: &ApiResource,
        object: &DynamicObject,
    ) -> Result<(), Problem> {
        let condition = Condition::of(kind, object, &self.root_namespace);
        let Some(patch) = condition.patch(object, SystemTime::now()) else { return Ok(()) };
        let namespace = object.namespace().unwrap_or_default();
        let objects = Api::<DynamicObject>::namespaced_with(self.client.clone(), &namespace, resource);
        let (parameters, patch) = (PatchParams::apply(FIELD_MANAGER), Patch::Merge(patch));
        let mut pause = RETRY;
        for attempt in 1.. {
            let written = objects.patch_status(&object.name_any(), &parameters, &patch).await;
            let outcome = match &written {
                Ok(_) => "written",
                // A newer version, or the end, of the object is on its way here.
                Err(kube::Error::Api(status)) if [CONFLICT, NOT_FOUND].contains(&status.code) => "outdated",
                Err(_) => "failed",
            };
            self.metrics.status_written(kind.name(), outcome);
            match written {
                Err(error) if outcome == "failed" => {
                    let problem = Problem::of(&error);
                    if attempt == ATTEMPTS || matches!(problem, Problem::Forbidden(_)) {
                        return Err(problem);
                    }
                    debug!(%kind, %namespace, name = object.name_any(), %problem, "writing a status is tried again");
                    sleep(pause).await;
                    pause *= 2;
                }
                _ => break,
            }
        }
        sleep(PAUSE).await;
        Ok(())
    }

    /// Notes a problem or its end, and says so when it is news.
    fn note(&self, kind: Kind, problem: Option<Problem>) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        if problems.get(&kind) == problem.as_ref() {
            return;
        }
        match &problem {
            Some(Problem::Missing) => info!(%kind, "the API server does not have the kind: nothing to write"),
            Some(problem) => warn!(%kind, %problem, "the status of the kind's objects is not written"),
            None => info!(%kind, "the status of the kind's objects is written"),
        }
        match problem {
            Some(problem) => problems.insert(kind, problem),
            None => problems.remove(&kind),
        };
    }
}

impl Problem {
    fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == NOT_FOUND => Self::Missing,
            kube::Error::Discovery(_) => Self::Missing,
            kube::Error::Api(status) if status.code == FORBIDDEN => Self::Forbidden(status.message.clone()),
            error => Self::Failed(error.to_string()),
        }
    }
}
