//! Whether a connection to a pod of this node may be. Only the agent of the server's side asks; the client's agent
//! vouches for who the client is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_xds::identity::Identity;
use thiserror::Error;
use tokio::time::timeout;

use super::guards::Guard;
use super::worker::Worker;
use crate::config::{Snapshot, Workload};
use crate::pods::LocalPod;
use crate::policy::{Allowed, Denied, Request};
use crate::telemetry::{Incident, ResponseFlag};

/// Who wants what of a local pod: all that policy looks at.
#[derive(Debug)]
pub(super) struct Subject {
    /// Who the client has proved to be.
    pub(super) source: Option<Arc<Identity>>,
    /// The client's address.
    pub(super) source_ip: IpAddr,
    /// The pod's address and port.
    pub(super) destination: SocketAddr,
    pub(super) pod: Arc<LocalPod>,
}

/// A connection that may not be.
#[derive(Debug, Error)]
pub(super) enum NotAllowed {
    /// A policy says so.
    #[error("{0}")]
    Denied(Denied),
    /// Which policies there are for the pod is not known.
    #[error("the control server does not know {0} yet: which policies it has cannot be told")]
    UnknownWorkload(Arc<str>),
}

impl NotAllowed {
    /// The kind of refusal, for reports.
    pub(super) fn flag(&self) -> ResponseFlag {
        match self {
            Self::Denied(denied) => denied.flag(),
            Self::UnknownWorkload(_) => ResponseFlag::Denied,
        }
    }
}

impl Subject {
    /// Asks policy. Nothing where the control server does not know the pod.
    pub(super) fn check(&self, snapshot: &Snapshot) -> Option<Result<Allowed, Denied>> {
        let workload = workload(snapshot, &self.pod, self.destination.ip())?;
        Some(snapshot.authorize(&Request {
            source: self.source.as_deref(),
            source_ip: self.source_ip,
            destination: self.destination,
            workload,
        }))
    }
}

/// The pod as the control server has it.
fn workload<'a>(snapshot: &'a Snapshot, pod: &LocalPod, address: IpAddr) -> Option<&'a Arc<Workload>> {
    snapshot.workload(&pod.uid).or_else(|| {
        let same_pod =
            |known: &&Arc<Workload>| *known.name() == *pod.name && known.namespace == pod.namespace;
        snapshot.workload_by_address(address).filter(same_pod)
    })
}

/// Asks policy for a connection and has it watched from then on. Waits for a pod that the control server does not
/// know yet: the node may have heard of it first.
pub(super) async fn authorize(worker: &Worker, subject: Subject) -> Result<Guard, NotAllowed> {
    let mut snapshots = worker.snapshot.subscribe();
    let decided = async {
        loop {
            if let Some(outcome) = subject.check(&worker.snapshot.load()) {
                return Some(outcome);
            }
            snapshots.changed().await.ok()?;
        }
    };
    match timeout(worker.settings.connect_timeout, decided).await {
        Ok(Some(Ok(allowed))) => {
            if let Some(denied) = allowed.would_be_denied() {
                tracing::debug!(%denied, "would be denied by a policy on trial");
                worker.observer.incident(Incident::WouldBeDenied);
            }
            Ok(worker.guards.register(subject))
        }
        Ok(Some(Err(denied))) => Err(NotAllowed::Denied(denied)),
        Ok(None) | Err(_) => Err(NotAllowed::UnknownWorkload(Arc::clone(&subject.pod.uid))),
    }
}
