//! What `meshctl check` says of the cluster: the API, what it lets the agent do, the agent's own node, and who else is at work
//! there ([`neighbours`]).

use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::PostParams;
use tokio::time::timeout;

mod neighbours;

use super::{Cluster, Right, Scope};
use crate::admin::api::Check;

/// How long the API has to answer all that is asked.
const PATIENCE: Duration = Duration::from_secs(5);

/// The oldest version of Kubernetes that is tried: EndpointSlices tell of terminating endpoints, and pods of all their addresses.
const OLDEST: (u32, u32) = (1, 26);

/// Looks at all of it.
pub async fn check(cluster: &Cluster) -> Vec<Check> {
    let asking = async {
        let version = version(cluster).await;
        // One that does not answer would not answer the others either.
        match version.status == crate::admin::api::CheckStatus::Fail {
            true => vec![version],
            false => {
                let mut checks = vec![version, access(cluster).await, node(cluster).await];
                checks.extend(neighbours::check(cluster).await);
                checks
            }
        }
    };
    timeout(PATIENCE, asking)
        .await
        .unwrap_or_else(|_| vec![Check::fail(API, format!("no answer within {PATIENCE:?}"), AWAY)])
}

const API: &str = "Kubernetes API";
const AWAY: &str = "check that this node reaches it, and that kube-proxy runs here: `kubectl get --raw /readyz`. Pods that are \
                    known stay as they are; new ones are not enrolled until it answers";

async fn version(cluster: &Cluster) -> Check {
    match cluster.client.apiserver_version().await {
        Ok(version) => {
            let number = |text: &str| text.trim_end_matches('+').parse::<u32>().ok();
            let found = number(&version.major).zip(number(&version.minor));
            match found {
                Some(found) if found < OLDEST => Check::warn(
                    API,
                    format!(
                        "{}: older than {}.{}, which is the oldest that is tried",
                        version.git_version, OLDEST.0, OLDEST.1
                    ),
                    "upgrade the cluster",
                ),
                _ => Check::ok(API, version.git_version),
            }
        }
        Err(error) => Check::fail(API, error.to_string(), AWAY),
    }
}

/// Asks for each right by itself, as `kubectl auth can-i` does.
async fn access(cluster: &Cluster) -> Check {
    const NAME: &str = "rights in the cluster";
    let mut missing = Vec::new();
    let mut count = 0;
    for right in cluster.rights() {
        count += 1;
        match may(cluster, right).await {
            Ok(true) => {}
            Ok(false) => missing.push(format!("{right} ({})", right.purpose)),
            Err(error) => {
                let mend =
                    "let the agent ask: bind its service account to the cluster role system:basic-user";
                return Check::warn(NAME, format!("cannot be asked for: {error}"), mend);
            }
        }
    }
    if missing.is_empty() {
        return Check::ok(NAME, format!("all {count} that are used"));
    }
    let mend = format!(
        "grant them to service account mesh-agent of namespace {}: `helm upgrade` restores the chart's own roles",
        cluster.namespace
    );
    Check::fail(NAME, format!("missing: {}", missing.join(", ")), mend)
}

async fn may(cluster: &Cluster, right: &Right) -> kube::Result<bool> {
    let own = right.scope == Scope::OwnDaemonSet;
    let attributes = ResourceAttributes {
        verb: Some(right.verb.into()),
        group: Some(right.group.into()),
        resource: Some(right.resource.into()),
        namespace: own.then(|| cluster.namespace.to_string()),
        name: cluster.daemon_set.as_ref().filter(|_| own).map(ToString::to_string),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() },
        ..Default::default()
    };
    let answer = Api::<SelfSubjectAccessReview>::all(cluster.client.clone())
        .create(&PostParams::default(), &review)
        .await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

async fn node(cluster: &Cluster) -> Check {
    const NAME: &str = "node in the cluster";
    let name = &cluster.node;
    let found = match Api::<Node>::all(cluster.client.clone()).get_opt(name).await {
        Ok(found) => found,
        // Said by the check of the rights, where the agent needs it.
        Err(kube::Error::Api(refusal)) if refusal.code == 403 => {
            return Check::ok(NAME, format!("{name}; the agent may not read it"));
        }
        Err(error) => return Check::warn(NAME, error.to_string(), AWAY),
    };
    let Some(node) = found else {
        return Check::fail(
            NAME,
            format!("the cluster has no node {name}: no pod is ever found"),
            "give --node-name, or NODE_NAME, the name that `kubectl get nodes` shows",
        );
    };
    let info = node.status.and_then(|status| status.node_info).unwrap_or_default();
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let waiting = cluster.startup_taint.as_deref().filter(|key| taints.iter().any(|taint| taint.key == *key));
    match waiting {
        Some(key) => Check::warn(
            NAME,
            format!("{name} still has the start-up taint {key}: pods wait"),
            "the agent removes it once it serves; see the checks that fail, and its log",
        ),
        None => Check::ok(
            NAME,
            format!("{name}: kubelet {}, {}", info.kubelet_version, info.container_runtime_version),
        ),
    }
}
