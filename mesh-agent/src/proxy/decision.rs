//! Where a connection leads, and why: pure functions of the configuration, the node's pods and the connection's
//! two ends.
//!
//! The data path acts on a [`Decision`]; `meshctl explain` shows the same value with everything that was weighed
//! ([`Explanation`]).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;
use thiserror::Error;

use crate::config::{
    BalanceMode, Endpoint, EndpointLoad, Service, ServiceEntry, ServiceName, Snapshot, Workload,
};
use crate::pods::{LocalPod, LocalPods};
use crate::telemetry::{Direction, ResponseFlag, Transport};

mod explain;
#[cfg(test)]
mod tests;
mod upstream;

use upstream::{Client, endpoint_address, upstream};

pub use explain::{Because, Candidate, Explanation, SetAside};

/// What happens to a connection.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The agent's role.
    pub direction: Direction,
    /// The local pod it takes this role for; none where the pod left while its connection was on the way.
    pub pod: Option<Arc<LocalPod>>,
    /// Who opened the connection, where the mesh knows.
    pub source: Option<Arc<Workload>>,
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
    /// The pod, where it is enrolled on this node and the connection would be steered on its way to it: then this
    /// agent is also the one of the server's side.
    pub server_side: Option<Arc<LocalPod>>,
}

/// The source address of an upstream connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceAddress {
    /// The client's own.
    Preserved(IpAddr),
    /// The node's, for this reason.
    Node(NotPreserved),
}

/// Why an upstream does not see the client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NotPreserved {
    /// The mesh does not know the destination: its answers might not find the way back through this node.
    UnknownDestination,
    /// It is not a pod of any node: the same.
    OutsideTheNodes,
    /// It shares its node's address.
    HostNetwork,
    /// It is the client itself, and would take the packets for its own.
    TheClientItself,
    /// The client has no address of the destination's family.
    OtherFamily,
}

impl SourceAddress {
    /// The address to bind to, where it is not left to the kernel.
    pub fn preserved(self) -> Option<IpAddr> {
        match self {
            Self::Preserved(address) => Some(address),
            Self::Node(_) => None,
        }
    }
}

/// How bytes get to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    /// Straight to a pod of this node.
    SameNode,
    /// Plain TCP to a workload elsewhere.
    Remote,
    /// Plain TCP to something the mesh does not know.
    Passthrough,
}

impl Path {
    /// The name that reports give it.
    pub fn transport(self) -> Transport {
        match self {
            Self::SameNode | Self::Remote => Transport::Plain,
            Self::Passthrough => Transport::Passthrough,
        }
    }
}

/// Why a connection is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The address is a service's, the port is not.
    #[error("service {service} has no port {port}; it has {ports:?}")]
    NoSuchPort {
        /// The service.
        service: ServiceName,
        /// The port asked for.
        port: u16,
        /// The ports there are.
        ports: Vec<u16>,
    },
    /// No endpoint of the service may be chosen.
    #[error(
        "service {service} has no endpoint for port {port}: {known} known, none of them healthy, near and reachable"
    )]
    NoEndpoint {
        /// The service.
        service: ServiceName,
        /// The port asked for.
        port: u16,
        /// Endpoints known, of any kind.
        known: usize,
    },
    /// The client connected to the agent itself.
    #[error("dialled the agent's own listener; connections get here by steering only")]
    DialledDirectly,
}

impl Refusal {
    /// The kind of refusal, for reports.
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::NoSuchPort { .. } | Self::DialledDirectly => ResponseFlag::NoRoute,
            Self::NoEndpoint { .. } => ResponseFlag::NoHealthyUpstream,
        }
    }
}

/// Why an endpoint cannot be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unusable {
    /// It is in another network, where its address means nothing here.
    OtherNetwork,
    /// It does not serve the port.
    NoPort,
    /// It has no address.
    NoAddress,
}

/// Decides a connection from `client` that was on its way to `destination`.
pub fn decide(
    snapshot: &Snapshot,
    pods: &LocalPods,
    client: SocketAddr,
    destination: SocketAddr,
) -> Decision {
    // Steered packets never have a loopback address; what has one was dialled, and would be relayed to itself.
    let dialled = destination.ip().is_loopback() || destination.ip().is_unspecified();
    if dialled {
        return Decision {
            direction: Direction::Outbound,
            pod: None,
            source: None,
            service: None,
            outcome: Err(Refusal::DialledDirectly),
        };
    }
    // As in the kernel: what the client's own rules let pass was steered for its destination.
    let opener = pods
        .enrolled_by_address(client.ip())
        .filter(|pod| pod.redirection.outbound(destination.ip(), destination.port()).captured);
    if let Some(pod) = opener {
        decide_outbound(snapshot, pods, pod, client, destination)
    } else if let Some(pod) = pods.enrolled_by_address(destination.ip()) {
        decide_inbound(snapshot, pod, client, destination)
    } else {
        decide_stray(snapshot, pods, client, destination)
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
    let client_addresses = Client { ip: client.ip(), others: &pod.addresses };
    let single = || {
        let workload = snapshot.workload_by_address(destination.ip());
        Target::Single(upstream(snapshot, pods, &client_addresses, workload, destination))
    };
    let decision = |service, outcome| Decision {
        direction: Direction::Outbound,
        pod: Some(Arc::clone(pod)),
        source: snapshot.workload_by_address(client.ip()).cloned(),
        service,
        outcome,
    };
    let Some(entry) = snapshot.service_by_address(destination.ip()) else {
        return decision(None, Ok(single()));
    };
    let service = &entry.service;
    let port = destination.port();
    let outcome = if !service.ports.iter().any(|known| known.service_port == port) {
        let ports = service.ports.iter().map(|known| known.service_port).collect();
        Err(Refusal::NoSuchPort { service: service.id.clone(), port, ports })
    } else if service.load_balancing.mode == BalanceMode::Passthrough {
        Ok(single())
    } else if !entry.tiers.iter().flat_map(|tier| tier.iter()).any(|endpoint| {
        endpoint.workload.weight > 0
            && endpoint_address(snapshot, service, endpoint, port, destination.ip()).is_ok()
    }) {
        Err(Refusal::NoEndpoint { service: service.id.clone(), port, known: entry.endpoints.len() })
    } else {
        Ok(Target::Service { entry: Arc::clone(entry), port })
    };
    decision(Some(Arc::clone(service)), outcome)
}

/// Decides a connection that somebody opened to the local `pod`.
fn decide_inbound(
    snapshot: &Snapshot,
    pod: &Arc<LocalPod>,
    client: SocketAddr,
    destination: SocketAddr,
) -> Decision {
    // The pod answers to whatever address it sees, and steering brings the answer back here: nothing needs to be
    // known of the client.
    let source = if client.ip() == destination.ip() {
        SourceAddress::Node(NotPreserved::TheClientItself)
    } else {
        SourceAddress::Preserved(client.ip())
    };
    let workload = snapshot.workload_by_address(destination.ip());
    let target = Target::Single(Upstream {
        address: destination,
        workload: workload.cloned(),
        load: workload.and_then(|known| snapshot.load(&known.uid)).cloned(),
        source,
        path: Path::SameNode,
        server_side: None,
    });
    Decision {
        direction: Direction::Inbound,
        pod: Some(Arc::clone(pod)),
        source: snapshot.workload_by_address(client.ip()).cloned(),
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
    Decision {
        direction: Direction::Outbound,
        pod: None,
        source: snapshot.workload_by_address(client.ip()).cloned(),
        service: None,
        outcome: Ok(Target::Single(upstream)),
    }
}

impl Decision {
    /// How to reach an endpoint of the service the connection was opened to.
    pub fn endpoint_upstream(
        &self,
        snapshot: &Snapshot,
        pods: &LocalPods,
        endpoint: &Endpoint,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> Result<Upstream, Unusable> {
        let service = self.service.as_ref().ok_or(Unusable::NoPort)?;
        let address = endpoint_address(snapshot, service, endpoint, destination.port(), destination.ip())?;
        let others = self.pod.as_ref().map_or(&[][..], |pod| &pod.addresses);
        let client = Client { ip: client.ip(), others };
        Ok(upstream(snapshot, pods, &client, Some(&endpoint.workload), address))
    }
}
