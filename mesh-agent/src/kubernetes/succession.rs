//! What becomes of the node when the agent ends: whether another agent follows.
//!
//! An agent of a DaemonSet is told to stop in the same way when it is updated and when the mesh is uninstalled. Updated, the node
//! must stay steered, or pods that fail closed would be open until the next agent has started; uninstalled, nothing may stay.
//! The API knows which it is:
//!
//! | the API says | so |
//! |---|---|
//! | the DaemonSet is there, and its pods may run on this node | another agent follows: all stays |
//! | it is gone, or is being deleted | nobody follows: all is removed |
//! | its pods may not run on this node (any more) | the same |
//! | the agent may not ask, or is nobody (403, 401) | its account or role was deleted, which uninstalling does at the same time: the same |
//! | nothing, for a few seconds | all stays: an API server that is away deletes no DaemonSet |

use std::fmt;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use tokio::time::timeout;

use super::{Cluster, placement};

/// How long the API has to answer. The kubelet waits, and so does whoever updates.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether another agent follows, and how that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Succession {
    /// One does, or may: what is on the node stays for it.
    Follows(String),
    /// None does: nothing may stay.
    Ends(String),
}

impl fmt::Display for Succession {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Follows(reason) | Self::Ends(reason) => out.write_str(reason),
        }
    }
}

/// Asks the API whether another agent follows this one.
pub async fn ask(cluster: &Cluster) -> Succession {
    let Some(name) = &cluster.daemon_set else {
        return Succession::Ends("this agent is of no DaemonSet".into());
    };
    match timeout(PATIENCE, answer(cluster, name)).await {
        Ok(Ok(succession)) => succession,
        Ok(Err(kube::Error::Api(refusal))) if matches!(refusal.code, 401 | 403) => Succession::Ends(format!(
            "the API no longer lets this agent ask for DaemonSet {name} ({}): it is being uninstalled",
            refusal.message
        )),
        Ok(Err(error)) => {
            Succession::Follows(format!("the API does not say whether DaemonSet {name} is there: {error}"))
        }
        Err(_) => Succession::Follows(format!(
            "the API did not say for {PATIENCE:?} whether DaemonSet {name} is there"
        )),
    }
}

async fn answer(cluster: &Cluster, name: &str) -> kube::Result<Succession> {
    let sets = Api::<DaemonSet>::namespaced(cluster.client.clone(), &cluster.namespace);
    let Some(set) = sets.get_opt(name).await? else {
        return Ok(Succession::Ends(format!("DaemonSet {name} is gone")));
    };
    if set.metadata.deletion_timestamp.is_some() {
        return Ok(Succession::Ends(format!("DaemonSet {name} is being deleted")));
    }
    let Some(node) = Api::<Node>::all(cluster.client.clone()).get_opt(&cluster.node).await? else {
        return Ok(Succession::Ends(format!("node {} is no longer one of the cluster's", cluster.node)));
    };
    let pod = set.spec.and_then(|spec| spec.template.spec).unwrap_or_default();
    Ok(match placement::admits(&pod, &node) {
        true => Succession::Follows(format!("DaemonSet {name} goes on")),
        false => Succession::Ends(format!("DaemonSet {name} is not for this node any more")),
    })
}
