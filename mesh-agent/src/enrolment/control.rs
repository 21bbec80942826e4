//! Pods from the control server: the workloads that name this node.
//!
//! For nodes without Kubernetes, and for the first moments of an agent whose Kubernetes API is away.

use std::sync::Arc;

use tokio::sync::watch;

use super::DesiredPods;
use crate::config::{SharedSnapshot, Snapshot, TunnelProtocol, Workload};
use crate::pods::{FailureMode, LocalPod};

/// Follows the snapshots of the mesh's configuration.
pub struct ControlSource {
    snapshot: Arc<SharedSnapshot>,
    default_mode: FailureMode,
}

impl ControlSource {
    /// The source of a node that has nothing but its control server.
    ///
    /// Pods of which the control server does not say what happens while no agent runs get `default_mode`.
    pub fn new(snapshot: Arc<SharedSnapshot>, default_mode: FailureMode) -> Self {
        Self { snapshot, default_mode }
    }

    pub(super) async fn run(self, desired: watch::Sender<DesiredPods>) {
        let mut revisions = self.snapshot.subscribe();
        let mut complete = false;
        loop {
            revisions.borrow_and_update();
            let mut current = pods(&self.snapshot.load(), self.default_mode);
            // Once the mesh was known, an empty one is news and not ignorance.
            complete |= current.complete;
            current.complete = complete;
            desired.send_if_modified(|last| {
                let news = *last != current;
                if news {
                    *last = current;
                }
                news
            });
            if revisions.changed().await.is_err() {
                return;
            }
        }
    }
}

/// The pods of the snapshot's own node, in the order of their uids. Complete if any workload of the mesh is known.
pub fn pods(snapshot: &Snapshot, default_mode: FailureMode) -> DesiredPods {
    let node = snapshot.node();
    let here = |workload: &&Arc<Workload>| {
        // Clusters name their nodes as they like; two may have one of the same name.
        workload.node == node.name
            && workload.cluster == node.cluster
            && !workload.host_network
            && !workload.addresses.is_empty()
    };
    let mut pods: Vec<_> =
        snapshot.workloads().filter(here).map(|workload| Arc::new(pod(workload, default_mode))).collect();
    pods.sort_by(|one, other| one.uid.cmp(&other.uid));
    DesiredPods { pods, complete: snapshot.workload_count() > 0, ..DesiredPods::default() }
}

fn pod(workload: &Workload, default_mode: FailureMode) -> LocalPod {
    LocalPod {
        uid: Arc::clone(&workload.uid),
        name: workload.name().into(),
        namespace: Arc::clone(&workload.namespace),
        kubernetes_uid: None,
        service_account: Arc::clone(&workload.service_account),
        addresses: workload.addresses.to_vec(),
        device: None,
        enrolled: workload.tunnel == TunnelProtocol::Hbone,
        redirection: workload.redirection.clone(),
        failure_mode: workload.failure_mode.unwrap_or(default_mode),
    }
}

#[cfg(test)]
mod tests;
