//! Marks pods whose traffic is steered, so that people and other programs can see it in the API. Control servers tell by it who takes
//! tunnels, so a pod that is leaving is unmarked while its traffic is still steered.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::runtime::reflector::Store;
use kube::{Api, Client, ResourceExt};
use mesh_xds::annotation::{REDIRECTION, REDIRECTION_ENABLED};
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tracing::warn;

use super::translate::uid;
use crate::enrolment::{DesiredPods, PodStatuses};

/// Wait before a refused annotation is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Whether a pod is marked as one whose traffic is steered.
pub(super) fn is_marked(pod: &Pod) -> bool {
    pod.annotations().get(REDIRECTION).is_some_and(|value| value == REDIRECTION_ENABLED)
}

/// Keeps the annotations of the node's pods in step with their status.
pub(super) struct Marker {
    client: Client,
    cluster: Arc<str>,
    pods: Store<Pod>,
    statuses: watch::Receiver<PodStatuses>,
    desired: watch::Receiver<DesiredPods>,
    changed: Arc<Notify>,
    /// Version of the pod that was last annotated, by its uid: until a later one is seen, the watch is behind.
    annotated: HashMap<String, Option<String>>,
}

impl Marker {
    pub(super) fn new(
        client: Client,
        cluster: Arc<str>,
        pods: Store<Pod>,
        statuses: watch::Receiver<PodStatuses>,
        desired: watch::Receiver<DesiredPods>,
        changed: Arc<Notify>,
    ) -> Self {
        Self { client, cluster, pods, statuses, desired, changed, annotated: HashMap::new() }
    }

    pub(super) async fn run(mut self) {
        loop {
            let statuses = self.statuses.borrow_and_update().clone();
            let settled = self.annotate(&statuses).await;
            tokio::select! {
                Ok(()) = self.statuses.changed() => {}
                () = self.changed.notified() => {}
                () = sleep(RETRY), if !settled => {}
            }
        }
    }

    /// Annotates every pod that is not as it should be; says whether none was refused.
    async fn annotate(&mut self, statuses: &PodStatuses) -> bool {
        let pods = self.pods.state();
        let staying = self.staying();
        self.annotated.retain(|uid, _| pods.iter().any(|pod| pod.metadata.uid.as_ref() == Some(uid)));
        let mut settled = true;
        for pod in pods {
            let Some(status) = statuses.get(&uid(&self.cluster, &pod)) else {
                continue;
            };
            let steered = status.steered_since.is_some() && staying.contains(&status.pod.uid);
            let marked = is_marked(&pod);
            let uid = pod.uid().unwrap_or_default();
            if steered == marked || self.annotated.get(&uid) == Some(&pod.resource_version()) {
                continue;
            }
            match self.patch(&pod, steered).await {
                Ok(()) => {
                    self.annotated.insert(uid, pod.resource_version());
                }
                Err(error) => {
                    warn!(pod = %status.pod.uid, %error, "pod cannot be annotated");
                    settled = false;
                }
            }
        }
        settled
    }

    /// The pods that are in the mesh to stay. One that was leaving may be steered still, as far as its status says.
    fn staying(&self) -> HashSet<Arc<str>> {
        let desired = self.desired.borrow();
        let staying = desired.pods.iter().filter(|pod| pod.enrolled && !desired.leaving.contains(&pod.uid));
        staying.map(|pod| Arc::clone(&pod.uid)).collect()
    }

    /// Names the uid, so that a successor of the same name is left alone.
    async fn patch(&self, pod: &Pod, steered: bool) -> kube::Result<()> {
        let namespace = pod.namespace().unwrap_or_default();
        let value = steered.then_some(REDIRECTION_ENABLED);
        let patch = json!({"metadata": {"uid": pod.metadata.uid, "annotations": {REDIRECTION: value}}});
        let pods = Api::<Pod>::namespaced(self.client.clone(), &namespace);
        match pods.patch_metadata(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            // Gone meanwhile, or replaced: nothing is left to be marked.
            Err(kube::Error::Api(refusal)) if matches!(refusal.code, 404 | 409) => Ok(()),
            done => done.map(drop),
        }
    }
}
