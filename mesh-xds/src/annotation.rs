//! Names of the pod annotations that say which traffic is steered. The control server reads them into a
//! [`TrafficRedirection`](crate::proto::mesh::TrafficRedirection); an agent that watches Kubernetes itself reads them
//! directly. One of them the agent writes: [`REDIRECTION`].
//!
//! All but [`FAILURE_MODE`] are Istio's (<https://istio.io/latest/docs/reference/config/annotations/>).

/// Ports of the pod that are steered: a list, `*`, or nothing for none.
pub const INCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeInboundPorts";
/// Ports of the pod that are not.
pub const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
/// Destination ports that are steered whatever their address.
pub const INCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
/// Destination ports that are not.
pub const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
/// Destination ranges that are steered: a list, `*`, or nothing for none.
pub const INCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
/// Destination ranges that are not.
pub const EXCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
/// `true`: nothing inbound is steered.
pub const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
/// Ours: `open` or `closed`, what becomes of the pod's new connections while no agent runs on its node.
pub const FAILURE_MODE: &str = "mesh-agent/failure-mode";
/// Written by the agent, with the value [`REDIRECTION_ENABLED`], on pods whose traffic it steers: they take tunnels.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// The value of [`REDIRECTION`].
pub const REDIRECTION_ENABLED: &str = "enabled";
