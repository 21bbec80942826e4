//! Workloads and services in the agent's own types, parsed once from the wire ([`super::convert`]).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use mesh_xds::identity::Identity;
use serde::Serialize;

use super::load::SharedLoad;
use crate::pods::{FailureMode, Redirection};

/// An address within a network: the same private address may exist in two networks of one mesh.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct NetworkAddress {
    /// Network name; empty is the default network.
    pub network: Arc<str>,
    /// The address.
    pub address: IpAddr,
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.network, self.address)
    }
}

/// A service's name, `<namespace>/<hostname>` on the wire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ServiceName {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Fully qualified host name, `<service>.<namespace>.svc.<cluster domain>` in Kubernetes.
    pub hostname: Arc<str>,
}

impl ServiceName {
    /// Splits `<namespace>/<hostname>`; `None` when either part is missing.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, hostname) = text.split_once('/')?;
        (!namespace.is_empty() && !hostname.is_empty())
            .then(|| Self { namespace: namespace.into(), hostname: hostname.into() })
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.namespace, self.hostname)
    }
}

/// How another node reaches a workload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelProtocol {
    /// Plain TCP.
    #[default]
    None,
    /// HTTP/2 CONNECT over mutual TLS, port 15008: the workload is enrolled in the mesh.
    Hbone,
    /// The same, but spoken by the workload itself (a waypoint, a gateway): no agent does it in its place.
    NativeHbone,
}

/// Where a workload runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Locality {
    /// `topology.kubernetes.io/region`.
    pub region: Arc<str>,
    /// `topology.kubernetes.io/zone`.
    pub zone: Arc<str>,
    /// `topology.istio.io/subzone`.
    pub subzone: Arc<str>,
}

/// Whether a port takes mutual TLS: Istio's PeerAuthentication.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MutualTlsMode {
    /// Mutual TLS and plain text.
    #[default]
    Permissive,
    /// Mutual TLS only.
    Strict,
    /// Plain text only: clients do not open a tunnel.
    Disable,
}

/// Which ports of a workload take mutual TLS.
///
/// It tells clients where not to open a tunnel, and people what is in force. That a strict port refuses plain text is
/// an authorization policy, which servers of any kind are sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize)]
pub struct MutualTls {
    /// Of ports that are not listed.
    pub mode: MutualTlsMode,
    /// Of ports that differ.
    pub ports: BTreeMap<u16, MutualTlsMode>,
    /// The PeerAuthentication that decided, `<namespace>/<name>`; empty where none did.
    pub policy: Arc<str>,
}

impl MutualTls {
    /// What `port` takes.
    pub fn of(&self, port: u16) -> MutualTlsMode {
        self.ports.get(&port).copied().unwrap_or(self.mode)
    }
}

/// A proxy that traffic has to pass: a waypoint or a gateway between networks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Gateway {
    /// Where it is.
    pub address: GatewayAddress,
    /// Its HBONE port.
    pub hbone_port: u16,
}

/// A gateway by name or by address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GatewayAddress {
    /// A service of the mesh.
    Service(ServiceName),
    /// An address.
    Address(NetworkAddress),
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => name.fmt(out),
            Self::Address(address) => address.fmt(out),
        }
    }
}

/// One port of a service and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct PortMapping {
    /// Port of the service.
    pub service_port: u16,
    /// Port of the workload.
    pub target_port: u16,
}

/// Something that has addresses and takes connections: a pod, or a machine outside the cluster.
///
/// A mesh has many of them, so what the replicas of a deployment have in common is held once, in a [`Template`] that each
/// of them leads to as if it were its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// Unique in the mesh, `<cluster>/<group>/<kind>/<namespace>/<name>`.
    pub uid: Arc<str>,
    /// Its name where the uid does not end with that; see [`name`](Self::name).
    pub own_name: Option<Box<str>>,
    /// All addresses.
    pub addresses: Box<[IpAddr]>,
    /// Node the workload runs on.
    pub node: Arc<str>,
    /// Where it runs.
    pub locality: Arc<Locality>,
    /// Whether it accepts connections; an unready pod does not.
    pub healthy: bool,
    /// Whether one that is not healthy still answers while it is being ended: the last resort of its services.
    pub terminating: bool,
    /// What it has in common with others.
    pub template: Arc<Template>,
    /// How busy it is, as this node sees it.
    pub load: SharedLoad,
}

/// What the workloads of a deployment have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Template {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account; `default` where the control server left it out.
    pub service_account: Arc<str>,
    /// Trust domain; `cluster.local` where the control server left it out.
    pub trust_domain: Arc<str>,
    /// Host name to resolve where there is no address.
    pub hostname: Arc<str>,
    /// Network of the addresses.
    pub network: Arc<str>,
    /// Cluster.
    pub cluster: Arc<str>,
    /// Whether it shares its node's network namespace; such a workload is never steered.
    pub host_network: bool,
    /// Telemetry: canonical service name.
    pub canonical_name: Arc<str>,
    /// Telemetry: canonical revision.
    pub canonical_revision: Arc<str>,
    /// Telemetry: name of the owning Deployment or the like.
    pub workload_name: Arc<str>,
    /// How to reach it.
    pub tunnel: TunnelProtocol,
    /// Proxy that its traffic passes first.
    pub waypoint: Option<Gateway>,
    /// Gateway into its network.
    pub network_gateway: Option<Gateway>,
    /// Relative share of traffic; 1 by default.
    pub weight: u32,
    /// Services it is an endpoint of.
    pub services: Vec<(ServiceName, Vec<PortMapping>)>,
    /// Authorization policies that select it, `<namespace>/<name>`.
    pub authorization_policies: Vec<Arc<str>>,
    /// Which of its ports take mutual TLS.
    pub mutual_tls: MutualTls,
    /// Which of its traffic is steered on its node.
    pub redirection: Redirection,
    /// What its node does while the agent is away; `None` leaves it to the agent.
    pub failure_mode: Option<FailureMode>,
}

impl Deref for Workload {
    type Target = Template;

    fn deref(&self) -> &Template {
        &self.template
    }
}

/// Changes this workload's own copy of the template.
impl DerefMut for Workload {
    fn deref_mut(&mut self) -> &mut Template {
        Arc::make_mut(&mut self.template)
    }
}

impl Workload {
    /// Pod name.
    pub fn name(&self) -> &str {
        let of_uid = || self.uid.rsplit('/').next().unwrap_or_default();
        self.own_name.as_deref().unwrap_or_else(of_uid)
    }

    /// The same with another template.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Template)) -> Self {
        change(&mut self);
        self
    }

    /// Who it is, as its certificate says.
    pub fn identity(&self) -> Identity {
        Identity::new(
            Arc::clone(&self.trust_domain),
            Arc::clone(&self.namespace),
            Arc::clone(&self.service_account),
        )
    }

    /// The keys it is found under. A workload in its node's network namespace has none: its address is shared
    /// with the node and with every other such workload, and says nothing about who is asking.
    pub fn network_addresses(&self) -> impl Iterator<Item = NetworkAddress> + '_ {
        self.addresses
            .iter()
            .filter(|_| !self.host_network)
            .map(|address| NetworkAddress { network: Arc::clone(&self.network), address: *address })
    }
}

/// A name with virtual addresses and the workloads behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Namespace and host name.
    pub id: ServiceName,
    /// Short name.
    pub name: Arc<str>,
    /// Virtual addresses; empty for a headless service.
    pub addresses: Vec<NetworkAddress>,
    /// Ports. A target of 0 leaves it to each workload.
    pub ports: Vec<ServicePort>,
    /// Identities that may serve it, where they are not the workloads' own.
    pub subject_alt_names: Vec<Arc<str>>,
    /// Proxy that its traffic passes first.
    pub waypoint: Option<Gateway>,
    /// How to choose among its endpoints.
    pub load_balancing: LoadBalancing,
}

/// A port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ServicePort {
    /// Port clients connect to.
    pub service_port: u16,
    /// Port of the workloads; 0 where each workload names its own.
    pub target_port: u16,
}

/// How to choose among a service's endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LoadBalancing {
    /// What an endpoint should share with the client, most important first.
    pub preference: Vec<RoutingScope>,
    /// What happens when none shares it.
    pub mode: BalanceMode,
    /// Whether unready endpoints may be chosen (`publishNotReadyAddresses`).
    pub health_policy: HealthPolicy,
    /// For how long a client is sent to the endpoint that its last connection went to (`sessionAffinity: ClientIP`).
    pub session_affinity: Option<Duration>,
}

/// Something a client and an endpoint may have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RoutingScope {
    /// Region.
    Region,
    /// Zone.
    Zone,
    /// Sub-zone.
    Subzone,
    /// Node.
    Node,
    /// Cluster.
    Cluster,
    /// Network.
    Network,
}

impl RoutingScope {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Region => "region",
            Self::Zone => "zone",
            Self::Subzone => "subzone",
            Self::Node => "node",
            Self::Cluster => "cluster",
            Self::Network => "network",
        }
    }
}

/// What to do with endpoints that do not share every preferred scope.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BalanceMode {
    /// No preference: all endpoints alike.
    #[default]
    Any,
    /// Only endpoints that share every scope.
    Strict,
    /// Those that share most scopes first, the others when these are gone.
    Failover,
    /// The client's own choice of address, without balancing.
    Passthrough,
}

/// Which endpoints take part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthPolicy {
    /// Healthy ones only.
    #[default]
    OnlyHealthy,
    /// All.
    AllowAll,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Endpoint;
    use crate::telemetry::ConnectionRecord;

    /// There are many of them: a field more is megabytes more.
    #[test]
    fn what_there_are_many_of_is_small() {
        let sizes = [size_of::<Workload>(), size_of::<Endpoint>(), size_of::<ConnectionRecord>()];
        assert!(sizes.into_iter().zip([104, 16, 232]).all(|(size, limit)| size <= limit), "{sizes:?}");
    }
}
