//! What both directions share: an accepted connection, its way to the server, and how its ends are told.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_common::Arrival;
use mesh_xds::identity::Identity;
use tokio::io::Interest;
use tokio::time::sleep;

use super::authorize::{NotAllowed, Subject};
use super::decision::{self, Decision, Refusal, Target, Unusable, Upstream};
use super::dial::DialError;
use super::guards::Guard;
use super::limits::{LimitReached, Permit};
use super::relay::{RelayEnd, relay};
use super::socket::Stream;
use super::tunnel::{self, TunnelStream};
use super::worker::Worker;
use super::{inbound, outbound, tunnelled};
use crate::config::{ActiveConnection, Endpoint, Snapshot};
use crate::pods::{LocalPod, LocalPods};
use crate::telemetry::{ConnectionEnd, Direction, Incident, ResponseFlag, Traffic};

/// How often the device of a pod is looked for that has none yet.
const DEVICE_POLL: Duration = Duration::from_millis(20);

/// A connection that was just accepted: nothing is known of it but its two ends.
pub(super) struct Accepted {
    pub(super) stream: Stream,
    pub(super) origin: Origin,
}

/// The two ends of a connection, and when it came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    /// Who opened it.
    pub(super) client: SocketAddr,
    /// Where it was on its way to.
    pub(super) destination: SocketAddr,
    /// How it came.
    pub(super) arrival: Arrival,
    pub(super) opened: Instant,
    pub(super) opened_at: SystemTime,
}

impl Origin {
    /// Of a connection that comes now.
    pub(super) fn now(client: SocketAddr, destination: SocketAddr, arrival: Arrival) -> Self {
        Self { client, destination, arrival, opened: Instant::now(), opened_at: SystemTime::now() }
    }
}

/// A decision and the one state of the world that everything about the connection is decided from.
pub(super) struct Identified {
    pub(super) decision: Decision,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) pods: Arc<LocalPods>,
}

impl Identified {
    /// The trust domain of this node's pods.
    pub(super) fn trust_domain(&self) -> &Arc<str> {
        &self.snapshot.node().trust_domain
    }

    /// Whether an endpoint can be reached.
    pub(super) fn is_usable(&self, origin: &Origin, endpoint: &Endpoint) -> bool {
        self.decision.is_usable(&self.snapshot, endpoint, origin.destination)
    }

    /// The endpoints of the service that the client, had it drawn one of them, would have reached without the agent.
    pub(super) fn left_to_kernel(&self, worker: &Worker, origin: &Origin) -> Vec<SocketAddr> {
        let client = self.decision.pod.as_ref().filter(|_| self.decision.direction == Direction::Outbound);
        client
            .map(|pod| worker.connect_time.left_to_kernel(pod, origin.client, origin.destination))
            .unwrap_or_default()
    }

    /// The address of an endpoint of this network.
    pub(super) fn endpoint_address(&self, origin: &Origin, endpoint: &Endpoint) -> Option<SocketAddr> {
        self.decision.endpoint_address(&self.snapshot, endpoint, origin.destination)
    }

    /// How to reach an endpoint of the service the connection was opened to.
    pub(super) fn endpoint_upstream(
        &self,
        origin: &Origin,
        endpoint: &Endpoint,
    ) -> Result<Upstream, Unusable> {
        let Self { decision, snapshot, pods } = self;
        decision.endpoint_upstream(snapshot, pods, endpoint, origin.client, origin.destination)
    }

    /// What policy is asked about a connection to the local `pod`.
    pub(super) fn subject(&self, origin: &Origin, pod: &Arc<LocalPod>, destination: SocketAddr) -> Subject {
        Subject {
            source: self.decision.identity.clone(),
            source_ip: origin.client.ip(),
            destination,
            pod: Arc::clone(pod),
        }
    }
}

/// The server's side of a connection that is open on both.
pub(super) struct Server {
    pub(super) stream: ServerStream,
    pub(super) traffic: Arc<Traffic>,
    /// Ends the connection when policy no longer allows it; none where another agent sees to that.
    pub(super) guard: Option<Guard>,
    pub(super) _hold: Hold,
}

/// The bytes of the server's side.
pub(super) enum ServerStream {
    /// Of a socket.
    Tcp(Stream),
    /// Of a tunnel.
    Tunnel(Box<TunnelStream>),
}

/// What an open connection counts for until it is dropped: the load of its endpoint, and one of the connections of
/// the node, of the pod it was opened by or to, and of the pod it leads to.
pub(super) type Hold = (Option<ActiveConnection>, [Option<Permit>; 3]);

/// A connection that is refused before it was open on both sides.
pub(super) struct Refused {
    /// The last upstream that was tried.
    pub(super) upstream: Option<Upstream>,
    /// Who that has proved to be.
    pub(super) peer: Option<Arc<Identity>>,
    pub(super) attempts: u32,
    pub(super) end: ConnectionEnd,
}

/// Takes an accepted connection to its end.
pub(super) async fn serve(worker: Rc<Worker>, accepted: Box<Accepted>) {
    let Origin { client, destination, arrival, .. } = accepted.origin;
    if arrival == Arrival::Steered && lacks_device(&worker.pods.load(), client) {
        // Boxed: rare, and it takes room.
        Box::pin(device_of(&worker, client)).await;
    }
    let snapshot = worker.snapshot.load();
    let pods = worker.pods.load_full();
    let decision = decide(&worker, &snapshot, &pods, &accepted.origin);
    if let Err(Refusal::DialledDirectly) = decision.outcome {
        // Nobody's traffic: counted, but not reported as a connection of the mesh.
        tracing::debug!(%client, "connection to the listener itself refused");
        worker.observer.incident(Incident::DirectConnection);
        return;
    }
    let direction = decision.direction;
    if direction == Direction::Inbound
        && destination.port() == mesh_xds::HBONE_PORT
        && let Some(pod) = &decision.pod
    {
        let pod = Arc::clone(pod);
        drop((decision, snapshot, pods));
        // Boxed: there are few tunnels, and they need much more room than a connection.
        return Box::pin(tunnelled::serve(worker, accepted, pod)).await;
    }
    let identified = Box::new(Identified { decision, snapshot, pods });
    match direction {
        Direction::Outbound => outbound::serve(worker, accepted, identified).await,
        Direction::Inbound => inbound::serve(worker, accepted, identified).await,
    }
}

/// Whether the client is an enrolled pod whose device is not known yet: then it cannot be told from others that send
/// with its address, and is nobody.
fn lacks_device(pods: &LocalPods, client: SocketAddr) -> bool {
    pods.enrolled_by_address(client.ip()).is_some_and(|pod| pod.device.is_none())
}

/// Waits a moment for the device of a pod that just came.
async fn device_of(worker: &Worker, client: SocketAddr) {
    let deadline = Instant::now() + worker.settings.attempt_timeout;
    while lacks_device(&worker.pods.load(), client) && Instant::now() < deadline {
        sleep(DEVICE_POLL).await;
    }
}

/// Decides, and tells the service of a connection whose endpoint the kernel chose.
fn decide(worker: &Worker, snapshot: &Snapshot, pods: &LocalPods, origin: &Origin) -> Decision {
    let Origin { client, destination, .. } = *origin;
    if origin.arrival == Arrival::Around {
        return decision::decide_around(snapshot, pods, client, destination);
    }
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

/// Relays between a client's socket and its server, until the end or until policy no longer allows it.
pub(super) async fn relay_to(worker: &Worker, client: &mut Stream, server: &mut Server) -> ConnectionEnd {
    let Server { stream, traffic, guard, .. } = server;
    let (buffers, lifetime) = (&worker.buffers, &worker.lifetime);
    match stream {
        ServerStream::Tcp(server) => {
            let relaying = pin!(relay(client, server, traffic, buffers, lifetime));
            watched(guard.as_ref(), relaying).await
        }
        ServerStream::Tunnel(server) => {
            let relaying = pin!(tunnel::relay(client, server, traffic, buffers, lifetime));
            watched(guard.as_ref(), relaying).await
        }
    }
}

/// Relays until the end, or until the guard, where there is one, says that policy no longer allows it. The relay is
/// borrowed: a future that is handed on by value takes its room once more with every function.
pub(super) async fn watched(
    guard: Option<&Guard>,
    relaying: Pin<&mut impl Future<Output = RelayEnd>>,
) -> ConnectionEnd {
    match guard {
        Some(guard) => guard.watch(relaying).await,
        None => relaying.await.into(),
    }
}

/// Runs `opening` while there is a client to do it for: until that resets the connection. A client that only ended its
/// side still wants its answer, and what it sent waits in the kernel.
pub(super) async fn while_client_waits<T>(
    client: &Stream,
    opening: impl Future<Output = Result<T, Refused>>,
) -> Result<T, Refused> {
    tokio::select! {
        biased;
        opened = opening => opened,
        _ = client.tcp().ready(Interest::ERROR) => Err(Refused::early(ConnectionEnd {
            flag: ResponseFlag::DownstreamConnectionTermination,
            detail: Some("the client gave up before an endpoint answered".into()),
        })),
    }
}

impl Refused {
    /// Refused before anywhere was connected to.
    pub(super) fn early(end: ConnectionEnd) -> Self {
        Self { upstream: None, peer: None, attempts: 0, end }
    }

    /// Names where it would have led, where that is one place.
    pub(super) fn on_the_way_to(mut self, target: &Result<Target, Refusal>) -> Self {
        if let Ok(Target::Single(upstream)) = target {
            self.upstream = Some(upstream.clone());
        }
        self
    }
}

impl From<DialError> for Refused {
    fn from(error: DialError) -> Self {
        let end = ConnectionEnd::from(&error);
        let attempts = error.attempts;
        Self { upstream: error.last.map(|(upstream, _)| upstream), peer: None, attempts, end }
    }
}

impl From<&Refusal> for Refused {
    fn from(refusal: &Refusal) -> Self {
        Self::early(ConnectionEnd { flag: refusal.flag(), detail: Some(refusal.to_string()) })
    }
}

impl From<LimitReached> for Refused {
    fn from(limit: LimitReached) -> Self {
        Self::early(ConnectionEnd { flag: ResponseFlag::Overflow, detail: Some(limit.to_string()) })
    }
}

impl From<NotAllowed> for Refused {
    fn from(reason: NotAllowed) -> Self {
        Self::early(ConnectionEnd { flag: reason.flag(), detail: Some(reason.to_string()) })
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
        assert!(size <= 1536, "the task of a connection takes {size} bytes");
    }
}
