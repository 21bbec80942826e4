//! How the control server is: for health checks, for metrics and for people.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use mesh_xds::server::{ClientStatus, DiscoveryServer};
use serde::Serialize;

use crate::authority::{Authority, AuthorityStatus};
use crate::metrics::Metrics;
use crate::source::Report;
use crate::translate::Served;

/// What there is, updated with every batch.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Content {
    /// The source: what it reads and what is wrong with it.
    #[serde(flatten)]
    pub report: Arc<Report>,
    /// Number of resources read, by kind.
    pub resources: BTreeMap<&'static str, usize>,
    /// Number of resources served.
    pub served: Served,
    /// Version of the served resources.
    pub version: u64,
}

/// The status as it is shown.
#[derive(Debug, Serialize)]
pub struct StatusView {
    /// Whether agents are served.
    pub ready: bool,
    /// What there is.
    #[serde(flatten)]
    pub content: Content,
    /// The certificate authority, if there is one.
    pub authority: Option<AuthorityStatus>,
    /// Connected agents, by name.
    pub agents: Vec<ClientStatus>,
}

/// The status as it is kept.
#[derive(Debug)]
pub(crate) struct Status {
    ready: AtomicBool,
    content: ArcSwap<Content>,
    metrics: Arc<Metrics>,
    discovery: DiscoveryServer,
    authority: Option<Arc<Authority>>,
}

impl Status {
    pub(crate) fn new(
        metrics: Arc<Metrics>,
        discovery: DiscoveryServer,
        authority: Option<Arc<Authority>>,
    ) -> Self {
        Self { ready: AtomicBool::new(false), content: ArcSwap::default(), metrics, discovery, authority }
    }

    pub(crate) fn set_content(&self, content: Content) {
        self.content.store(Arc::new(content));
    }

    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// Why agents are not served, if they are not.
    pub(crate) fn not_ready(&self) -> Option<String> {
        if self.ready.load(Ordering::Acquire) {
            return None;
        }
        let unread = self.content.load().report.unread.first().cloned();
        Some(match unread {
            Some(directory) => format!("{} cannot be read yet", directory.display()),
            None => "the manifests are being read, or the server is stopping".to_owned(),
        })
    }

    pub(crate) fn metrics(&self) -> Result<String, std::fmt::Error> {
        self.metrics.encode(&self.discovery.clients())
    }

    pub(crate) fn view(&self) -> StatusView {
        let mut agents = self.discovery.clients();
        agents.sort_by(|a, b| (&a.node, a.connected_at).cmp(&(&b.node, b.connected_at)));
        StatusView {
            ready: self.ready.load(Ordering::Acquire),
            content: Content::clone(&self.content.load()),
            authority: self.authority.as_ref().map(|authority| authority.status()),
            agents,
        }
    }
}
