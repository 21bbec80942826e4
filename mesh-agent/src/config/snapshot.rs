//! The immutable state that every decision is taken from.
//!
//! The maps are persistent (`imbl`): a new snapshot shares everything with the one before it but what changed,
//! so that one changed endpoint among 100,000 workloads costs a handful of nodes, not a copy.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Deref;
use std::sync::Arc;

use imbl::OrdMap;
use serde::Serialize;

use super::load::EndpointLoad;
use super::model::{
    BalanceMode, HealthPolicy, Locality, NetworkAddress, PortMapping, RoutingScope, Service, ServiceName,
    Workload,
};
use super::table::{Keyed, Table};
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
    /// Which of the workload's services it is.
    pub(super) role: u32,
}

impl Endpoint {
    /// Its ports for this service.
    pub fn ports(&self) -> &[PortMapping] {
        let role = usize::try_from(self.role).unwrap_or(usize::MAX);
        self.workload.services.get(role).map_or(&[], |(_, ports)| ports.as_slice())
    }

    /// The workload's port for `service_port`, if it serves that.
    pub fn target_port(&self, service_port: u16) -> Option<u16> {
        self.ports().iter().find(|port| port.service_port == service_port).map(|port| port.target_port)
    }

    /// How busy it is.
    pub fn load(&self) -> &Arc<EndpointLoad> {
        self.workload.load.get()
    }
}

/// Every endpoint of a service, healthy or not, in the order of their uids.
#[derive(Debug, Clone, Default)]
pub struct Endpoints(Option<Arc<[Endpoint]>>);

impl Endpoints {
    pub(super) fn new(mut endpoints: Vec<Endpoint>) -> Self {
        endpoints.sort_by(|one, other| one.workload.uid.cmp(&other.workload.uid));
        Self((!endpoints.is_empty()).then(|| endpoints.into()))
    }

    /// The endpoint with this uid.
    pub fn get(&self, uid: &str) -> Option<&Endpoint> {
        let place = self.binary_search_by(|endpoint| (*endpoint.workload.uid).cmp(uid)).ok()?;
        self.0.as_deref()?.get(place)
    }
}

impl Deref for Endpoints {
    type Target = [Endpoint];

    fn deref(&self) -> &[Endpoint] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// Endpoints that are equally near.
#[derive(Debug, Clone)]
pub struct Tier {
    endpoints: Arc<[Endpoint]>,
    heaviest: u32,
}

impl Tier {
    pub(super) fn new(endpoints: Arc<[Endpoint]>) -> Self {
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
    /// Every endpoint, healthy or not.
    pub endpoints: Endpoints,
    /// Endpoints that may be chosen, in tiers: those of a later tier only when the earlier ones failed.
    pub tiers: Arc<[Tier]>,
}

impl ServiceEntry {
    pub(super) fn new(service: Arc<Service>, endpoints: Endpoints, node: &LocalNode) -> Self {
        let tiers = tiers(&service, &endpoints, node);
        Self { service, endpoints, tiers }
    }
}

/// Sorts the endpoints that may be chosen by how much they share with this node. Where none of those may that are ready, it is
/// those that are being ended and still answer: the last pods of a rolling update, before the new ones are ready.
fn tiers(service: &Service, endpoints: &Endpoints, node: &LocalNode) -> Arc<[Tier]> {
    let all = service.load_balancing.health_policy == HealthPolicy::AllowAll;
    let ready = ranked(service, endpoints, node, |workload| workload.healthy || all);
    if !ready.is_empty() {
        return ready;
    }
    ranked(service, endpoints, node, |workload| workload.terminating)
}

fn ranked(
    service: &Service,
    endpoints: &Endpoints,
    node: &LocalNode,
    may_be_chosen: impl Fn(&Workload) -> bool,
) -> Arc<[Tier]> {
    let balancing = &service.load_balancing;
    let preference = match balancing.mode {
        BalanceMode::Any | BalanceMode::Passthrough => &[][..],
        BalanceMode::Strict | BalanceMode::Failover => &balancing.preference[..],
    };
    // ranked[k]: endpoints that share the first `preference.len() - k` scopes.
    let mut ranked: Vec<Vec<Endpoint>> = vec![Vec::new(); preference.len() + 1];
    for endpoint in endpoints.iter() {
        if !may_be_chosen(&endpoint.workload) {
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
    let tier = |tier: Vec<Endpoint>| match &endpoints.0 {
        // Mostly it is all of them: no second list.
        Some(all) if tier.len() == all.len() => Tier::new(Arc::clone(all)),
        _ => Tier::new(tier.into()),
    };
    ranked.into_iter().filter(|tier| !tier.is_empty()).map(tier).collect()
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

impl Keyed for Arc<Workload> {
    type Key = str;

    fn has_key(&self, key: &str) -> bool {
        *self.uid == *key
    }

    fn with_key<T>(&self, read: impl FnOnce(&str) -> T) -> T {
        read(&self.uid)
    }
}

/// What is found under one of its addresses.
#[derive(Debug)]
pub(super) struct AtAddress<V> {
    pub(super) value: Arc<V>,
    /// Which of them.
    pub(super) index: usize,
}

impl<V> Clone for AtAddress<V> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), index: self.index }
    }
}

impl Keyed for AtAddress<Workload> {
    type Key = NetworkAddress;

    fn has_key(&self, key: &NetworkAddress) -> bool {
        self.value.addresses.get(self.index) == Some(&key.address) && self.value.network == key.network
    }

    fn with_key<T>(&self, read: impl FnOnce(&NetworkAddress) -> T) -> T {
        let address = self.value.addresses.get(self.index).copied();
        let address = address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        read(&NetworkAddress { network: Arc::clone(&self.value.network), address })
    }
}

impl Keyed for AtAddress<ServiceEntry> {
    type Key = NetworkAddress;

    fn has_key(&self, key: &NetworkAddress) -> bool {
        self.value.service.addresses.get(self.index) == Some(key)
    }

    fn with_key<T>(&self, read: impl FnOnce(&NetworkAddress) -> T) -> T {
        match self.value.service.addresses.get(self.index) {
            Some(address) => read(address),
            None => read(&NetworkAddress { network: Arc::default(), address: Ipv4Addr::UNSPECIFIED.into() }),
        }
    }
}

/// Everything the agent knows of the mesh at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub(super) revision: u64,
    pub(super) node: LocalNode,
    pub(super) workloads: Table<Arc<Workload>>,
    pub(super) workloads_by_address: Table<AtAddress<Workload>>,
    pub(super) services: OrdMap<ServiceName, Arc<ServiceEntry>>,
    pub(super) services_by_address: Table<AtAddress<ServiceEntry>>,
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
        self.service_by_network_address(&self.local(address))
    }

    /// The service that has this virtual address in the network named with it.
    pub fn service_by_network_address(&self, address: &NetworkAddress) -> Option<&Arc<ServiceEntry>> {
        self.services_by_address.get(address).map(|at| &at.value)
    }

    /// The service with this name.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<ServiceEntry>> {
        self.services.get(name)
    }

    /// The workload that has this address in the node's network.
    pub fn workload_by_address(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.workload_by_network_address(&self.local(address))
    }

    /// The workload that has this address in the network named with it.
    pub fn workload_by_network_address(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        self.workloads_by_address.get(address).map(|at| &at.value)
    }

    /// The workload with this uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// How busy a workload is, as far as this node's connections go.
    pub fn load(&self, uid: &str) -> Option<&Arc<EndpointLoad>> {
        self.workload(uid).map(|workload| workload.load.get())
    }

    /// All workloads, in no particular order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter()
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
