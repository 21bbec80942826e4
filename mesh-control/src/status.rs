//! How the control server is: for health checks, for metrics and for people.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use mesh_xds::server::{ClientStatus, DiscoveryServer};
use serde::Serialize;
use tokio::sync::watch;

use crate::admission::{Admission, AdmissionStatus};
use crate::authority::{Authority, AuthorityStatus};
use crate::conditions::StatusWriter;
use crate::leader::LeaderStatus;
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
    /// The webhook that judges policies before the API server takes them, if it is served.
    pub admission: Option<AdmissionStatus>,
    /// Who writes to the Kubernetes API, if anybody is to.
    pub leader: Option<LeaderView>,
    /// Connected agents, by name.
    pub agents: Vec<ClientStatus>,
}

/// Who writes to the Kubernetes API, as it is shown.
#[derive(Debug, Serialize)]
pub struct LeaderView {
    /// The lease.
    #[serde(flatten)]
    pub status: LeaderStatus,
    /// Kinds whose objects' status is not written, and why.
    pub without_status: BTreeMap<&'static str, String>,
}

/// What has to do with the Kubernetes API alone.
#[derive(Debug, Default)]
pub(crate) struct InKubernetes {
    pub(crate) admission: Option<Arc<Admission>>,
    pub(crate) leader: Option<watch::Receiver<LeaderStatus>>,
    pub(crate) conditions: Option<StatusWriter>,
}

/// The status as it is kept.
#[derive(Debug)]
pub(crate) struct Status {
    ready: AtomicBool,
    content: ArcSwap<Content>,
    metrics: Arc<Metrics>,
    discovery: DiscoveryServer,
    authority: Option<Arc<Authority>>,
    kubernetes: InKubernetes,
}

impl Status {
    pub(crate) fn new(
        metrics: Arc<Metrics>,
        discovery: DiscoveryServer,
        authority: Option<Arc<Authority>>,
        kubernetes: InKubernetes,
    ) -> Self {
        let (ready, content) = (AtomicBool::new(false), ArcSwap::default());
        Self { ready, content, metrics, discovery, authority, kubernetes }
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
        let unready = self.content.load().report.unready();
        Some(unready.unwrap_or_else(|| "resources are being read, or the server is stopping".to_owned()))
    }

    /// What is served although it may be out of date, a line for each.
    pub(crate) fn stale(&self) -> Vec<String> {
        self.content.load().report.stale().collect()
    }

    pub(crate) fn metrics(&self) -> Result<String, std::fmt::Error> {
        if let Some(admission) = &self.kubernetes.admission {
            self.metrics.set_webhook_expiry(admission.certificate().not_after());
        }
        self.metrics.encode(&self.discovery.clients())
    }

    pub(crate) fn view(&self) -> StatusView {
        let mut agents = self.discovery.clients();
        agents.sort_by(|a, b| (&a.node, a.connected_at).cmp(&(&b.node, b.connected_at)));
        StatusView {
            ready: self.ready.load(Ordering::Acquire),
            content: Content::clone(&self.content.load()),
            authority: self.authority.as_ref().map(|authority| authority.status()),
            admission: self.kubernetes.admission.as_ref().map(|admission| admission.status()),
            leader: self.kubernetes.leader.as_ref().map(|leader| LeaderView {
                status: leader.borrow().clone(),
                without_status: self.kubernetes.conditions.iter().flat_map(StatusWriter::problems).collect(),
            }),
            agents,
        }
    }
}
