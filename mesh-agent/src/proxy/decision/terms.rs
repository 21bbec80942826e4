//! The terms that decisions are told in: addresses, paths, and why not.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;
use thiserror::Error;

use mesh_xds::HBONE_PORT;

use crate::config::{RoutingScope, ServiceName};
use crate::telemetry::{ResponseFlag, Transport};

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
    /// It is reached through a gateway, which may not know the way back to a pod.
    OtherNetwork,
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
    /// Through a tunnel to the agent of its node.
    Tunnel,
    /// Through a tunnel to its waypoint.
    Waypoint,
    /// Through a tunnel to the gateway of its network, and in that through another to the agent of its node.
    NetworkGateway,
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
            Self::Tunnel | Self::Waypoint | Self::NetworkGateway => Transport::Hbone,
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
    #[error("service {service} has no endpoint for port {port}: {known} known{}", because(*.known, *.ready, .only))]
    NoEndpoint {
        /// The service.
        service: ServiceName,
        /// The port asked for.
        port: u16,
        /// Endpoints known, of any kind.
        known: usize,
        /// Those of them that are ready.
        ready: usize,
        /// What an endpoint must share with the client, where the service says so (`internalTrafficPolicy: Local`).
        only: Vec<RoutingScope>,
    },
    /// The client tries to speak the tunnel's protocol itself.
    #[error(
        "port {HBONE_PORT} of {workload} belongs to the mesh's tunnels; connect to a port of the workload's own"
    )]
    TunnelPort {
        /// Uid of the workload.
        workload: Arc<str>,
    },
    /// The waypoint that traffic has to pass is not known, or has nobody behind it.
    #[error("the waypoint {waypoint} of {destination} is not known or has no endpoint")]
    NoWaypoint {
        /// The waypoint, by name or address.
        waypoint: String,
        /// The service or workload that has it.
        destination: String,
    },
    /// A tunnel leads to one pod and was asked for something else.
    #[error("the tunnel to {pod} was asked for {authority}, which is not its own")]
    NotThisPod {
        /// What was asked for.
        authority: String,
        /// Uid of the pod.
        pod: Arc<str>,
    },
    /// The client connected to the agent itself.
    #[error("dialled the agent's own listener; connections get here by steering only")]
    DialledDirectly,
}

impl Refusal {
    /// The kind of refusal, for reports.
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::NoSuchPort { .. }
            | Self::TunnelPort { .. }
            | Self::NotThisPod { .. }
            | Self::DialledDirectly => ResponseFlag::NoRoute,
            Self::NoEndpoint { .. } | Self::NoWaypoint { .. } => ResponseFlag::NoHealthyUpstream,
        }
    }
}

/// Why an endpoint cannot be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unusable {
    /// It is in another network, where its address means nothing here, and that network has no gateway.
    OtherNetwork,
    /// It is in another network, whose gateway the mesh does not know.
    UnknownGateway,
    /// It does not serve the port.
    NoPort,
    /// It has no address.
    NoAddress,
}

/// Why none of the endpoints that are known may be chosen.
fn because(known: usize, ready: usize, only: &[RoutingScope]) -> String {
    let scopes: Vec<_> = only.iter().map(|scope| scope.as_str()).collect();
    match (known, ready, &scopes[..]) {
        (0, ..) => String::new(),
        (_, 0, _) => ", none of them ready".to_owned(),
        (_, _, ["node"]) => format!(
            ", {ready} ready, none of them on this node, and the service takes no other (internalTrafficPolicy: Local)"
        ),
        (_, _, []) => format!(", {ready} ready, none of them reachable with that port"),
        (_, _, scopes) => {
            format!(
                ", {ready} ready, none of them in the client's {}, and the service takes no other",
                scopes.join(", ")
            )
        }
    }
}
