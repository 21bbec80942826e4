//! Whether connections may pass in the kernel: a pure function of the configuration, the pods and the connection's ends.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_xds::HBONE_PORT;
use mesh_xds::identity::Identity;
use thiserror::Error;

use crate::config::{Snapshot, Workload};
use crate::pods::{LocalPod, LocalPods};
use crate::policy::{Denied, Request};
use crate::proxy::decision::{NotPreserved, Path, SourceAddress, Target, Upstream, decide};
use crate::steering::PassageKey;
use crate::telemetry::Direction;

/// One end of connections that pass.
#[derive(Debug, Clone)]
pub struct Party {
    /// The pod, if it is one of this node.
    pub pod: Option<Arc<LocalPod>>,
    /// Who it is, as the control server knows it, if it does.
    pub workload: Option<Arc<Workload>>,
    /// Who it has proved to be: a pod of this node, by the device it sends from.
    pub identity: Option<Arc<Identity>>,
}

impl Party {
    /// Uid of the pod.
    pub(super) fn uid(&self) -> Option<&str> {
        self.pod.as_ref().map(|pod| &*pod.uid)
    }
}

/// Both ends.
#[derive(Debug, Clone)]
pub struct Parties {
    /// Who opens the connections.
    pub client: Party,
    /// To whom.
    pub server: Party,
    /// On whose behalf they would be captured: outbound is for both, where both are of this node.
    pub direction: Direction,
}

impl Parties {
    /// Whether the kernel can follow such connections: both ends are enrolled pods of this node, or one is and the other is
    /// elsewhere. What pods outside of the mesh send on this node nobody vouches for.
    fn can_be_followed(&self) -> bool {
        let Self { client, server, .. } = self;
        match (&client.pod, &server.pod) {
            (Some(from), Some(to)) => from.enrolled && to.enrolled && from.uid != to.uid,
            (Some(pod), None) | (None, Some(pod)) => pod.enrolled,
            (None, None) => false,
        }
    }

    /// Whether both ends are pods of this node.
    pub(super) fn are_of_one_node(&self) -> bool {
        self.client.pod.is_some() && self.server.pod.is_some()
    }
}

/// What is decided.
#[derive(Debug)]
pub enum Ruling {
    /// Such connections may pass.
    Pass(Box<Parties>),
    /// They have to go through the agent.
    Through(ThroughAgent),
    /// They may not be.
    Denied(Denied),
}

/// Why a connection that may be has to go through the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ThroughAgent {
    /// The kernel does not steer for an end that is on this node.
    #[error("an end of it is on this node and no enrolled pod")]
    NotEnrolled,
    /// Nobody asks policy for it.
    #[error("the server's rules leave the port alone")]
    NotCaptured,
    /// Which policies there are is not known.
    #[error("the control server does not know the server")]
    UnknownServer,
    /// The agent does something with the bytes, the addresses, or where they go.
    #[error("its way is not straight to where it was opened to")]
    NotStraight,
}

/// Decides whether connections may pass. Policy comes before everything else: what has to go through the agent may
/// still have connections from before, in which policy has a say.
pub fn rule(snapshot: &Snapshot, pods: &LocalPods, passage: PassageKey) -> Ruling {
    let PassageKey { source, destination } = passage;
    let Some(parties) = parties(snapshot, pods, passage) else {
        return Ruling::Through(ThroughAgent::NotEnrolled);
    };
    let Parties { client, server, .. } = &parties;
    if let Some(pod) = &server.pod {
        let Some(workload) = &server.workload else { return Ruling::Through(ThroughAgent::UnknownServer) };
        if pod.enrolled {
            // A client that is elsewhere, in plain text, is nobody.
            let source = client.identity.as_deref();
            let request = Request { source, source_ip: passage.source, destination, workload };
            if let Err(denied) = snapshot.authorize(&request) {
                return Ruling::Denied(denied);
            }
        }
    }

    if !parties.can_be_followed() {
        return Ruling::Through(ThroughAgent::NotEnrolled);
    }
    if let Some(pod) = &server.pod {
        if !pod.redirection.inbound(destination.port()).captured {
            return Ruling::Through(ThroughAgent::NotCaptured);
        }
        let has_waypoint = server.workload.as_ref().is_some_and(|workload| workload.waypoint.is_some());
        if destination.port() == HBONE_PORT || has_waypoint {
            return Ruling::Through(ThroughAgent::NotStraight);
        }
    }
    // As the proxy decides it; nothing depends on the client's port.
    let decision = decide(snapshot, pods, SocketAddr::new(source, 0), destination);
    match &decision.outcome {
        Ok(Target::Single(upstream))
            if decision.service.is_none()
                && decision.pod.is_some()
                && upstream.address == destination
                && is_straight(upstream, &parties, source) =>
        {
            Ruling::Pass(Box::new(Parties { direction: decision.direction, ..parties }))
        }
        _ => Ruling::Through(ThroughAgent::NotStraight),
    }
}

/// Whether the agent would do no more than copy bytes.
fn is_straight(upstream: &Upstream, parties: &Parties, source: IpAddr) -> bool {
    let keeps_source = match upstream.source {
        SourceAddress::Preserved(address) => address == source,
        // The agent takes the node's address where answers to the pod's own might not find back to *it*. They find back to
        // the pod as they do without a mesh: the node translates the pod's address, or the network knows it.
        SourceAddress::Node(
            NotPreserved::UnknownDestination | NotPreserved::OutsideTheNodes | NotPreserved::HostNetwork,
        ) => parties.server.pod.is_none(),
        SourceAddress::Node(_) => false,
    };
    let is_direct = match upstream.path {
        Path::SameNode => parties.server.pod.is_some(),
        Path::Remote | Path::Passthrough => parties.server.pod.is_none(),
        Path::Tunnel | Path::Waypoint | Path::NetworkGateway => false,
    };
    keeps_source && is_direct && upstream.tunnel.is_none()
}

/// The ends of connections, whether they may pass or not; `None` if neither is a pod of this node.
pub(super) fn parties(snapshot: &Snapshot, pods: &LocalPods, passage: PassageKey) -> Option<Parties> {
    let PassageKey { source, destination } = passage;
    let client = party(snapshot, pods, source);
    let server = party(snapshot, pods, destination.ip());
    if client.pod.is_none() && server.pod.is_none() {
        return None;
    }
    let outbound = client
        .pod
        .as_ref()
        .is_some_and(|pod| pod.redirection.outbound(destination.ip(), destination.port()).captured);
    let direction = if outbound { Direction::Outbound } else { Direction::Inbound };
    Some(Parties { client, server, direction })
}

fn party(snapshot: &Snapshot, pods: &LocalPods, address: IpAddr) -> Party {
    let Some(pod) = pods.by_address(address) else {
        return Party { pod: None, workload: snapshot.workload_by_address(address).cloned(), identity: None };
    };
    // Another workload may have had the address before.
    let same_pod = |known: &&Arc<Workload>| *known.name() == *pod.name && known.namespace == pod.namespace;
    let by_address = || snapshot.workload_by_address(address).filter(same_pod);
    Party {
        pod: Some(Arc::clone(pod)),
        workload: snapshot.workload(&pod.uid).or_else(by_address).cloned(),
        identity: Some(Arc::new(pod.identity(&snapshot.node().trust_domain))),
    }
}

#[cfg(test)]
mod tests;
