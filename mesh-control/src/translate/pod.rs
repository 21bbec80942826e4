//! Pods as workloads.

use mesh_xds::proto::workload::{NetworkMode, TunnelProtocol, Workload, WorkloadStatus};

use super::inputs::Inputs;
use super::{Mesh, membership, mutual_tls, octets};
use crate::model::{Kind, Labels, Locality, Pod};

/// The workload of a pod; `None` while it has no address of its own, and when it is done.
pub(super) fn workload(mesh: &Mesh, inputs: &Inputs, pod: &Pod) -> Option<Workload> {
    let addresses = inputs.addresses_of(pod);
    if addresses.is_empty() || pod.finished {
        return None;
    }
    let namespace = inputs.namespaces.get(&pod.name.namespace);
    // By the label from the start: a tunnel that is refused because its agent is not that far yet is better than plain text. Until
    // its agent says otherwise at the end.
    let enrolled = pod.enrolled.or_else(|| namespace?.enrolled).unwrap_or(false);
    let tunnels = (enrolled || pod.steered) && !pod.host_network;
    let network = pod.network.clone().or_else(|| namespace?.network.clone());
    let (canonical_name, canonical_revision) = canonical(&pod.labels, &pod.owner.name);
    let mut workload = Workload {
        uid: mesh.uid(Kind::Pod, &pod.name),
        name: pod.name.name.to_string(),
        namespace: pod.name.namespace.to_string(),
        addresses: addresses.into_iter().map(octets).collect(),
        network: network.unwrap_or_else(|| mesh.network.clone()),
        tunnel_protocol: if tunnels { TunnelProtocol::Hbone } else { TunnelProtocol::None }.into(),
        trust_domain: mesh.wire_trust_domain(),
        service_account: pod.service_account.clone(),
        node: pod.node.to_string(),
        canonical_name,
        canonical_revision,
        workload_type: pod.owner.kind.into(),
        workload_name: pod.owner.name.clone(),
        services: membership::of_pod(mesh, inputs, pod),
        status: if pod.ready { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy }.into(),
        cluster_id: mesh.cluster_id.clone(),
        locality: inputs.nodes.get(&pod.node).and_then(|node| locality(&node.locality)),
        network_mode: if pod.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard }.into(),
        ..Workload::default()
    };
    if pod.draining {
        workload.set_terminating();
    }
    if let Some(rules) = &pod.redirection {
        workload.set_traffic_redirection(rules);
    }
    mutual_tls::attach(&inputs.policies, &pod.name.namespace, &pod.labels, &mut workload);
    Some(workload)
}

/// Canonical service name and revision, as telemetry groups workloads.
pub(super) fn canonical(labels: &Labels, workload: &str) -> (String, String) {
    let first = |keys: [&str; 3]| keys.into_iter().find_map(|key| labels.get(key)).cloned();
    let name = first(["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let revision = first(["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    (name.unwrap_or_else(|| workload.to_owned()), revision.unwrap_or_else(|| "latest".to_owned()))
}

pub(super) fn locality(locality: &Locality) -> Option<mesh_xds::proto::workload::Locality> {
    (*locality != Locality::default()).then(|| mesh_xds::proto::workload::Locality {
        region: locality.region.clone(),
        zone: locality.zone.clone(),
        subzone: locality.subzone.clone(),
    })
}
