//! Tells the observer about a connection: once when it is open on both sides, once when it is over.
//!
//! Where client and server are both pods of this node, one relay is two connections to everybody who reads
//! metrics: the client's agent reports it as source, the server's agent as destination, and here both are us.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use mesh_xds::identity::Identity;

use super::connection::{Identified, Origin, Refused};
use super::decision::{Decision, Target, Upstream};
use super::worker::Worker;
use crate::config::{Service, Workload};
use crate::telemetry::{
    ConnectionEnd, ConnectionRecord, ConnectionSecurity, Direction, Peer, ResponseFlag, Traffic, Transport,
};

/// The report of one connection. Dropped without having been closed, it says that the connection was cut: that is
/// how the connections end that outlive the drain time.
pub(super) struct Report {
    worker: Rc<Worker>,
    state: State,
}

enum State {
    /// Not open yet.
    Deciding(Box<Facts>),
    /// Open; the records of the agent's roles.
    Open(Arc<ConnectionRecord>, Option<Arc<ConnectionRecord>>),
    Closed,
}

/// What is known before an upstream is.
struct Facts {
    direction: Direction,
    client: SocketAddr,
    original_destination: SocketAddr,
    source: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
    proof: Proof,
    transport: Transport,
    opened_at: SystemTime,
    opened: Instant,
}

/// What has been proved of a connection's two ends.
#[derive(Debug, Clone, Default)]
pub(super) struct Proof {
    pub(super) source: Option<Arc<Identity>>,
    pub(super) destination: Option<Arc<Identity>>,
    pub(super) security: ConnectionSecurity,
}

impl Proof {
    /// What is known when the connection is accepted.
    fn of(decision: &Decision, trust_domain: &Arc<str>) -> Self {
        let source = decision.identity.clone();
        match decision.direction {
            // Whether the server knows the client is seen once it is connected to.
            Direction::Outbound => Self { source, ..Self::default() },
            Direction::Inbound => {
                let pod = decision.pod.as_ref();
                let destination = pod.map(|pod| Arc::new(pod.identity(trust_domain)));
                Self { source, destination, security: decision.security }
            }
        }
    }

    /// What is known once it is connected, or was to be.
    fn towards(&self, upstream: &Upstream, peer: Option<&Arc<Identity>>) -> Self {
        let security = if upstream.tunnel.is_some() && peer.is_some() {
            ConnectionSecurity::MutualTls
        } else if upstream.server_side.is_some() && self.source.is_some() {
            ConnectionSecurity::SameNode
        } else {
            self.security
        };
        Self {
            source: self.source.clone(),
            destination: peer.or(self.destination.as_ref()).cloned(),
            security,
        }
    }
}

impl Report {
    pub(super) fn new(worker: &Rc<Worker>, origin: &Origin, identified: &Identified) -> Self {
        let decision = &identified.decision;
        let proof = Proof::of(decision, identified.trust_domain());
        let transport = match &decision.outcome {
            Ok(Target::Single(upstream)) => upstream.path.transport(),
            Ok(Target::Waypoint { .. }) => Transport::Hbone,
            Ok(Target::Service { .. }) | Err(_) => Transport::Plain,
        };
        let facts = Box::new(Facts {
            direction: decision.direction,
            client: origin.client,
            original_destination: origin.destination,
            source: decision.source.clone(),
            service: decision.service.clone(),
            proof,
            transport,
            opened_at: origin.opened_at,
            opened: origin.opened,
        });
        Self { worker: Rc::clone(worker), state: State::Deciding(facts) }
    }

    /// The connection is open on both sides; returns what its bytes are counted in.
    pub(super) fn opened(
        &mut self,
        upstream: &Upstream,
        peer: Option<&Arc<Identity>>,
        attempts: u32,
    ) -> Arc<Traffic> {
        let traffic = Arc::default();
        if let State::Deciding(facts) = &mut self.state {
            facts.proof = facts.proof.towards(upstream, peer);
            let own = Arc::new(facts.record(&self.worker, Some(upstream), attempts, &traffic));
            self.worker.observer.opened(&own);
            let server_side = upstream.server_side.is_some().then(|| {
                let record = Arc::new(facts.server_side(&self.worker, upstream, &traffic));
                self.worker.observer.opened(&record);
                record
            });
            self.state = State::Open(own, server_side);
        }
        traffic
    }

    /// The connection was refused before it was open on both sides.
    pub(super) fn refused(mut self, refused: &Refused) {
        if let State::Deciding(facts) = &mut self.state {
            let upstream = refused.upstream.as_ref();
            if let Some(upstream) = upstream {
                facts.proof = facts.proof.towards(upstream, refused.peer.as_ref());
            }
            let traffic = Arc::default();
            let record = facts.record(&self.worker, upstream, refused.attempts, &traffic);
            // What policy refuses is the server's doing, and told in its name as well.
            let server_side = upstream
                .filter(|upstream| upstream.server_side.is_some() && refused.end.flag.is_policy())
                .map(|upstream| Arc::new(facts.server_side(&self.worker, upstream, &traffic)));
            self.state = State::Open(Arc::new(record), server_side);
        }
        self.finish(&refused.end);
    }

    /// The connection is over.
    pub(super) fn closed(mut self, end: &ConnectionEnd) {
        self.finish(end);
    }

    fn finish(&mut self, end: &ConnectionEnd) {
        if let State::Deciding(facts) = &self.state {
            let record = facts.record(&self.worker, None, 0, &Arc::default());
            self.state = State::Open(Arc::new(record), None);
        }
        if let State::Open(own, server_side) = std::mem::replace(&mut self.state, State::Closed) {
            self.worker.observer.closed(&own, end);
            if let Some(record) = server_side {
                self.worker.observer.closed(&record, end);
            }
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.finish(&ConnectionEnd {
            flag: ResponseFlag::Drained,
            detail: Some("cut when the drain time was over".into()),
        });
    }
}

impl Facts {
    /// How the bytes travel between the agents of the two sides.
    fn transport(&self, upstream: Option<&Upstream>) -> Transport {
        match (self.direction, self.proof.security) {
            (Direction::Inbound, ConnectionSecurity::MutualTls) => Transport::Hbone,
            _ => upstream.map_or(self.transport, |upstream| upstream.path.transport()),
        }
    }

    fn record(
        &self,
        worker: &Worker,
        upstream: Option<&Upstream>,
        attempts: u32,
        traffic: &Arc<Traffic>,
    ) -> ConnectionRecord {
        ConnectionRecord {
            id: worker.next_id(),
            direction: self.direction,
            source: Peer {
                address: self.client,
                workload: self.source.clone(),
                identity: self.proof.source.clone(),
            },
            original_destination: self.original_destination,
            destination: upstream.map(|upstream| Peer {
                address: upstream.address,
                workload: upstream.workload.clone(),
                identity: self.proof.destination.clone(),
            }),
            service: self.service.clone(),
            transport: self.transport(upstream),
            security: self.proof.security,
            attempts,
            worker: worker.index,
            opened_at: self.opened_at,
            opened: self.opened,
            traffic: Arc::clone(traffic),
        }
    }

    /// The same connection as the agent of the server's side sees it.
    fn server_side(&self, worker: &Worker, upstream: &Upstream, traffic: &Arc<Traffic>) -> ConnectionRecord {
        ConnectionRecord {
            direction: Direction::Inbound,
            original_destination: upstream.address,
            ..self.record(worker, Some(upstream), 1, traffic)
        }
    }
}
