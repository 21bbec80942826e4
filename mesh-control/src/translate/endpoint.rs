//! Workloads that are not pods: workload entries, endpoints of service entries, and addresses in endpoint slices.

use std::collections::BTreeMap;

use mesh_xds::proto::workload::{NetworkMode, TunnelProtocol, Workload, WorkloadStatus};

use super::inputs::Inputs;
use super::membership::{self, Services};
use super::pod::{canonical, locality};
use super::{Mesh, Output, mutual_tls, octets};
use crate::model::{
    Endpoint, EndpointAddress, EndpointSlice, Kind, Labels, ObjectName, ServiceEntry, WorkloadEntry,
};

/// Label with which Istio marks workloads that speak HBONE themselves.
const TUNNEL: &str = "networking.istio.io/tunnel";

/// The workload of a workload entry.
pub(super) fn workload_entry(mesh: &Mesh, inputs: &Inputs, entry: &WorkloadEntry) -> Workload {
    let services = membership::of_workload_entry(mesh, inputs, entry);
    let uid = mesh.uid(Kind::WorkloadEntry, &entry.name);
    workload(mesh, inputs, uid, &entry.name, &entry.labels, &entry.endpoint, services)
}

/// The workload of an endpoint that is written into a service entry.
pub(super) fn listed(mesh: &Mesh, inputs: &Inputs, entry: &ServiceEntry, endpoint: &Endpoint) -> Workload {
    let ports = membership::of_endpoint(&entry.ports, endpoint);
    let services = membership::entry_names(entry).map(|name| (name, ports.clone())).collect();
    let address = match &endpoint.address {
        EndpointAddress::Ip(address) => address.to_string(),
        EndpointAddress::Hostname(name) => name.clone(),
    };
    let uid = format!("{}/{address}", mesh.uid(Kind::ServiceEntry, &entry.name));
    workload(mesh, inputs, uid, &entry.name, &endpoint.labels, endpoint, services)
}

/// The workload that stands for a host of a service entry which is to be resolved itself.
pub(super) fn resolved(mesh: &Mesh, inputs: &Inputs, entry: &ServiceEntry, host: &str) -> Workload {
    let endpoint = Endpoint {
        address: EndpointAddress::Hostname(host.to_owned()),
        ports: BTreeMap::new(),
        labels: Labels::new(),
        network: None,
        locality: Default::default(),
        weight: None,
        service_account: None,
    };
    let ports = membership::of_endpoint(&entry.ports, &endpoint);
    let services = Services::from([(format!("{}/{host}", entry.name.namespace), ports)]);
    let uid = format!("{}/{host}", mesh.uid(Kind::ServiceEntry, &entry.name));
    workload(mesh, inputs, uid, &entry.name, &endpoint.labels, &endpoint, services)
}

/// The workloads of a slice's endpoints that are not pods. Nothing is known of them but the address, which may
/// well be one that others use as well: it does not tell who is there.
pub(super) fn opaque(mesh: &Mesh, inputs: &Inputs, slice: &EndpointSlice) -> Vec<Output> {
    let Some(service) = membership::listed_service(inputs, slice) else {
        return Vec::new();
    };
    let services =
        Services::from([(membership::service_name(mesh, service), membership::from_slice(service, slice))]);
    let namespace = &slice.name.namespace;
    let mut workloads: BTreeMap<String, Workload> = BTreeMap::new();
    for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.pod.is_none()) {
        let Some(first) = endpoint.addresses.first() else {
            continue;
        };
        if endpoint.addresses.iter().any(|address| inputs.is_pod_address(namespace, address)) {
            continue;
        }
        let uid = format!("{}/{first}", mesh.uid(Kind::EndpointSlice, &slice.name));
        // An address that is listed twice is one endpoint; the first entry counts.
        if workloads.contains_key(&uid) {
            continue;
        }
        let mut workload = Workload {
            uid: uid.clone(),
            name: slice.name.name.to_string(),
            namespace: namespace.to_string(),
            addresses: endpoint.addresses.iter().copied().map(octets).collect(),
            network: mesh.network.clone(),
            trust_domain: mesh.wire_trust_domain(),
            node: endpoint.node.to_string(),
            services: services.clone(),
            status: if endpoint.ready { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy }.into(),
            cluster_id: mesh.cluster_id.clone(),
            network_mode: NetworkMode::HostNetwork.into(),
            ..Workload::default()
        };
        if endpoint.draining {
            workload.set_terminating();
        }
        workloads.insert(uid, workload);
    }
    workloads.into_values().map(Output::from).collect()
}

fn workload(
    mesh: &Mesh,
    inputs: &Inputs,
    uid: String,
    name: &ObjectName,
    labels: &Labels,
    endpoint: &Endpoint,
    services: Services,
) -> Workload {
    let (addresses, hostname) = match &endpoint.address {
        EndpointAddress::Ip(address) => (vec![octets(*address)], String::new()),
        EndpointAddress::Hostname(name) => (Vec::new(), name.clone()),
    };
    let (canonical_name, canonical_revision) = canonical(labels, &name.name);
    let tunnels = labels.get(TUNNEL).is_some_and(|tunnel| tunnel == "http");
    let mut workload = Workload {
        uid,
        name: name.name.to_string(),
        namespace: name.namespace.to_string(),
        addresses,
        hostname,
        network: endpoint.network.clone().unwrap_or_else(|| mesh.network.clone()),
        tunnel_protocol: if tunnels { TunnelProtocol::Hbone } else { TunnelProtocol::None }.into(),
        native_tunnel: tunnels,
        trust_domain: mesh.wire_trust_domain(),
        service_account: endpoint.service_account.clone().unwrap_or_default(),
        canonical_name,
        canonical_revision,
        workload_name: name.name.to_string(),
        workload_type: mesh_xds::proto::workload::WorkloadType::Pod.into(),
        services,
        status: WorkloadStatus::Healthy.into(),
        cluster_id: mesh.cluster_id.clone(),
        locality: locality(&endpoint.locality),
        capacity: endpoint.weight,
        ..Workload::default()
    };
    mutual_tls::attach(&inputs.policies, &name.namespace, labels, &mut workload);
    workload
}
