//! A decision with everything that was weighed, in a form that can leave the process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use mesh_xds::identity::Identity;
use serde::Serialize;

use crate::config::{Endpoint, EndpointLoad, LoadBalancing, Snapshot, Workload};
use crate::pods::LocalPods;
use crate::telemetry::{Direction, ResponseFlag};

use super::{
    Decision, Path, Refusal, SourceAddress, Target, TunnelPath, Unusable, Upstream, check_endpoint, decide,
};

/// What would happen to a connection, and why.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// Who would open it.
    pub client: SocketAddr,
    /// To what address.
    pub destination: SocketAddr,
    /// The agent's role.
    pub direction: Direction,
    /// Uid of the local pod it would take this role for.
    pub pod: Option<Arc<str>>,
    /// Uid of the client's workload.
    pub source: Option<Arc<str>>,
    /// Who the client has proved to be.
    pub identity: Option<String>,
    /// The service, as `namespace/hostname`.
    pub service: Option<String>,
    /// How the service chooses among its endpoints.
    pub load_balancing: Option<LoadBalancing>,
    /// Where it could lead: places of equal distance together, the nearest first. Empty where it is refused.
    pub tiers: Vec<Vec<Candidate>>,
    /// Endpoints that cannot be chosen.
    pub set_aside: Vec<SetAside>,
    /// Why it would be refused.
    pub refusal: Option<Refusal>,
    /// The refusal in words.
    pub reason: Option<String>,
    /// The refusal in access logs.
    pub flag: ResponseFlag,
}

/// A place that a connection could lead to.
#[derive(Debug, Clone, Serialize)]
pub struct Candidate {
    /// Uid of the workload, where the mesh knows it.
    pub workload: Option<Arc<str>>,
    /// Node of the workload.
    pub node: Option<Arc<str>>,
    /// Address and port.
    pub address: SocketAddr,
    /// How the bytes would get there.
    pub path: Path,
    /// The tunnel they would go through.
    pub tunnel: Option<Tunnel>,
    /// Which source address it would see.
    pub source_address: SourceAddress,
    /// Whether this node's agent would also take the server's side.
    pub server_side: bool,
    /// Its share of traffic.
    pub weight: u32,
    /// Whether it says of itself that it is ready.
    pub healthy: bool,
    /// Connections from this node that are open now.
    pub active: u32,
    /// Connection attempts that failed in a row.
    pub failures: u32,
    /// Whether it is avoided for that.
    pub ejected: bool,
}

/// A tunnel that a connection could lead through.
#[derive(Debug, Clone, Serialize)]
pub struct Tunnel {
    /// Where it would be opened to.
    pub gateway: SocketAddr,
    /// Who may answer there.
    pub expected: Vec<String>,
    /// What it would be asked for.
    pub authority: Arc<str>,
    /// Who may answer at the end of a second tunnel within.
    pub inner: Option<Vec<String>>,
}

/// An endpoint that cannot be chosen.
#[derive(Debug, Clone, Serialize)]
pub struct SetAside {
    /// Uid of the workload.
    pub workload: Arc<str>,
    /// Why not.
    pub because: Because,
}

/// Why an endpoint cannot be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// It says of itself that it is not ready.
    NotReady,
    /// Its weight is 0.
    NoWeight,
    /// It does not share what the service's endpoints must share with the client.
    TooFar,
    /// It cannot be connected to.
    Unusable(Unusable),
}

impl Explanation {
    /// Decides a connection as the data path would and gathers what the decision rests on.
    pub fn new(
        snapshot: &Snapshot,
        pods: &LocalPods,
        client: SocketAddr,
        destination: SocketAddr,
        now: Instant,
    ) -> Self {
        let decision = decide(snapshot, pods, client, destination);
        let mut explanation = Self {
            client,
            destination,
            direction: decision.direction,
            pod: decision.pod.as_ref().map(|pod| Arc::clone(&pod.uid)),
            source: decision.source.as_ref().map(|workload| Arc::clone(&workload.uid)),
            identity: decision.identity.as_ref().map(ToString::to_string),
            service: decision.service.as_ref().map(|service| service.id.to_string()),
            load_balancing: decision.service.as_ref().map(|service| service.load_balancing.clone()),
            tiers: Vec::new(),
            set_aside: Vec::new(),
            refusal: decision.outcome.as_ref().err().cloned(),
            reason: decision.outcome.as_ref().err().map(ToString::to_string),
            flag: decision.outcome.as_ref().err().map(Refusal::flag).unwrap_or_default(),
        };
        explanation.gather(&decision, snapshot, pods, now);
        explanation
    }

    fn gather(&mut self, decision: &Decision, snapshot: &Snapshot, pods: &LocalPods, now: Instant) {
        if let Ok(Target::Single(upstream)) = &decision.outcome {
            self.tiers.push(vec![Candidate::new(upstream, now)]);
            return;
        }
        let entry = match &decision.outcome {
            Ok(Target::Service { entry, .. } | Target::Waypoint { entry, .. }) => entry,
            Ok(Target::Single(_)) | Err(_) => match snapshot.service_by_address(self.destination.ip()) {
                Some(entry) => entry,
                None => return,
            },
        };
        for tier in entry.tiers.iter() {
            let mut candidates = Vec::new();
            for endpoint in tier.iter() {
                let upstream = match &decision.outcome {
                    Ok(_) => {
                        decision.endpoint_upstream(snapshot, pods, endpoint, self.client, self.destination)
                    }
                    // Where the service is refused there is no way to any, but a reason why not.
                    Err(_) => match check_endpoint(snapshot, &entry.service, endpoint, self.destination) {
                        Ok(()) => continue,
                        Err(unusable) => Err(unusable),
                    },
                };
                match upstream {
                    Ok(_) if endpoint.workload.weight == 0 => self.leave_out(endpoint, Because::NoWeight),
                    Ok(upstream) => candidates.push(Candidate::new(&upstream, now)),
                    Err(unusable) => self.leave_out(endpoint, Because::Unusable(unusable)),
                }
            }
            if !candidates.is_empty() {
                self.tiers.push(candidates);
            }
        }
        for endpoint in entry.endpoints.iter() {
            let in_a_tier = |known: &Endpoint| known.workload.uid == endpoint.workload.uid;
            if !entry.tiers.iter().flat_map(|tier| tier.iter()).any(in_a_tier) {
                let because = if endpoint.workload.healthy { Because::TooFar } else { Because::NotReady };
                self.leave_out(endpoint, because);
            }
        }
    }

    fn leave_out(&mut self, endpoint: &Endpoint, because: Because) {
        self.set_aside.push(SetAside { workload: Arc::clone(&endpoint.workload.uid), because });
    }
}

impl From<&TunnelPath> for Tunnel {
    fn from(path: &TunnelPath) -> Self {
        let texts = |identities: &Arc<[Identity]>| identities.iter().map(ToString::to_string).collect();
        Self {
            gateway: path.gateway,
            expected: texts(&path.expected),
            authority: Arc::clone(&path.authority),
            inner: path.inner.as_ref().map(texts),
        }
    }
}

impl Candidate {
    fn new(upstream: &Upstream, now: Instant) -> Self {
        let workload = |read: fn(&Workload) -> Arc<str>| upstream.workload.as_deref().map(read);
        let load = |read: fn(&EndpointLoad) -> u32| upstream.load.as_deref().map(read).unwrap_or_default();
        Self {
            workload: workload(|known| Arc::clone(&known.uid)),
            node: workload(|known| Arc::clone(&known.node)),
            address: upstream.address,
            path: upstream.path,
            tunnel: upstream.tunnel.as_deref().map(Tunnel::from),
            source_address: upstream.source,
            server_side: upstream.server_side.is_some(),
            weight: upstream.workload.as_ref().map_or(1, |known| known.weight),
            healthy: upstream.workload.as_ref().is_none_or(|known| known.healthy),
            active: load(EndpointLoad::active),
            failures: load(EndpointLoad::failures),
            ejected: upstream.load.as_ref().is_some_and(|load| load.is_ejected(now)),
        }
    }
}
