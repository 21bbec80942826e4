//! The Kubernetes API, watched.
//!
//! ```text
//! Feed (one per kind): find the version, list in pages, watch ──Event──▶ Collector ──Batch──▶
//! ```
//!
//! Every kind has a [`feed`], a task that lists it once and then follows it; what it reads goes through [`keep`], which
//! drops what the mesh does not use while the JSON is parsed, and through [`model::read`](crate::model::read). One
//! [`collector`] holds what is known, compares what comes with it, and sends on what differs. So a list after a lost
//! watch, or a kubelet that renews the status of a pod, is no change.
//!
//! What always holds:
//! - The first batch with changes comes once every kind was listed as a whole. A kind that the API does not have counts
//!   as empty; it is looked for again and again, and needs no restart once it is there.
//! - While the API is away, what is known stays, and the report says for which kinds and since when.
//! - A resource that cannot be used leaves its last good version in place, or, for a policy without one, what stands in
//!   for it and denies.
//!
//! The lists and watches are our own and not those of `kube::runtime`, which does not tell of bookmarks and of a watch that
//! works again until something changes: the report could not say that the API is back. It also keeps whole objects.

mod api;
mod collector;
mod feed;
mod held;
mod keep;
mod metrics;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures::future::join_all;
use kube::Client;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::report::Problem;
use super::{BatchSender, WatchState};
use crate::model::{Kind, Resource, ResourceKey};
use api::Api;
use collector::Collector;
use feed::Feed;
pub(crate) use metrics::WatchMetrics;

/// Objects on their way to the collector. A feed that is faster waits, and with it the API server.
const EVENT_QUEUE: usize = 1024;

/// What a feed tells.
#[derive(Debug)]
enum Event {
    /// All objects of a kind follow, up to [`Event::Listed`].
    Listing(Kind),
    /// An object is there, as it is now.
    Seen(Box<Seen>),
    /// An object is gone.
    Gone(ResourceKey),
    /// What did not follow since [`Event::Listing`] is gone.
    Listed(Kind),
    /// How the watch is.
    State(Kind, WatchState),
}

/// An object that was read.
#[derive(Debug)]
struct Seen {
    key: ResourceKey,
    /// None if it cannot be used.
    resource: Option<Resource>,
    /// What is served in its place then, unless there is a good version from before.
    stand_in: Option<Resource>,
    problems: Vec<Problem>,
}

/// Watches the API until `stop`, or until nobody listens any more. Policies of `root_namespace` are for the whole mesh.
pub(crate) async fn watch(
    client: Client,
    root_namespace: &str,
    batches: BatchSender,
    metrics: WatchMetrics,
    stop: CancellationToken,
) {
    let (sender, events) = mpsc::channel(EVENT_QUEUE);
    let api = Api::new(client);
    let root: Arc<str> = root_namespace.into();
    let feeds = Kind::ALL.map(|kind| {
        let feed = Feed::new(kind, Arc::clone(&root), api.clone(), sender.clone(), metrics.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(feed.run()))
    });
    drop(sender);
    stop.run_until_cancelled(Collector::new(batches).run(events)).await;
    for ended in join_all(feeds).await {
        if let Err(error) = ended {
            tracing::error!(%error, "the watch of a kind failed");
        }
    }
}
