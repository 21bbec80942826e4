//! The immutable state that every decision is taken from.
//!
//! The maps are persistent (`imbl`): a new snapshot shares everything with the one before it but what changed,
//! so that one changed endpoint among 100,000 workloads costs a handful of nodes, not a copy.

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use imbl::{HashMap, OrdMap};
use serde::Serialize;

use super::load::EndpointLoad;
use super::model::{
    BalanceMode, HealthPolicy, Locality, NetworkAddress, PortMapping, RoutingScope, Service, ServiceName,
    Workload,
};
use crate::policy::{Allowed, Denied, Policies, Request};

/// The node the agent runs on, as far as the choice of endpoints depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LocalNode {
    /// Node name.
    pub name: Arc<str>,
    /// Cluster.
    pub cluster: Arc<str>,
    /// Network of its pods.
    pub network: Arc<str>,
    /// Trust domain of its pods' identities.
    pub trust_domain: Arc<str>,
    /// Where it is; known once a workload of the node is.
    pub locality: Locality,
}

/// A workload in its role behind one service.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its ports for this service.
    pub ports: Arc<[PortMapping]>,
    /// How busy it is.
    pub load: Arc<EndpointLoad>,
}

impl Endpoint {
    /// The workload's port for `service_port`, if it serves that.
    pub fn target_port(&self, service_port: u16) -> Option<u16> {
        self.ports.iter().find(|port| port.service_port == service_port).map(|port| port.target_port)
    }
}

/// Endpoints that are equally near.
#[derive(Debug, Clone)]
pub struct Tier {
    endpoints: Vec<Endpoint>,
    heaviest: u32,
}

impl Tier {
    pub(super) fn new(endpoints: Vec<Endpoint>) -> Self {
        let heaviest = endpoints.iter().map(|endpoint| endpoint.workload.weight).max().unwrap_or_default();
        Self { endpoints, heaviest }
    }

    /// The largest weight among its endpoints.
    pub fn heaviest(&self) -> u32 {
        self.heaviest
    }
}

impl Deref for Tier {
    type Target = [Endpoint];

    fn deref(&self) -> &[Endpoint] {
        &self.endpoints
    }
}

/// A service with its endpoints, ready to choose from.
#[derive(Debug, Clone)]
pub struct ServiceEntry {
    /// The service.
    pub service: Arc<Service>,
    /// Every endpoint by workload uid, healthy or not.
    pub endpoints: OrdMap<Arc<str>, Endpoint>,
    /// Endpoints that may be chosen, in tiers: those of a later tier only when the earlier ones failed.
    pub tiers: Arc<[Tier]>,
}

impl ServiceEntry {
    pub(super) fn new(
        service: Arc<Service>,
        endpoints: OrdMap<Arc<str>, Endpoint>,
        node: &LocalNode,
    ) -> Self {
        let tiers = tiers(&service, &endpoints, node);
        Self { service, endpoints, tiers }
    }
}

/// Sorts the endpoints that may be chosen by how much they share with this node.
fn tiers(service: &Service, endpoints: &OrdMap<Arc<str>, Endpoint>, node: &LocalNode) -> Arc<[Tier]> {
    let balancing = &service.load_balancing;
    let preference = match balancing.mode {
        BalanceMode::Any | BalanceMode::Passthrough => &[][..],
        BalanceMode::Strict | BalanceMode::Failover => &balancing.preference[..],
    };
    // ranked[k]: endpoints that share the first `preference.len() - k` scopes.
    let mut ranked: Vec<Vec<Endpoint>> = vec![Vec::new(); preference.len() + 1];
    for endpoint in endpoints.values() {
        if !endpoint.workload.healthy && balancing.health_policy == HealthPolicy::OnlyHealthy {
            continue;
        }
        let shared = preference.iter().take_while(|scope| shares(**scope, &endpoint.workload, node)).count();
        if let Some(tier) = ranked.get_mut(preference.len() - shared) {
            tier.push(endpoint.clone());
        }
    }
    if balancing.mode == BalanceMode::Strict {
        ranked.truncate(1);
    }
    ranked.into_iter().filter(|tier| !tier.is_empty()).map(Tier::new).collect()
}

fn shares(scope: RoutingScope, workload: &Workload, node: &LocalNode) -> bool {
    match scope {
        RoutingScope::Region => workload.locality.region == node.locality.region,
        RoutingScope::Zone => workload.locality.zone == node.locality.zone,
        RoutingScope::Subzone => workload.locality.subzone == node.locality.subzone,
        RoutingScope::Node => workload.node == node.name,
        RoutingScope::Cluster => workload.cluster == node.cluster,
        RoutingScope::Network => workload.network == node.network,
    }
}

/// Everything the agent knows of the mesh at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub(super) revision: u64,
    pub(super) node: LocalNode,
    pub(super) workloads: HashMap<Arc<str>, Arc<Workload>>,
    pub(super) workloads_by_address: HashMap<NetworkAddress, Arc<Workload>>,
    pub(super) services: OrdMap<ServiceName, Arc<ServiceEntry>>,
    pub(super) services_by_address: HashMap<NetworkAddress, Arc<ServiceEntry>>,
    pub(super) loads: HashMap<Arc<str>, Arc<EndpointLoad>>,
    pub(super) policies: Policies,
}

impl Snapshot {
    /// Counts the changes that led here.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The node the snapshot was made for.
    pub fn node(&self) -> &LocalNode {
        &self.node
    }

    /// The service that has this virtual address in the node's network.
    pub fn service_by_address(&self, address: IpAddr) -> Option<&Arc<ServiceEntry>> {
        self.services_by_address.get(&self.local(address))
    }

    /// The service that has this virtual address in the network named with it.
    pub fn service_by_network_address(&self, address: &NetworkAddress) -> Option<&Arc<ServiceEntry>> {
        self.services_by_address.get(address)
    }

    /// The service with this name.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<ServiceEntry>> {
        self.services.get(name)
    }

    /// The workload that has this address in the node's network.
    pub fn workload_by_address(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads_by_address.get(&self.local(address))
    }

    /// The workload that has this address in the network named with it.
    pub fn workload_by_network_address(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        self.workloads_by_address.get(address)
    }

    /// The workload with this uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// How busy a workload is, as far as this node's connections go.
    pub fn load(&self, uid: &str) -> Option<&Arc<EndpointLoad>> {
        self.loads.get(uid)
    }

    /// All workloads, in no particular order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// All services by name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.services.values()
    }

    /// Number of workloads.
    pub fn workload_count(&self) -> usize {
        self.workloads.len()
    }

    /// Number of services.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// Decides whether a connection to a workload of this node may be made.
    ///
    /// # Errors
    /// When it may not; the error says which policy denies it and why.
    pub fn authorize(&self, request: &Request<'_>) -> Result<Allowed, Denied> {
        self.policies.authorize(request)
    }

    /// The authorization policies.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Changes only when a decision about a workload of this node could have changed.
    pub fn policy_revision(&self) -> u64 {
        self.policies.revision()
    }

    fn local(&self, address: IpAddr) -> NetworkAddress {
        NetworkAddress { network: Arc::clone(&self.node.network), address }
    }
}
