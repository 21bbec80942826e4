//! Services and service entries as services of the protocol.

use mesh_xds::proto::mesh::SessionAffinity;
use mesh_xds::proto::workload::load_balancing::{HealthPolicy, Mode, Scope};
use mesh_xds::proto::workload::{IpFamilies, LoadBalancing, Port, Service};

use super::inputs::Inputs;
use super::{Mesh, Output, endpoint, network_address};
use crate::model::{
    self, EntryEndpoints, Resolution, ServiceEntry, ServicePort, TargetPort, TrafficDistribution,
};

/// A Kubernetes service; `None` if it only stands for a name elsewhere (ExternalName), where there is nothing to balance:
/// DNS leads clients to that name's addresses, and the mesh sees a connection to whatever is there.
pub(super) fn kubernetes(mesh: &Mesh, inputs: &Inputs, service: &model::Service) -> Option<Service> {
    if service.external_name {
        return None;
    }
    let name = &service.name;
    let namespace = inputs.namespaces.get(&name.namespace);
    let distribution = service
        .traffic_distribution
        .or_else(|| namespace?.traffic_distribution)
        .unwrap_or(TrafficDistribution::Any);
    let mut translated = Service {
        name: name.name.to_string(),
        namespace: name.namespace.to_string(),
        hostname: mesh.hostname(name),
        addresses: service.addresses.iter().map(|address| network_address(&mesh.network, *address)).collect(),
        ports: ports(&service.ports),
        load_balancing: load_balancing(service, distribution),
        ip_families: service.families.into(),
        canonical: true,
        ..Service::default()
    };
    if let Some(timeout_seconds) = service.affinity_seconds {
        translated.set_session_affinity(&SessionAffinity { timeout_seconds });
    }
    Some(translated)
}

/// The services of a service entry, one for each host, and the workloads of its endpoints.
pub(super) fn entry(mesh: &Mesh, inputs: &Inputs, entry: &ServiceEntry) -> Vec<Output> {
    let services = entry.hosts.iter().map(|host| {
        let passthrough = LoadBalancing { mode: Mode::Passthrough.into(), ..LoadBalancing::default() };
        Service {
            name: entry.name.name.to_string(),
            namespace: entry.name.namespace.to_string(),
            hostname: host.clone(),
            addresses: entry
                .addresses
                .iter()
                .map(|address| network_address(&mesh.network, *address))
                .collect(),
            ports: ports(&entry.ports),
            subject_alt_names: entry.subject_alt_names.clone(),
            load_balancing: (entry.resolution == Resolution::None).then_some(passthrough),
            ip_families: IpFamilies::Automatic.into(),
            ..Service::default()
        }
        .into()
    });
    let mut resources: Vec<Output> = services.collect();
    match &entry.endpoints {
        EntryEndpoints::Selected(_) => {}
        EntryEndpoints::Listed(endpoints) if endpoints.is_empty() && entry.resolution.resolves() => {
            let hosts = entry.hosts.iter().map(|host| endpoint::resolved(mesh, inputs, entry, host).into());
            resources.extend(hosts);
        }
        EntryEndpoints::Listed(endpoints) => {
            resources
                .extend(endpoints.iter().map(|listed| endpoint::listed(mesh, inputs, entry, listed).into()));
        }
    }
    resources
}

fn ports(ports: &[ServicePort]) -> Vec<Port> {
    ports
        .iter()
        .map(|port| Port {
            service_port: port.number.into(),
            target_port: match &port.target {
                TargetPort::Number(number) => (*number).into(),
                // Each workload says what its port of that name is.
                TargetPort::Name(_) => 0,
            },
            app_protocol: port.protocol.into(),
        })
        .collect()
}

/// `None` stands for: all healthy endpoints alike.
fn load_balancing(service: &model::Service, distribution: TrafficDistribution) -> Option<LoadBalancing> {
    const CLOSE: [Scope; 5] = [Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node];
    let (mode, preference) = match distribution {
        _ if service.node_local => (Mode::Strict, [Scope::Node].iter()),
        TrafficDistribution::Any => (Mode::UnspecifiedMode, [].iter()),
        TrafficDistribution::PreferSameZone => (Mode::Failover, CLOSE.get(..3).unwrap_or_default().iter()),
        TrafficDistribution::PreferClose => (Mode::Failover, CLOSE.get(..4).unwrap_or_default().iter()),
        TrafficDistribution::PreferSameNode => (Mode::Failover, CLOSE.iter()),
    };
    let health_policy =
        if service.publish_not_ready { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
    let load_balancing = LoadBalancing {
        routing_preference: preference.map(|scope| i32::from(*scope)).collect(),
        mode: mode.into(),
        health_policy: health_policy.into(),
        ..LoadBalancing::default()
    };
    (load_balancing != LoadBalancing::default()).then_some(load_balancing)
}
