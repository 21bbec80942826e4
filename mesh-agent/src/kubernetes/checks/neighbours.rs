//! Who else is at work on the node: its CNI plugin, and other meshes. Known by the labels of the pods that run them.

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::Cluster;
use crate::admin::api::Check;

/// A program of others that runs in a pod on every node.
struct Neighbour {
    label: (&'static str, &'static str),
    name: &'static str,
    role: Role,
}

enum Role {
    /// Gives pods their network, in a way that is right for the agent.
    Network,
    /// Gives pods their network; what has to be set, and why.
    Particular { why: &'static str, mend: &'static str },
    /// Redirects the pods' traffic too.
    Mesh { mend: &'static str },
}

const REMOVE_AMBIENT: &str =
    "one of the two: uninstall istio-cni and ztunnel, or keep them off nodes with this agent";

const NEIGHBOURS: &[Neighbour] = &[
    network("k8s-app", "calico-node", "Calico"),
    network("k8s-app", "canal", "Canal"),
    network("k8s-app", "aws-node", "Amazon VPC CNI"),
    network("k8s-app", "kube-router", "kube-router"),
    network("k8s-app", "flannel", "flannel"),
    network("app", "flannel", "flannel"),
    network("app", "kindnet", "kindnet"),
    network("app", "antrea", "Antrea"),
    network("name", "weave-net", "Weave Net"),
    Neighbour {
        label: ("k8s-app", "cilium"),
        name: "Cilium",
        role: Role::Particular {
            why: "with its socket load balancing in pods the agent never hears of services, and its shortcuts between pods \
                  pass the agent by",
            mend: "set socketLB.hostNamespaceOnly=true, bpf.hostLegacyRouting=true and cni.exclusive=false, and turn \
                   Cilium's L7 proxy off",
        },
    },
    mesh("app", "ztunnel", "Istio's ztunnel", REMOVE_AMBIENT),
    mesh("k8s-app", "istio-cni-node", "Istio's CNI plugin", REMOVE_AMBIENT),
    mesh(
        "k8s-app",
        "linkerd-cni",
        "Linkerd's CNI plugin",
        "keep pods out of one of the two meshes, by namespace",
    ),
    mesh("app", "kuma-cni", "Kuma's CNI plugin", "keep pods out of one of the two meshes, by namespace"),
];

const fn network(key: &'static str, value: &'static str, name: &'static str) -> Neighbour {
    Neighbour { label: (key, value), name, role: Role::Network }
}

const fn mesh(key: &'static str, value: &'static str, name: &'static str, mend: &'static str) -> Neighbour {
    Neighbour { label: (key, value), name, role: Role::Mesh { mend } }
}

/// Looks at the labels of the node's pods.
pub(super) async fn check(cluster: &Cluster) -> Vec<Check> {
    let here = ListParams::default().fields(&format!("spec.nodeName={}", cluster.node));
    let pods = match Api::<Pod>::all(cluster.client.clone()).list_metadata(&here).await {
        Ok(pods) => pods,
        // Which right is missing, the check of the rights says.
        Err(error) => {
            return vec![Check::warn("CNI", format!("pods cannot be listed: {error}"), super::AWAY)];
        }
    };
    let runs = |neighbour: &&Neighbour| {
        let (key, value) = neighbour.label;
        pods.items.iter().any(|pod| pod.labels().get(key).is_some_and(|found| found == value))
    };
    let found: Vec<_> = NEIGHBOURS.iter().filter(runs).collect();
    vec![of_networks(&found), of_meshes(&found)]
}

fn of_networks(found: &[&Neighbour]) -> Check {
    const NAME: &str = "CNI";
    let names: Vec<_> =
        found.iter().filter(|one| !matches!(one.role, Role::Mesh { .. })).map(|one| one.name).collect();
    for neighbour in found {
        if let Role::Particular { why, mend } = neighbour.role {
            return Check::warn(NAME, format!("{}: {why}", names.join(", ")), mend);
        }
    }
    match &names[..] {
        [] => Check::ok(NAME, "none that is known by its pods; that pods' devices are found is what counts"),
        names => Check::ok(NAME, names.join(", ")),
    }
}

fn of_meshes(found: &[&Neighbour]) -> Check {
    const NAME: &str = "other meshes";
    let meshes: Vec<_> = found
        .iter()
        .filter_map(|neighbour| match neighbour.role {
            Role::Mesh { mend } => Some((neighbour.name, mend)),
            Role::Network | Role::Particular { .. } => None,
        })
        .collect();
    let Some((_, mend)) = meshes.first() else {
        return Check::ok(NAME, "none on this node");
    };
    let names: Vec<_> = meshes.iter().map(|(name, _)| *name).collect();
    let both = "redirects pods' traffic too: a pod in both meshes has its connections chased in circles";
    Check::warn(NAME, format!("{}: {both}", names.join(", ")), *mend)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::CheckStatus;

    fn of(labels: &[(&str, &str)]) -> [CheckStatus; 2] {
        let found: Vec<_> = NEIGHBOURS.iter().filter(|known| labels.contains(&known.label)).collect();
        [of_networks(&found).status, of_meshes(&found).status]
    }

    #[test]
    fn networks_are_named_and_what_is_in_the_way_is_warned_of() {
        use CheckStatus::{Ok, Warn};
        assert_eq!(of(&[]), [Ok, Ok]);
        assert_eq!(of(&[("k8s-app", "calico-node")]), [Ok, Ok]);
        assert_eq!(of(&[("k8s-app", "cilium")]), [Warn, Ok]);
        assert_eq!(of(&[("k8s-app", "aws-node"), ("app", "ztunnel")]), [Ok, Warn]);
    }
}
