//! Where tunnels lead: to the agent of a workload's node, to a waypoint, to the gateway of another network. And who
//! must be at their ends.
//!
//! Waypoints and gateways are treated as ztunnel treats them: what goes to a service or workload that has a waypoint
//! is sent there, whatever the endpoint; what goes to an endpoint in another network is sent to that network's
//! gateway, in a tunnel within a tunnel, both of which ask for the service by its name.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_xds::HBONE_PORT;
use mesh_xds::identity::Identity;

use super::upstream::{Client, source_address};
use super::{NotPreserved, Path, Refusal, SourceAddress, Target, Unusable, Upstream};
use crate::config::{
    Endpoint, Gateway, GatewayAddress, Service, ServiceEntry, Snapshot, TunnelProtocol, Workload,
};

#[cfg(test)]
mod tests;

/// A tunnel, and who must be at its ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelPath {
    /// Where the tunnel is opened to.
    pub gateway: SocketAddr,
    /// Who may answer there.
    pub expected: Arc<[Identity]>,
    /// What is asked for at its end, `address:port` or `host:port`.
    pub authority: Arc<str>,
    /// Who may answer at the end of a second tunnel within the first, where there is one.
    pub inner: Option<Arc<[Identity]>>,
}

impl TunnelPath {
    /// The tunnel to the agent of the workload's node, which is reached at the workload's own address.
    pub(super) fn to(workload: &Workload, address: SocketAddr) -> Self {
        Self {
            gateway: SocketAddr::new(address.ip(), HBONE_PORT),
            expected: [workload.identity()].into(),
            authority: address.to_string().into(),
            inner: None,
        }
    }

    /// Accepts the other names of the service as well.
    pub(super) fn also_expect(&mut self, service: &Service) {
        if !service.subject_alt_names.is_empty() {
            self.expected = self.expected.iter().cloned().chain(names(service)).collect();
        }
    }
}

/// The identities that may serve in the name of a service besides those of its workloads.
fn names(service: &Service) -> impl Iterator<Item = Identity> + '_ {
    service.subject_alt_names.iter().filter_map(|name| name.parse().ok())
}

fn expected(workload: &Workload, service: Option<&Service>) -> Arc<[Identity]> {
    std::iter::once(workload.identity()).chain(service.into_iter().flat_map(names)).collect()
}

/// The way to a waypoint. Nothing where the mesh does not know it.
pub(super) fn waypoint_of(
    snapshot: &Snapshot,
    client: &Client<'_>,
    waypoint: &Gateway,
    destination: SocketAddr,
) -> Option<Result<Target, Refusal>> {
    let authority: Arc<str> = destination.to_string().into();
    if let Some(entry) = service_of(snapshot, waypoint) {
        let usable = |endpoint: &Endpoint| {
            endpoint.workload.weight > 0 && waypoint_address(snapshot, endpoint, destination).is_ok()
        };
        let known = entry.tiers.iter().flat_map(|tier| tier.iter()).any(usable);
        return known.then(|| {
            Ok(Target::Waypoint { entry: Arc::clone(entry), port: waypoint.hbone_port, authority })
        });
    }
    let GatewayAddress::Address(place) = &waypoint.address else {
        return None;
    };
    let workload = snapshot.workload_by_network_address(place)?;
    let address = SocketAddr::new(place.address, waypoint.hbone_port);
    Some(Ok(Target::Single(to_waypoint(snapshot, client, None, workload, address, &authority))))
}

/// Whether `workload` is one of the waypoint's own.
pub(super) fn serves(snapshot: &Snapshot, workload: &Workload, waypoint: &Gateway) -> bool {
    match (service_of(snapshot, waypoint), &waypoint.address) {
        (Some(entry), _) => entry.endpoints.get(&workload.uid).is_some(),
        (None, GatewayAddress::Address(place)) => {
            workload.network_addresses().any(|address| address == *place)
        }
        (None, GatewayAddress::Service(_)) => false,
    }
}

fn service_of<'a>(snapshot: &'a Snapshot, gateway: &Gateway) -> Option<&'a Arc<ServiceEntry>> {
    match &gateway.address {
        GatewayAddress::Service(name) => snapshot.service(name),
        GatewayAddress::Address(address) => snapshot.service_by_network_address(address),
    }
}

/// The address of a waypoint's endpoint, of the family of the destination if it has one of that.
pub(super) fn waypoint_address(
    snapshot: &Snapshot,
    endpoint: &Endpoint,
    destination: SocketAddr,
) -> Result<IpAddr, Unusable> {
    let workload = &endpoint.workload;
    if workload.network != snapshot.node().network {
        return Err(Unusable::OtherNetwork);
    }
    let same_family = workload.addresses.iter().find(|own| own.is_ipv4() == destination.is_ipv4());
    same_family.or(workload.addresses.first()).copied().ok_or(Unusable::NoAddress)
}

/// How to reach a waypoint's workload.
pub(super) fn to_waypoint(
    snapshot: &Snapshot,
    client: &Client<'_>,
    service: Option<&Arc<Service>>,
    workload: &Arc<Workload>,
    address: SocketAddr,
    authority: &Arc<str>,
) -> Upstream {
    let is_pod = workload.node == snapshot.node().name;
    Upstream {
        address,
        workload: Some(Arc::clone(workload)),
        load: Some(Arc::clone(workload.load.get())),
        source: source_address(client, Some(workload), is_pod, address.ip()),
        path: Path::Waypoint,
        tunnel: Some(Arc::new(TunnelPath {
            gateway: address,
            expected: expected(workload, service.map(Arc::as_ref)),
            authority: Arc::clone(authority),
            inner: None,
        })),
        server_side: None,
    }
}

/// How to reach an endpoint in another network.
pub(super) fn behind_gateway(
    snapshot: &Snapshot,
    service: &Arc<Service>,
    endpoint: &Endpoint,
    port: u16,
) -> Result<Upstream, Unusable> {
    let gateway = gateway_of(snapshot, &endpoint.workload)?;
    Ok(Upstream {
        address: gateway.address,
        workload: Some(Arc::clone(&endpoint.workload)),
        load: Some(Arc::clone(endpoint.load())),
        source: SourceAddress::Node(NotPreserved::OtherNetwork),
        path: Path::NetworkGateway,
        tunnel: Some(Arc::new(TunnelPath {
            gateway: gateway.address,
            expected: expected(gateway.workload, gateway.service),
            authority: format!("{}:{port}", service.id.hostname).into(),
            inner: Some(expected(&endpoint.workload, Some(service))),
        })),
        server_side: None,
    })
}

/// The gateway of a network.
pub(super) struct NetworkGateway<'a> {
    address: SocketAddr,
    workload: &'a Workload,
    /// The service it was found by.
    service: Option<&'a Service>,
}

/// The gateway of a workload's network. Of several the least busy.
pub(super) fn gateway_of<'a>(
    snapshot: &'a Snapshot,
    workload: &'a Workload,
) -> Result<NetworkGateway<'a>, Unusable> {
    let gateway = workload.network_gateway.as_ref().ok_or(Unusable::OtherNetwork)?;
    if workload.tunnel == TunnelProtocol::None {
        return Err(Unusable::OtherNetwork);
    }
    if let Some(entry) = service_of(snapshot, gateway) {
        let endpoints = entry.tiers.iter().flat_map(|tier| tier.iter());
        let addressed =
            endpoints.filter_map(|endpoint| Some((endpoint, *endpoint.workload.addresses.first()?)));
        return addressed
            .min_by_key(|(endpoint, _)| endpoint.load().active())
            .map(|(endpoint, address)| NetworkGateway {
                address: SocketAddr::new(address, gateway.hbone_port),
                workload: &endpoint.workload,
                service: Some(&entry.service),
            })
            .ok_or(Unusable::UnknownGateway);
    }
    match &gateway.address {
        GatewayAddress::Address(place) => snapshot
            .workload_by_network_address(place)
            .map(|workload| NetworkGateway {
                address: SocketAddr::new(place.address, gateway.hbone_port),
                workload,
                service: None,
            })
            .ok_or(Unusable::UnknownGateway),
        GatewayAddress::Service(_) => Err(Unusable::UnknownGateway),
    }
}
