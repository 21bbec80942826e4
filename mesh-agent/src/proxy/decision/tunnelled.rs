//! What a connection asks for that comes out of a tunnel.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_xds::identity::Identity;

use super::super::tunnel::Authority;
use super::upstream::target_port;
use super::{Decision, Refusal, decide_inbound};
use crate::config::{Service, ServiceEntry, Snapshot};
use crate::pods::LocalPod;
use crate::telemetry::ConnectionSecurity;

#[cfg(test)]
mod tests;

/// Decides a connection to `authority` that the tunnel of `peer` brought to the local `pod`.
///
/// `client` is the other end of the tunnel, which has the client's address unless a gateway or waypoint stands
/// between. The authority must be the pod itself: its tunnel leads nowhere else. Returns also where it leads.
pub fn decide_tunnelled(
    snapshot: &Snapshot,
    pod: &Arc<LocalPod>,
    peer: Arc<Identity>,
    client: SocketAddr,
    tunnel: SocketAddr,
    authority: &Authority,
) -> (Decision, SocketAddr) {
    let (destination, service, refusal) = match resolve(snapshot, pod, tunnel, authority) {
        Ok((destination, service)) => (destination, service, None),
        Err(refusal) => (tunnel, None, Some(refusal)),
    };
    let mut decision = decide_inbound(snapshot, pod, client, destination, None);
    // A gateway or waypoint speaks for others, and nothing of theirs is known but what it says.
    decision.source = decision.source.filter(|workload| workload.identity() == *peer);
    decision.identity = Some(peer);
    decision.security = ConnectionSecurity::MutualTls;
    decision.service = service;
    if let Some(refusal) = refusal {
        decision.outcome = Err(refusal);
    }
    (decision, destination)
}

fn resolve(
    snapshot: &Snapshot,
    pod: &LocalPod,
    tunnel: SocketAddr,
    authority: &Authority,
) -> Result<(SocketAddr, Option<Arc<Service>>), Refusal> {
    let refused = || Refusal::NotThisPod { authority: authority.to_string(), pod: Arc::clone(&pod.uid) };
    match authority {
        Authority::Address(address) if address.port() == mesh_xds::HBONE_PORT => Err(refused()),
        Authority::Address(address) if pod.addresses.contains(&address.ip()) => Ok((*address, None)),
        Authority::Address(_) => Err(refused()),
        Authority::Name { host, port } => {
            let workload = snapshot.workload(&pod.uid).ok_or_else(refused)?;
            let serving = |entry: &Arc<ServiceEntry>| {
                let endpoint = entry.endpoints.get(&workload.uid)?;
                let target = target_port(&entry.service, endpoint, *port)?;
                Some((SocketAddr::new(tunnel.ip(), target), Some(Arc::clone(&entry.service))))
            };
            workload
                .services
                .iter()
                .filter(|(name, _)| *name.hostname == **host)
                .filter_map(|(name, _)| snapshot.service(name))
                .find_map(serving)
                .ok_or_else(refused)
        }
    }
}
