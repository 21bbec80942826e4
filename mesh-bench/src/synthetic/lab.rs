//! Pods of a lab as the discovery server offers them, beside the synthetic ones.

use mesh_lab::{Kind, Machine};
use mesh_xds::proto::workload::address::Type;
use mesh_xds::proto::workload::{TunnelProtocol, Workload};
use mesh_xds::server::StoredResource;

use super::{octets, stored};

/// An enrolled pod, with a service account of its own name.
pub(crate) fn pod_workload(machine: &Machine) -> StoredResource {
    let name = machine.name().to_owned();
    let (node, namespace) = match machine.kind() {
        Kind::Pod { node, namespace, .. } => (node.clone(), namespace.clone()),
        Kind::Node | Kind::Host => Default::default(),
    };
    stored(Type::Workload(Workload {
        uid: format!("Kubernetes//Pod/{namespace}/{name}"),
        addresses: machine.addresses().iter().map(octets).collect(),
        tunnel_protocol: TunnelProtocol::Hbone.into(),
        service_account: name.clone(),
        canonical_name: name.clone(),
        canonical_revision: "latest".to_owned(),
        workload_name: name.clone(),
        cluster_id: "Kubernetes".to_owned(),
        name,
        namespace,
        node,
        ..Workload::default()
    }))
}
