//! Which endpoints the kernel may choose, as a pure function of the configuration and the node's pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use mesh_common::{Address, LocalEndpoint, LocalEndpoints, MAX_LOCAL_ENDPOINTS, ServicePort};

use crate::config::{BalanceMode, Endpoint, Service, ServiceEntry, Snapshot, Tier};
use crate::pods::{LocalPod, LocalPods};
use crate::proxy::decision::{check_endpoint, endpoint_address};

/// By address and port of the service: the shares of its endpoints on this node.
pub type Plan = BTreeMap<SocketAddr, Shares>;

/// The endpoints of a service on this node, and what they weigh among all that may be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shares {
    /// Address and weight.
    local: Vec<(SocketAddr, u32)>,
    /// All weights, of endpoints here and elsewhere.
    total: u32,
}

impl Shares {
    /// The endpoints on this node that the kernel connects `client` to. It refuses the others as `mesh_common::admits` does.
    pub fn admitted(&self, client: &LocalPod) -> Vec<SocketAddr> {
        let admitted = |endpoint: &SocketAddr| {
            !client.addresses.contains(&endpoint.ip())
                && client.redirection.outbound(endpoint.ip(), endpoint.port()).captured
        };
        self.local.iter().map(|(address, _)| *address).filter(admitted).collect()
    }
}

/// The plan of this moment. Looks at the services of the node's own pods only, not at all there are.
pub fn plan(snapshot: &Snapshot, pods: &LocalPods, now: Instant) -> Plan {
    let here = pods.iter().filter(|pod| pod.enrolled);
    let workloads = here.filter_map(|pod| snapshot.workload_by_address(*pod.addresses.first()?));
    let services: BTreeSet<_> =
        workloads.flat_map(|workload| workload.services.iter().map(|(name, _)| name)).collect();
    let mut plan = Plan::new();
    for entry in services.into_iter().filter_map(|name| snapshot.service(name)) {
        for address in addresses(snapshot, &entry.service) {
            if let Some(shares) = shares(snapshot, pods, entry, address, now) {
                plan.insert(address, shares);
            }
        }
    }
    plan
}

/// The addresses and ports under which the kernel may choose for the agent.
fn addresses<'a>(snapshot: &'a Snapshot, service: &'a Service) -> impl Iterator<Item = SocketAddr> + 'a {
    let balancing = &service.load_balancing;
    // Which endpoint a client had last only the agent remembers.
    let l4_only = service.waypoint.is_none()
        && balancing.mode != BalanceMode::Passthrough
        && balancing.session_affinity.is_none();
    let here = move |network: &str| l4_only && network == &*snapshot.node().network;
    let addresses = service.addresses.iter().filter(move |address| here(&address.network));
    addresses.flat_map(|address| {
        service.ports.iter().map(|port| SocketAddr::new(address.address, port.service_port))
    })
}

/// `None` where the agent has to choose by itself: no endpoint of those that come first is here, or none may be
/// chosen now.
fn shares(
    snapshot: &Snapshot,
    pods: &LocalPods,
    entry: &ServiceEntry,
    address: SocketAddr,
    now: Instant,
) -> Option<Shares> {
    let available = |endpoint: &&Endpoint| {
        endpoint.workload.weight > 0
            && !endpoint.load().is_ejected(now)
            && check_endpoint(snapshot, &entry.service, endpoint, address).is_ok()
    };
    // As the agent chooses: from the first tier that has an endpoint to choose.
    let first = |tier: &Tier| tier.iter().filter(available).cloned().collect::<Vec<_>>();
    let endpoints = entry.tiers.iter().map(first).find(|endpoints| !endpoints.is_empty())?;
    // The kernel counts in 32 bits; nobody gives weights in billions on purpose.
    let total: u64 = endpoints.iter().map(|endpoint| u64::from(endpoint.workload.weight)).sum();
    let total = u32::try_from(total).ok()?;
    let local: Vec<_> = endpoints
        .iter()
        .filter_map(|endpoint| local(snapshot, pods, &entry.service, endpoint, address))
        .take(MAX_LOCAL_ENDPOINTS)
        .collect();
    (!local.is_empty()).then_some(Shares { local, total })
}

/// An endpoint's address and weight, if a client may be connected to it instead of to `address`.
fn local(
    snapshot: &Snapshot,
    pods: &LocalPods,
    service: &Service,
    endpoint: &Endpoint,
    address: SocketAddr,
) -> Option<(SocketAddr, u32)> {
    let workload = &endpoint.workload;
    if workload.waypoint.is_some() || workload.host_network || workload.network != snapshot.node().network {
        return None;
    }
    let place = endpoint_address(service, endpoint, address.port(), address.ip()).ok()?;
    // A socket cannot change its family.
    let pod = pods.enrolled_by_address(place.ip()).filter(|_| place.is_ipv4() == address.is_ipv4())?;
    (pod.uid == workload.uid).then_some((place, workload.weight))
}

/// The plan in the kernel's form.
pub(super) fn for_kernel(plan: &Plan) -> BTreeMap<ServicePort, LocalEndpoints> {
    plan.iter()
        .map(|(service, shares)| {
            let mut value = LocalEndpoints {
                total: shares.total,
                count: 0,
                endpoints: [LocalEndpoint::NONE; MAX_LOCAL_ENDPOINTS],
            };
            let mut until = 0;
            for (place, (address, weight)) in value.endpoints.iter_mut().zip(&shares.local) {
                until += weight;
                *place =
                    LocalEndpoint { address: address.ip().into(), until, port: address.port(), reserved: 0 };
                value.count += 1;
            }
            (ServicePort::new(Address::from(service.ip()), service.port()), value)
        })
        .collect()
}
