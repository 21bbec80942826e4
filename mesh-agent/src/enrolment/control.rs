//! Pods from the control server: the workloads that name this node.
//!
//! For nodes without Kubernetes, and for the first moments of an agent whose Kubernetes API is away.

use std::sync::Arc;

use tokio::sync::watch;

use super::DesiredPods;
use crate::config::{SharedSnapshot, Snapshot, TunnelProtocol, Workload};
use crate::pods::LocalPod;

/// Follows the snapshots of the mesh's configuration.
pub struct ControlSource {
    snapshot: Arc<SharedSnapshot>,
}

impl ControlSource {
    /// The source of a node that has nothing but its control server.
    pub fn new(snapshot: Arc<SharedSnapshot>) -> Self {
        Self { snapshot }
    }

    pub(super) async fn run(self, desired: watch::Sender<DesiredPods>) {
        let mut revisions = self.snapshot.subscribe();
        let mut complete = false;
        loop {
            revisions.borrow_and_update();
            let mut current = pods(&self.snapshot.load());
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
pub fn pods(snapshot: &Snapshot) -> DesiredPods {
    let node = snapshot.node();
    let here = |workload: &&Arc<Workload>| {
        // Clusters name their nodes as they like; two may have one of the same name.
        workload.node == node.name
            && workload.cluster == node.cluster
            && !workload.host_network
            && !workload.addresses.is_empty()
    };
    let mut pods: Vec<_> =
        snapshot.workloads().filter(here).map(|workload| Arc::new(pod(workload))).collect();
    pods.sort_by(|one, other| one.uid.cmp(&other.uid));
    DesiredPods { pods, complete: snapshot.workload_count() > 0, ..DesiredPods::default() }
}

fn pod(workload: &Workload) -> LocalPod {
    LocalPod {
        uid: Arc::clone(&workload.uid),
        name: Arc::clone(&workload.name),
        namespace: Arc::clone(&workload.namespace),
        service_account: Arc::clone(&workload.service_account),
        addresses: workload.addresses.clone(),
        device: None,
        enrolled: workload.tunnel == TunnelProtocol::Hbone,
        redirection: workload.redirection.clone(),
        failure_mode: workload.failure_mode,
    }
}

#[cfg(test)]
mod tests;
