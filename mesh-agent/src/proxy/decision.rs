//! Where a connection leads, and why: pure functions of the configuration, the node's pods and the connection's
//! two ends.
//!
//! The data path acts on a [`Decision`]; `meshctl explain` shows the same value with everything that was weighed
//! ([`Explanation`]).

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_xds::HBONE_PORT;
use mesh_xds::identity::Identity;

use crate::config::{
    BalanceMode, Endpoint, EndpointLoad, Gateway, Service, ServiceEntry, Snapshot, TunnelProtocol, Workload,
};
use crate::pods::{LocalPod, LocalPods};
use crate::telemetry::{ConnectionSecurity, Direction};

mod explain;
mod terms;
#[cfg(test)]
mod tests;
mod tunnel;
mod tunnelled;
mod upstream;

use tunnel::{behind_gateway, waypoint_of};
use upstream::{Client, upstream};

pub(crate) use upstream::endpoint_address;

pub use terms::{NotPreserved, Path, Refusal, SourceAddress, Unusable};
pub use tunnel::TunnelPath;
pub use tunnelled::decide_tunnelled;

pub use explain::{Because, Candidate, Explanation, SetAside, Tunnel};

/// What happens to a connection.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The agent's role.
    pub direction: Direction,
    /// The local pod it takes this role for; none where the pod left while its connection was on the way.
    pub pod: Option<Arc<LocalPod>>,
    /// Who opened the connection, where the mesh knows.
    pub source: Option<Arc<Workload>>,
    /// Who it has proved to be.
    pub identity: Option<Arc<Identity>>,
    /// How it has proved that: by sending from its own device on this node, or by its certificate.
    pub security: ConnectionSecurity,
    /// The service it was opened to, if that was one.
    pub service: Option<Arc<Service>>,
    /// Where it leads.
    pub outcome: Result<Target, Refusal>,
}

/// Where a connection leads.
#[derive(Debug, Clone)]
pub enum Target {
    /// To one of the endpoints of a service.
    Service {
        /// The service and its endpoints.
        entry: Arc<ServiceEntry>,
        /// The port of the service.
        port: u16,
    },
    /// To one of the endpoints of a waypoint, which decides where it leads from there.
    Waypoint {
        /// The waypoint and its endpoints.
        entry: Arc<ServiceEntry>,
        /// Its port for tunnels.
        port: u16,
        /// What it is asked for: where the client wanted to go.
        authority: Arc<str>,
    },
    /// To one place.
    Single(Upstream),
}

/// A place to connect to, and how.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Where it is.
    pub address: SocketAddr,
    /// Who it is, where the mesh knows.
    pub workload: Option<Arc<Workload>>,
    /// How busy it is, where the mesh knows it.
    pub load: Option<Arc<EndpointLoad>>,
    /// Which source address it sees.
    pub source: SourceAddress,
    /// How the bytes get there.
    pub path: Path,
    /// The tunnel, where the path is one.
    pub tunnel: Option<Arc<TunnelPath>>,
    /// The pod, where it is enrolled on this node and the connection would be steered on its way to it: then this
    /// agent is also the one of the server's side.
    pub server_side: Option<Arc<LocalPod>>,
}

/// Decides a connection from `client` that was on its way to `destination`.
pub fn decide(
    snapshot: &Snapshot,
    pods: &LocalPods,
    client: SocketAddr,
    destination: SocketAddr,
) -> Decision {
    if is_dialled(destination) {
        return dialled();
    }
    // As in the kernel: what the client's own rules let pass was steered for its destination.
    let opener = pods
        .enrolled_by_address(client.ip())
        .filter(|pod| pod.redirection.outbound(destination.ip(), destination.port()).captured);
    if let Some(pod) = opener {
        decide_outbound(snapshot, pods, pod, client, destination)
    } else if let Some(pod) = pods.enrolled_by_address(destination.ip()) {
        let identity = pods.enrolled_by_address(client.ip()).and_then(|client| proven(snapshot, client));
        decide_inbound(snapshot, pod, client, destination, identity)
    } else {
        decide_stray(snapshot, pods, client, destination)
    }
}

/// The same for a connection that was turned around on its way into the pod: from the node itself, or translated to the
/// pod's address. It is one to that pod, from nobody: where it came in was not seen, so that its client's address proves
/// nothing.
pub fn decide_around(
    snapshot: &Snapshot,
    pods: &LocalPods,
    client: SocketAddr,
    destination: SocketAddr,
) -> Decision {
    if is_dialled(destination) {
        return dialled();
    }
    match pods.enrolled_by_address(destination.ip()) {
        Some(pod) => decide_inbound(snapshot, pod, client, destination, None),
        None => decide_stray(snapshot, pods, client, destination),
    }
}

/// Steered packets never have a loopback address; what has one was dialled, and would be relayed to itself.
fn is_dialled(destination: SocketAddr) -> bool {
    destination.ip().is_loopback() || destination.ip().is_unspecified()
}

fn dialled() -> Decision {
    Decision {
        direction: Direction::Outbound,
        pod: None,
        source: None,
        identity: None,
        security: ConnectionSecurity::None,
        service: None,
        outcome: Err(Refusal::DialledDirectly),
    }
}

/// Decides a connection that the local `pod` opened.
fn decide_outbound(
    snapshot: &Snapshot,
    pods: &LocalPods,
    pod: &Arc<LocalPod>,
    client: SocketAddr,
    destination: SocketAddr,
) -> Decision {
    let source = snapshot.workload_by_address(client.ip());
    let identity = proven(snapshot, pod);
    let decision = |service, outcome| Decision {
        direction: Direction::Outbound,
        pod: Some(Arc::clone(pod)),
        source: source.cloned(),
        identity: identity.clone(),
        security: vouched(identity.as_ref()),
        service,
        outcome,
    };
    let client_addresses = Client { ip: client.ip(), others: &pod.addresses };
    let through = |waypoint: &Gateway, of: &dyn std::fmt::Display| {
        waypoint_of(snapshot, &client_addresses, waypoint, destination).unwrap_or_else(|| {
            Err(Refusal::NoWaypoint { waypoint: waypoint.address.to_string(), destination: of.to_string() })
        })
    };
    // A waypoint that goes on to what it stands in front of must not be sent back to itself.
    let is_waypoint =
        |waypoint: &Gateway| source.is_some_and(|known| tunnel::serves(snapshot, known, waypoint));

    let Some(entry) = snapshot.service_by_address(destination.ip()) else {
        let workload = snapshot.workload_by_address(destination.ip());
        let waypoint = workload.and_then(|known| known.waypoint.as_ref()).filter(|known| !is_waypoint(known));
        let outcome = match (workload, waypoint) {
            (Some(known), _) if destination.port() == HBONE_PORT && known.tunnel != TunnelProtocol::None => {
                Err(Refusal::TunnelPort { workload: Arc::clone(&known.uid) })
            }
            (Some(known), Some(waypoint)) => through(waypoint, &known.uid),
            _ => Ok(Target::Single(upstream(snapshot, pods, &client_addresses, workload, destination))),
        };
        return decision(None, outcome);
    };
    let outcome = decide_service(snapshot, pods, &client_addresses, entry, destination, |waypoint| {
        (!is_waypoint(waypoint)).then(|| through(waypoint, &entry.service.id))
    });
    decision(Some(Arc::clone(&entry.service)), outcome)
}

/// Decides a connection to a service. `through` leads to its waypoint, unless that is the client itself.
fn decide_service(
    snapshot: &Snapshot,
    pods: &LocalPods,
    client: &Client<'_>,
    entry: &Arc<ServiceEntry>,
    destination: SocketAddr,
    through: impl Fn(&Gateway) -> Option<Result<Target, Refusal>>,
) -> Result<Target, Refusal> {
    let service = &entry.service;
    let port = destination.port();
    if !service.ports.iter().any(|known| known.service_port == port) {
        let ports = service.ports.iter().map(|known| known.service_port).collect();
        return Err(Refusal::NoSuchPort { service: service.id.clone(), port, ports });
    }
    if let Some(outcome) = service.waypoint.as_ref().and_then(through) {
        return outcome;
    }
    if service.load_balancing.mode == BalanceMode::Passthrough {
        let workload = snapshot.workload_by_address(destination.ip());
        return Ok(Target::Single(upstream(snapshot, pods, client, workload, destination)));
    }
    let may_be_chosen = |endpoint: &Endpoint| {
        endpoint.workload.weight > 0 && check_endpoint(snapshot, service, endpoint, destination).is_ok()
    };
    if !entry.tiers.iter().flat_map(|tier| tier.iter()).any(may_be_chosen) {
        return Err(no_endpoint(entry, port));
    }
    Ok(Target::Service { entry: Arc::clone(entry), port })
}

fn no_endpoint(entry: &ServiceEntry, port: u16) -> Refusal {
    let balancing = &entry.service.load_balancing;
    let strict = balancing.mode == BalanceMode::Strict;
    Refusal::NoEndpoint {
        service: entry.service.id.clone(),
        port,
        known: entry.endpoints.len(),
        ready: entry.endpoints.iter().filter(|endpoint| endpoint.workload.healthy).count(),
        only: if strict { balancing.preference.clone() } else { Vec::new() },
    }
}

fn vouched(identity: Option<&Arc<Identity>>) -> ConnectionSecurity {
    identity.map_or(ConnectionSecurity::None, |_| ConnectionSecurity::SameNode)
}

/// Who an enrolled pod is known to be, once its device is: packets with its address from any other are dropped.
fn proven(snapshot: &Snapshot, pod: &LocalPod) -> Option<Arc<Identity>> {
    pod.device.as_ref().map(|_| Arc::new(pod.identity(&snapshot.node().trust_domain)))
}

/// Decides a connection that somebody, who may have proved to be `identity`, opened to the local `pod`.
fn decide_inbound(
    snapshot: &Snapshot,
    pod: &Arc<LocalPod>,
    client: SocketAddr,
    destination: SocketAddr,
    identity: Option<Arc<Identity>>,
) -> Decision {
    // The pod answers to whatever address it sees, and steering brings the answer back here: nothing needs to be
    // known of the client.
    let source = if client.ip() == destination.ip() {
        SourceAddress::Node(NotPreserved::TheClientItself)
    } else if client.is_ipv4() != destination.is_ipv4() {
        // Out of a tunnel of the other family.
        SourceAddress::Node(NotPreserved::OtherFamily)
    } else {
        SourceAddress::Preserved(client.ip())
    };
    let workload = snapshot.workload_by_address(destination.ip());
    let target = Target::Single(Upstream {
        address: destination,
        workload: workload.cloned(),
        load: workload.map(|known| Arc::clone(known.load.get())),
        source,
        path: Path::SameNode,
        tunnel: None,
        server_side: None,
    });
    Decision {
        direction: Direction::Inbound,
        pod: Some(Arc::clone(pod)),
        source: snapshot.workload_by_address(client.ip()).cloned(),
        security: vouched(identity.as_ref()),
        identity,
        service: None,
        outcome: Ok(target),
    }
}

/// Decides a connection whose pod left, or is no longer enrolled, since it was steered: it goes where it would have
/// gone without the mesh.
fn decide_stray(
    snapshot: &Snapshot,
    pods: &LocalPods,
    client: SocketAddr,
    destination: SocketAddr,
) -> Decision {
    let workload = snapshot.workload_by_address(destination.ip());
    let client_addresses = Client { ip: client.ip(), others: &[] };
    let mut upstream = upstream(snapshot, pods, &client_addresses, workload, destination);
    let both_are_pods = pods.by_address(client.ip()).is_some() && pods.by_address(destination.ip()).is_some();
    if !both_are_pods {
        upstream.source = SourceAddress::Node(NotPreserved::UnknownDestination);
    }
    // Nobody's identity is left to open a tunnel with.
    if upstream.tunnel.take().is_some() {
        upstream.path = Path::Remote;
    }
    Decision {
        direction: Direction::Outbound,
        pod: None,
        source: snapshot.workload_by_address(client.ip()).cloned(),
        identity: None,
        security: ConnectionSecurity::None,
        service: None,
        outcome: Ok(Target::Single(upstream)),
    }
}

impl Decision {
    /// Whether an endpoint of where the connection leads can be reached. Cheaper than
    /// [`endpoint_upstream`](Self::endpoint_upstream), which says how.
    pub fn is_usable(&self, snapshot: &Snapshot, endpoint: &Endpoint, destination: SocketAddr) -> bool {
        match &self.outcome {
            Ok(Target::Service { entry, .. }) => {
                check_endpoint(snapshot, &entry.service, endpoint, destination).is_ok()
            }
            Ok(Target::Waypoint { .. }) => tunnel::waypoint_address(snapshot, endpoint, destination).is_ok(),
            Ok(Target::Single(_)) | Err(_) => false,
        }
    }

    /// The address of an endpoint of the service the connection leads to, if it is of this network.
    pub fn endpoint_address(
        &self,
        snapshot: &Snapshot,
        endpoint: &Endpoint,
        destination: SocketAddr,
    ) -> Option<SocketAddr> {
        match &self.outcome {
            Ok(Target::Service { entry, port }) if endpoint.workload.network == snapshot.node().network => {
                endpoint_address(&entry.service, endpoint, *port, destination.ip()).ok()
            }
            _ => None,
        }
    }

    /// How to reach an endpoint of where the connection leads.
    pub fn endpoint_upstream(
        &self,
        snapshot: &Snapshot,
        pods: &LocalPods,
        endpoint: &Endpoint,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> Result<Upstream, Unusable> {
        let others = self.pod.as_ref().map_or(&[][..], |pod| &pod.addresses);
        let client = Client { ip: client.ip(), others };
        match &self.outcome {
            Ok(Target::Waypoint { entry, port, authority }) => {
                let address = tunnel::waypoint_address(snapshot, endpoint, destination)?;
                let address = SocketAddr::new(address, *port);
                Ok(tunnel::to_waypoint(
                    snapshot,
                    &client,
                    Some(&entry.service),
                    &endpoint.workload,
                    address,
                    authority,
                ))
            }
            Ok(Target::Service { entry, port }) => {
                let service = &entry.service;
                if endpoint.workload.network != snapshot.node().network {
                    return behind_gateway(snapshot, service, endpoint, *port);
                }
                let address = endpoint_address(service, endpoint, *port, destination.ip())?;
                let mut upstream = upstream(snapshot, pods, &client, Some(&endpoint.workload), address);
                if let Some(tunnel) = &mut upstream.tunnel {
                    Arc::make_mut(tunnel).also_expect(service);
                }
                Ok(upstream)
            }
            Ok(Target::Single(_)) | Err(_) => Err(Unusable::NoPort),
        }
    }
}

/// Whether an endpoint can be reached for `service`.
pub(crate) fn check_endpoint(
    snapshot: &Snapshot,
    service: &Service,
    endpoint: &Endpoint,
    destination: SocketAddr,
) -> Result<(), Unusable> {
    if endpoint.workload.network == snapshot.node().network {
        endpoint_address(service, endpoint, destination.port(), destination.ip()).map(drop)
    } else {
        tunnel::gateway_of(snapshot, &endpoint.workload).map(drop)
    }
}
