//! How to reach one destination: its address, the source address it sees, and the path of the bytes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{NotPreserved, Path, SourceAddress, TunnelPath, Unusable, Upstream};
use crate::config::{Endpoint, MutualTlsMode, Service, Snapshot, TunnelProtocol, Workload};
use crate::pods::{LocalPod, LocalPods};

/// The addresses a client may be given upstream.
pub(super) struct Client<'a> {
    /// The one it used.
    pub(super) ip: IpAddr,
    /// All that are its own.
    pub(super) others: &'a [IpAddr],
}

/// The address of `endpoint` for a port of its service, of the family of `wanted` if it has one of that.
pub(crate) fn endpoint_address(
    service: &Service,
    endpoint: &Endpoint,
    port: u16,
    wanted: IpAddr,
) -> Result<SocketAddr, Unusable> {
    let workload = &endpoint.workload;
    let target_port = target_port(service, endpoint, port).ok_or(Unusable::NoPort)?;
    let same_family = workload.addresses.iter().find(|address| address.is_ipv4() == wanted.is_ipv4());
    let address = same_family.or(workload.addresses.first()).ok_or(Unusable::NoAddress)?;
    Ok(SocketAddr::new(*address, target_port))
}

/// The port of `endpoint` behind a port of its service.
pub(super) fn target_port(service: &Service, endpoint: &Endpoint, port: u16) -> Option<u16> {
    let of_service = || {
        let port = service.ports.iter().find(|known| known.service_port == port)?;
        (port.target_port != 0).then_some(port.target_port)
    };
    endpoint.target_port(port).or_else(of_service)
}

/// How to reach `address`, which is `workload` where the mesh knows it.
pub(super) fn upstream(
    snapshot: &Snapshot,
    pods: &LocalPods,
    client: &Client<'_>,
    workload: Option<&Arc<Workload>>,
    address: SocketAddr,
) -> Upstream {
    let local_pod = pods.by_address(address.ip());
    let path = path(snapshot, workload, local_pod.is_some(), address.port());
    let tunnel = workload.filter(|_| path == Path::Tunnel).map(|known| TunnelPath::to(known, address));
    let steered = |pod: &&Arc<LocalPod>| pod.enrolled && pod.redirection.inbound(address.port()).captured;
    Upstream {
        address,
        workload: workload.cloned(),
        load: workload.map(|known| Arc::clone(known.load.get())),
        source: source_address(client, workload, local_pod.is_some(), address.ip()),
        path,
        tunnel: tunnel.map(Arc::new),
        // A tunnel ends at the server's side by itself.
        server_side: local_pod.filter(steered).filter(|_| path == Path::SameNode).cloned(),
    }
}

/// Chooses which source address the destination sees.
pub(super) fn source_address(
    client: &Client<'_>,
    workload: Option<&Arc<Workload>>,
    is_local_pod: bool,
    destination: IpAddr,
) -> SourceAddress {
    if client.ip == destination || client.others.contains(&destination) {
        return SourceAddress::Node(NotPreserved::TheClientItself);
    }
    match workload {
        Some(workload) if workload.host_network => return SourceAddress::Node(NotPreserved::HostNetwork),
        Some(workload) if workload.node.is_empty() && !is_local_pod => {
            return SourceAddress::Node(NotPreserved::OutsideTheNodes);
        }
        None if !is_local_pod => return SourceAddress::Node(NotPreserved::UnknownDestination),
        Some(_) | None => {}
    }
    let same_family = |address: &&IpAddr| address.is_ipv4() == destination.is_ipv4();
    match std::iter::once(&client.ip).chain(client.others).find(same_family) {
        Some(address) => SourceAddress::Preserved(*address),
        None => SourceAddress::Node(NotPreserved::OtherFamily),
    }
}

/// Chooses how bytes get to a destination in this network.
fn path(snapshot: &Snapshot, workload: Option<&Arc<Workload>>, is_local_pod: bool, port: u16) -> Path {
    let Some(workload) = workload else {
        return if is_local_pod { Path::SameNode } else { Path::Passthrough };
    };
    let on_this_node = is_local_pod || (!workload.host_network && workload.node == snapshot.node().name);
    match workload.tunnel {
        // Whoever speaks the protocol itself is told who calls by nothing else.
        TunnelProtocol::NativeHbone => Path::Tunnel,
        TunnelProtocol::None | TunnelProtocol::Hbone if on_this_node => Path::SameNode,
        TunnelProtocol::Hbone if workload.mutual_tls.of(port) != MutualTlsMode::Disable => Path::Tunnel,
        TunnelProtocol::None | TunnelProtocol::Hbone => Path::Remote,
    }
}
