//! Which services a workload is an endpoint of, and at which of its ports.

use std::collections::BTreeMap;

use mesh_xds::proto::workload::{Port, PortList};

use super::Mesh;
use super::inputs::Inputs;
use crate::model::{
    Endpoint, EndpointSlice, ObjectName, Pod, Service, ServiceEntry, ServicePort, TargetPort, WorkloadEntry,
};

/// Ports of a workload by the services it is an endpoint of, as `namespace/hostname`.
pub(super) type Services = BTreeMap<String, PortList>;

/// The services of a pod: those whose slices list it, those without slices that select it, and the service
/// entries that select it.
pub(super) fn of_pod(mesh: &Mesh, inputs: &Inputs, pod: &Pod) -> Services {
    let namespace = &pod.name.namespace;
    let mut services = Services::new();
    for service in inputs.services_selecting(namespace, &pod.labels) {
        if !service.external_name && !inputs.has_slices(&service.name) {
            let ports = ports(&service.ports, |port| match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(name) => pod.named_port(name),
            });
            services.insert(service_name(mesh, service), ports);
        }
    }
    for slice in inputs.slices_listing(pod).values() {
        let Some(service) = listed_service(inputs, slice) else {
            continue;
        };
        if lists_as_usable(slice, service, pod) {
            let listed = services.entry(service_name(mesh, service)).or_default();
            merge(listed, from_slice(service, slice));
        }
    }
    for entry in inputs.entries_selecting(namespace, &pod.labels) {
        let ports = ports(&entry.ports, |port| fixed(&port.target));
        services.extend(entry_names(entry).map(|name| (name, ports.clone())));
    }
    services
}

/// The services of a workload entry: whatever selects it. Slices never list one.
pub(super) fn of_workload_entry(mesh: &Mesh, inputs: &Inputs, entry: &WorkloadEntry) -> Services {
    let namespace = &entry.name.namespace;
    let mut services = Services::new();
    for service in inputs.services_selecting(namespace, &entry.labels) {
        if !service.external_name {
            services.insert(service_name(mesh, service), of_endpoint(&service.ports, &entry.endpoint));
        }
    }
    for service in inputs.entries_selecting(namespace, &entry.labels) {
        let ports = of_endpoint(&service.ports, &entry.endpoint);
        services.extend(entry_names(service).map(|name| (name, ports.clone())));
    }
    services
}

/// The ports of an endpoint, which may give its own numbers to the service's port names.
pub(super) fn of_endpoint(service: &[ServicePort], endpoint: &Endpoint) -> PortList {
    ports(service, |port| {
        let own = endpoint.ports.get(&port.name).copied();
        own.or_else(|| match &port.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => endpoint.ports.get(name).copied(),
        })
    })
}

/// The ports of a service at the endpoints of a slice.
pub(super) fn from_slice(service: &Service, slice: &EndpointSlice) -> PortList {
    ports(&service.ports, |port| {
        slice.ports.iter().find(|listed| listed.name == port.name).map(|listed| listed.number)
    })
}

/// The service that a slice has endpoints of.
pub(super) fn listed_service<'a>(inputs: &'a Inputs, slice: &EndpointSlice) -> Option<&'a Service> {
    let name = ObjectName::new(slice.name.namespace.clone(), slice.service.clone()?);
    inputs.services.get(&name).map(|service| &**service).filter(|service| !service.external_name)
}

/// The resource name of a Kubernetes service.
pub(super) fn service_name(mesh: &Mesh, service: &Service) -> String {
    format!("{}/{}", service.name.namespace, mesh.hostname(&service.name))
}

/// The resource names of a service entry's hosts.
pub(super) fn entry_names(entry: &ServiceEntry) -> impl Iterator<Item = String> {
    entry.hosts.iter().map(|host| format!("{}/{host}", entry.name.namespace))
}

/// An endpoint that is not ready while its pod says it is must not be used: the protocol knows readiness per
/// workload only, so the pod is taken out of this service. One that is unready anyway stays in, for services that
/// use such endpoints.
fn lists_as_usable(slice: &EndpointSlice, service: &Service, pod: &Pod) -> bool {
    let is_pod = |name: &str| name == &*pod.name.name;
    slice
        .endpoints
        .iter()
        .filter(|endpoint| match &endpoint.pod {
            Some(name) => is_pod(name),
            None => endpoint.addresses.iter().any(|address| pod.addresses.contains(address)),
        })
        .any(|endpoint| endpoint.ready || !pod.ready || service.publish_not_ready)
}

/// Maps the ports of a service to a workload's, leaving out those it does not have.
fn ports(service: &[ServicePort], target: impl Fn(&ServicePort) -> Option<u16>) -> PortList {
    let mut ports: Vec<Port> = service
        .iter()
        .filter_map(|port| {
            Some(Port {
                service_port: port.number.into(),
                target_port: target(port)?.into(),
                ..Port::default()
            })
        })
        .collect();
    ports.sort_unstable_by_key(|port| port.service_port);
    PortList { ports }
}

fn fixed(target: &TargetPort) -> Option<u16> {
    match target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(_) => None,
    }
}

/// Slices of one service each may have some of its ports, and one for each family.
fn merge(into: &mut PortList, from: PortList) {
    for port in from.ports {
        if !into.ports.iter().any(|known| known.service_port == port.service_port) {
            into.ports.push(port);
        }
    }
    into.ports.sort_unstable_by_key(|port| port.service_port);
}
