//! What both directions share: an accepted connection, and how its ends are told.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::io::Interest;

use super::decision::{self, Decision, Refusal, Unusable, Upstream};
use super::dial::DialError;
use super::limits::{LimitReached, Permit};
use super::relay::RelayEnd;
use super::socket::Stream;
use super::worker::Worker;
use super::{inbound, outbound};
use crate::config::{ActiveConnection, Endpoint, Snapshot};
use crate::pods::LocalPods;
use crate::telemetry::{ConnectionEnd, Direction, Incident, ResponseFlag, Traffic};

/// A connection that was just accepted: nothing is known of it but its two ends.
pub(super) struct Accepted {
    pub(super) stream: Stream,
    /// Who opened it.
    pub(super) client: SocketAddr,
    /// Where it was on its way to.
    pub(super) original_destination: SocketAddr,
    pub(super) opened: Instant,
    pub(super) opened_at: SystemTime,
}

/// A decision and the one state of the world that everything about the connection is decided from.
pub(super) struct Identified {
    pub(super) decision: Decision,
    snapshot: Arc<Snapshot>,
    pods: Arc<LocalPods>,
}

impl Identified {
    /// Whether an endpoint can be reached.
    pub(super) fn is_usable(&self, accepted: &Accepted, endpoint: &Endpoint) -> bool {
        self.decision.is_usable(&self.snapshot, endpoint, accepted.original_destination)
    }

    /// The endpoints of the service that the client, had it drawn one of them, would have reached without the agent.
    pub(super) fn left_to_kernel(&self, worker: &Worker, accepted: &Accepted) -> Vec<SocketAddr> {
        let client = self.decision.pod.as_ref().filter(|_| self.decision.direction == Direction::Outbound);
        client
            .map(|pod| worker.connect_time.left_to_kernel(pod, accepted.original_destination))
            .unwrap_or_default()
    }

    /// How to reach an endpoint of the service the connection was opened to.
    pub(super) fn endpoint_upstream(
        &self,
        accepted: &Accepted,
        endpoint: &Endpoint,
    ) -> Result<Upstream, Unusable> {
        self.decision.endpoint_upstream(
            &self.snapshot,
            &self.pods,
            endpoint,
            accepted.client,
            accepted.original_destination,
        )
    }
}

/// The server's side of a connection that is open on both.
pub(super) struct Server {
    pub(super) stream: Stream,
    pub(super) traffic: Arc<Traffic>,
    pub(super) _hold: Hold,
}

/// What an open connection counts for until it is dropped: the load of its endpoint, and one of the connections of
/// the node, of the pod it was opened by or to, and of the pod it leads to.
pub(super) type Hold = (Option<ActiveConnection>, [Option<Permit>; 3]);

/// A connection that is refused before it was open on both sides.
pub(super) struct Refused {
    /// The last upstream that was tried.
    pub(super) upstream: Option<Upstream>,
    pub(super) attempts: u32,
    pub(super) end: ConnectionEnd,
}

/// Takes an accepted connection to its end.
pub(super) async fn serve(worker: Rc<Worker>, accepted: Box<Accepted>) {
    let snapshot = worker.snapshot.load();
    let pods = worker.pods.load_full();
    let decision = decide(&worker, &accepted, &snapshot, &pods);
    if let Err(Refusal::DialledDirectly) = decision.outcome {
        // Nobody's traffic: counted, but not reported as a connection of the mesh.
        tracing::debug!(client = %accepted.client, "connection to the listener itself refused");
        worker.observer.incident(Incident::DirectConnection);
        return;
    }
    let direction = decision.direction;
    let identified = Box::new(Identified { decision, snapshot, pods });
    match direction {
        Direction::Outbound => outbound::serve(worker, accepted, identified).await,
        Direction::Inbound => inbound::serve(worker, accepted, identified).await,
    }
}

/// Decides, and tells the service of a connection whose endpoint the kernel chose.
fn decide(worker: &Worker, accepted: &Accepted, snapshot: &Snapshot, pods: &LocalPods) -> Decision {
    let (client, destination) = (accepted.client, accepted.original_destination);
    let mut decision = decision::decide(snapshot, pods, client, destination);
    if decision.service.is_none()
        && decision.direction == Direction::Outbound
        && pods.enrolled_by_address(destination.ip()).is_some()
        && let Some(service) = worker.connect_time.opened_to(client, destination)
    {
        decision.service = snapshot.service_by_address(service.ip()).map(|entry| Arc::clone(&entry.service));
    }
    decision
}

/// Runs `dial` while there is a client to dial for: until that resets the connection. A client that only ended its
/// side still wants its answer, and what it sent waits in the kernel.
pub(super) async fn while_client_waits<T>(
    client: &Stream,
    dial: impl Future<Output = Result<T, DialError>>,
) -> Result<T, Refused> {
    tokio::select! {
        biased;
        dialled = dial => dialled.map_err(Refused::from),
        _ = client.tcp().ready(Interest::ERROR) => Err(Refused {
            upstream: None,
            attempts: 0,
            end: ConnectionEnd {
                flag: ResponseFlag::DownstreamConnectionTermination,
                detail: Some("the client gave up before an endpoint answered".into()),
            },
        }),
    }
}

impl From<DialError> for Refused {
    fn from(error: DialError) -> Self {
        let end = ConnectionEnd::from(&error);
        Self { upstream: error.last.map(|(upstream, _)| upstream), attempts: error.attempts, end }
    }
}

impl From<&Refusal> for Refused {
    fn from(refusal: &Refusal) -> Self {
        let end = ConnectionEnd { flag: refusal.flag(), detail: Some(refusal.to_string()) };
        Self { upstream: None, attempts: 0, end }
    }
}

impl From<LimitReached> for Refused {
    fn from(limit: LimitReached) -> Self {
        let end = ConnectionEnd { flag: ResponseFlag::Overflow, detail: Some(limit.to_string()) };
        Self { upstream: None, attempts: 0, end }
    }
}

impl From<RelayEnd> for ConnectionEnd {
    fn from(end: RelayEnd) -> Self {
        let (flag, detail) = match end {
            RelayEnd::Complete => return Self::default(),
            RelayEnd::ClientBroke(error) => {
                (ResponseFlag::DownstreamConnectionTermination, format!("the client broke it: {error}"))
            }
            RelayEnd::ServerBroke(error) => {
                (ResponseFlag::UpstreamConnectionTermination, format!("the server broke it: {error}"))
            }
            RelayEnd::Idle => {
                (ResponseFlag::StreamIdleTimeout, "nothing was sent for the idle time-out".into())
            }
        };
        Self { flag, detail: Some(detail) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_size<A, B, F: Future>(_: impl Fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_is_small() {
        let size = future_size(serve);
        assert!(size <= 896, "the task of a connection takes {size} bytes");
    }
}
