//! The start-up taint: pods wait for the agent on a node that is new.
//!
//! Whoever makes nodes gives them a taint (`kubelet --register-with-taints=mesh-agent/not-ready=:NoSchedule`, or the node pool's
//! template), and the scheduler sends no pod there that does not tolerate it. The agent takes it away once it serves, and
//! again should somebody put it back meanwhile. It never puts it there itself: an agent that restarts leaves its node open,
//! as the pods that run there have their failure mode.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::Cluster;

/// Wait before a node that could not be patched is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Removes the start-up taint of this node for as long as it serves, for ever; not at all where none is used.
pub async fn remove_when_serving(cluster: Cluster, mut serving: watch::Receiver<bool>) {
    let Some(key) = cluster.startup_taint.clone() else { return };
    if serving.wait_for(|serving| *serving).await.is_err() {
        return;
    }
    let nodes = Api::<Node>::all(cluster.client.clone());
    let this_node = watcher::Config::default().fields(&format!("metadata.name={}", cluster.node));
    let mut events = watch_objects(nodes.clone(), this_node).backoff(super::watch_backoff()).boxed();
    let mut tainted: Option<Node> = None;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = sleep(RETRY), if tainted.is_some() => {
                if let Some(node) = tainted.take() {
                    tainted = remove(&nodes, node, &key).await;
                }
                continue;
            }
        };
        match event {
            Some(Ok(Event::Apply(node) | Event::InitApply(node))) => {
                tainted = remove(&nodes, node, &key).await;
            }
            Some(Ok(Event::Delete(_) | Event::Init | Event::InitDone)) => {}
            Some(Err(error)) => warn!(%error, "Kubernetes API does not answer about this node"),
            None => return,
        }
    }
}

/// Removes the taint, if it is there. Returns the node if that has to be tried again.
async fn remove(nodes: &Api<Node>, node: Node, key: &str) -> Option<Node> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let left: Vec<&Taint> = taints.iter().filter(|taint| taint.key != key).collect();
    if left.len() == taints.len() {
        return None;
    }
    // Nobody else's taint may be lost: the patch is for the taints as they were seen. Where they have changed, the watch
    // says so, and all begins anew.
    let patch = json!([
        {"op": "test", "path": "/spec/taints", "value": taints},
        {"op": "replace", "path": "/spec/taints", "value": left},
    ]);
    let name = node.name_any();
    match serde_json::from_value(patch) {
        Ok(patch) => {
            let patched =
                nodes.patch_metadata(&name, &PatchParams::default(), &Patch::<()>::Json(patch)).await;
            match patched {
                Ok(_) => info!(node = name, taint = key, "start-up taint removed: pods may come"),
                Err(kube::Error::Api(refusal)) if matches!(refusal.code, 404 | 409 | 422) => {}
                Err(error) => {
                    warn!(node = name, taint = key, %error, "start-up taint cannot be removed; trying again");
                    return Some(node);
                }
            }
        }
        Err(error) => warn!(node = name, taint = key, %error, "start-up taint cannot be removed"),
    }
    None
}
