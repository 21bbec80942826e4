//! Workloads and services.

use serde::{Deserialize, Serialize};

/// Something that takes connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadInfo {
    /// Unique in the mesh.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Owning Deployment or the like.
    pub workload: String,
    /// SPIFFE identity.
    pub identity: String,
    /// All its addresses.
    pub addresses: Vec<String>,
    /// Node it runs on.
    pub node: String,
    /// Whether it runs on this node.
    pub local: bool,
    /// Whether it shares its node's network.
    pub host_network: bool,
    /// `tcp` or `hbone`.
    pub protocol: String,
    /// Whether it says it is ready.
    pub healthy: bool,
    /// Share of traffic.
    pub weight: u32,
    /// Region, zone and subzone, as far as known, with slashes.
    pub locality: String,
    /// Services it stands behind, `namespace/hostname`.
    pub services: Vec<String>,
    /// Connections from this node to it that are open now.
    pub active: u32,
    /// Attempts to connect to it from this node that failed in a row.
    pub failures: u32,
    /// Whether it is avoided for that.
    pub ejected: bool,
}

/// A name with addresses and endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceInfo {
    /// Namespace.
    pub namespace: String,
    /// Fully qualified host name.
    pub hostname: String,
    /// Short name.
    pub name: String,
    /// Virtual addresses; none for a headless service.
    pub addresses: Vec<String>,
    /// Ports.
    pub ports: Vec<ServicePortInfo>,
    /// How endpoints are chosen, in words.
    pub balancing: String,
    /// Every endpoint.
    pub endpoints: Vec<EndpointInfo>,
}

/// A port of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePortInfo {
    /// Port clients connect to.
    pub port: u16,
    /// Port of the endpoints; 0 where each has its own.
    pub target_port: u16,
}

/// A workload behind a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointInfo {
    /// Uid of the workload.
    pub workload: String,
    /// Node it runs on.
    pub node: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Whether it says it is ready.
    pub healthy: bool,
    /// How near it is, from 0; `None` where it cannot be chosen.
    pub tier: Option<usize>,
    /// Connections from this node to it that are open now.
    pub active: u32,
    /// Whether it is avoided because connecting to it failed.
    pub ejected: bool,
}
