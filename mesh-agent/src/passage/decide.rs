//! Whether connections may pass in the kernel: a pure function of the configuration, the pods and the connection's ends.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_xds::identity::Identity;
use thiserror::Error;

use crate::config::{Snapshot, Workload};
use crate::pods::{LocalPod, LocalPods};
use crate::policy::{Denied, Request};
use crate::proxy::decision::{Path, SourceAddress, Target, decide};
use crate::steering::PassageKey;
use crate::telemetry::Direction;

/// Tunnels end here, at the agent and never at the pod.
const HBONE_PORT: u16 = 15_008;

/// One end of connections that pass.
#[derive(Debug, Clone)]
pub struct Party {
    /// The pod.
    pub pod: Arc<LocalPod>,
    /// The same as the control server knows it, if it does.
    pub workload: Option<Arc<Workload>>,
    /// Who it is.
    pub identity: Arc<Identity>,
}

/// Both ends.
#[derive(Debug, Clone)]
pub struct Parties {
    /// Who opens the connections.
    pub client: Party,
    /// To whom.
    pub server: Party,
    /// On whose behalf they would be captured: outbound is for both.
    pub direction: Direction,
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
    /// The kernel does not steer for both ends.
    #[error("not both ends are enrolled pods of this node")]
    NotEnrolled,
    /// Nobody asks policy for it.
    #[error("the server's rules leave the port alone")]
    NotCaptured,
    /// Which policies there are is not known.
    #[error("the control server does not know the server")]
    UnknownServer,
    /// The agent does something with the bytes, the addresses, or where they go.
    #[error("its way is not straight from pod to pod")]
    NotStraight,
}

/// Decides whether connections may pass. Policy comes before everything else: what has to go through the agent may
/// still have connections from before, in which policy has a say.
pub fn rule(snapshot: &Snapshot, pods: &LocalPods, passage: PassageKey) -> Ruling {
    let PassageKey { source, destination } = passage;
    let Some(Parties { client, server, .. }) = parties(snapshot, pods, passage) else {
        return Ruling::Through(ThroughAgent::NotEnrolled);
    };
    let Some(workload) = &server.workload else { return Ruling::Through(ThroughAgent::UnknownServer) };
    if server.pod.enrolled {
        // The device it sends from proves who the client is.
        let source = Some(&*client.identity);
        let request = Request { source, source_ip: passage.source, destination, workload };
        if let Err(denied) = snapshot.authorize(&request) {
            return Ruling::Denied(denied);
        }
    }

    if !client.pod.enrolled || !server.pod.enrolled || client.pod.uid == server.pod.uid {
        return Ruling::Through(ThroughAgent::NotEnrolled);
    }
    if !server.pod.redirection.inbound(destination.port()).captured {
        return Ruling::Through(ThroughAgent::NotCaptured);
    }
    if destination.port() == HBONE_PORT || workload.waypoint.is_some() {
        return Ruling::Through(ThroughAgent::NotStraight);
    }
    // As the proxy decides it; nothing depends on the client's port.
    let decision = decide(snapshot, pods, SocketAddr::new(source, 0), destination);
    match decision.outcome {
        Ok(Target::Single(upstream))
            if decision.service.is_none()
                && upstream.address == destination
                && upstream.path == Path::SameNode
                && upstream.source == SourceAddress::Preserved(source) =>
        {
            Ruling::Pass(Box::new(Parties { client, server, direction: decision.direction }))
        }
        _ => Ruling::Through(ThroughAgent::NotStraight),
    }
}

/// The ends of connections, whether they may pass or not; `None` if one is no pod of this node.
pub(super) fn parties(snapshot: &Snapshot, pods: &LocalPods, passage: PassageKey) -> Option<Parties> {
    let PassageKey { source, destination } = passage;
    let client = party(snapshot, pods.by_address(source)?, source);
    let server = party(snapshot, pods.by_address(destination.ip())?, destination.ip());
    let outbound = client.pod.redirection.outbound(destination.ip(), destination.port()).captured;
    let direction = if outbound { Direction::Outbound } else { Direction::Inbound };
    Some(Parties { client, server, direction })
}

fn party(snapshot: &Snapshot, pod: &Arc<LocalPod>, address: IpAddr) -> Party {
    // Another workload may have had the address before.
    let same_pod = |known: &&Arc<Workload>| *known.name() == *pod.name && known.namespace == pod.namespace;
    let by_address = || snapshot.workload_by_address(address).filter(same_pod);
    let identity = Identity::new(
        Arc::clone(&snapshot.node().trust_domain),
        Arc::clone(&pod.namespace),
        Arc::clone(&pod.service_account),
    );
    Party {
        pod: Arc::clone(pod),
        workload: snapshot.workload(&pod.uid).or_else(by_address).cloned(),
        identity: Arc::new(identity),
    }
}

#[cfg(test)]
mod tests;
