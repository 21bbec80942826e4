//! The connections that pass now, and their records.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use mesh_common::{FlowState, SideFlags};
use tracing::debug;

use super::decide::{Parties, Party};
use super::{PassageCounts, monotonic};
use crate::config::Service;
use crate::steering::{FlowId, PassageKey, Steering};
use crate::telemetry::{
    ConnectionEnd, ConnectionObserver, ConnectionRecord, ConnectionSecurity, Direction, Peer, ResponseFlag,
    Traffic, Transport,
};

/// Ids of records that no data-plane worker gives.
const FIRST_ID: u64 = 1 << 63;

/// Where a connection was opened to, if that was a service.
pub(super) type Origin = Option<(SocketAddr, Arc<Service>)>;

/// The connections.
pub(super) struct Live {
    observer: Arc<dyn ConnectionObserver>,
    counts: Arc<PassageCounts>,
    flows: HashMap<FlowId, Connection>,
    next_id: u64,
}

struct Connection {
    /// Of the client's side, where it has one, and of the server's.
    records: Vec<Arc<ConnectionRecord>>,
    traffic: Arc<Traffic>,
    /// Bytes that an agent before has counted.
    counted_before: (u64, u64),
    packets: u64,
    active: Instant,
}

impl Live {
    pub(super) fn new(observer: Arc<dyn ConnectionObserver>, counts: Arc<PassageCounts>) -> Self {
        Self { observer, counts, flows: HashMap::new(), next_id: FIRST_ID }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    pub(super) fn contains(&self, flow: &FlowId) -> bool {
        self.flows.contains_key(flow)
    }

    /// All but these.
    pub(super) fn missing(&self, seen: &std::collections::HashSet<FlowId>) -> Vec<FlowId> {
        self.flows.keys().filter(|flow| !seen.contains(flow)).copied().collect()
    }

    /// Those that live on verdicts which meet a condition.
    pub(super) fn on(&self, is_concerned: impl Fn(&PassageKey) -> bool) -> Vec<FlowId> {
        self.flows.keys().filter(|flow| is_concerned(&flow.passage())).copied().collect()
    }

    /// A connection is open. `counted_before` is how much of it an agent before has counted.
    pub(super) fn open(
        &mut self,
        flow: FlowId,
        parties: &Parties,
        origin: &Origin,
        counted_before: (u64, u64),
    ) {
        let traffic = Arc::new(Traffic::default());
        let records = self.records(&flow, parties, origin, &traffic);
        for record in &records {
            self.observer.opened(record);
        }
        self.counts.open.fetch_add(1, Ordering::Relaxed);
        let connection = Connection { records, traffic, counted_before, packets: 0, active: Instant::now() };
        self.flows.insert(flow, connection);
    }

    /// A connection never was open: the server refused it.
    pub(super) fn refused(&mut self, flow: &FlowId, parties: &Parties, origin: &Origin) {
        self.failed(flow, parties, origin, format!("{} refused the connection", flow.server));
    }

    /// The same, because nobody answered.
    pub(super) fn unanswered(&mut self, flow: &FlowId, parties: &Parties, origin: &Origin) {
        self.failed(flow, parties, origin, format!("{} did not answer", flow.server));
    }

    fn failed(&mut self, flow: &FlowId, parties: &Parties, origin: &Origin, detail: String) {
        let end = ConnectionEnd { flag: ResponseFlag::UpstreamConnectionFailure, detail: Some(detail) };
        for record in self.records(flow, parties, origin, &Arc::default()) {
            self.observer.closed(&record, &end);
        }
    }

    /// Counts what a connection has carried; says for how long it has carried nothing.
    pub(super) fn update(&mut self, flow: &FlowId, state: &FlowState) -> Duration {
        let Some(connection) = self.flows.get_mut(flow) else { return Duration::ZERO };
        let (sent, received) = bytes(state);
        let traffic = &connection.traffic;
        traffic.add_sent(sent.saturating_sub(connection.counted_before.0 + traffic.sent()));
        traffic.add_received(received.saturating_sub(connection.counted_before.1 + traffic.received()));
        let packets = packets(state);
        if packets != connection.packets {
            connection.packets = packets;
            connection.active = Instant::now();
        }
        connection.active.elapsed()
    }

    /// A connection is over, with this last state if that is known.
    pub(super) fn close(&mut self, flow: &FlowId, state: Option<&FlowState>, end: &ConnectionEnd) {
        if let Some(state) = state {
            self.update(flow, state);
        }
        let Some(connection) = self.flows.remove(flow) else { return };
        self.counts.open.fetch_sub(1, Ordering::Relaxed);
        for record in &connection.records {
            self.observer.closed(record, end);
        }
    }

    /// Ends a connection whose packets the kernel does not let pass any more, without waiting for the next of them.
    pub(super) fn cut(&mut self, steering: &Steering, flow: &FlowId, end: &ConnectionEnd) {
        if let Err(error) = steering.reset_flow(flow) {
            debug!(%error, client = %flow.client, server = %flow.server, "ends with its next packet only");
        }
        self.counts.cut.fetch_add(1, Ordering::Relaxed);
        self.close(flow, steering.flow(flow).as_ref(), end);
    }

    /// One record for each side that the agent would take if the connection went through it.
    fn records(
        &mut self,
        flow: &FlowId,
        parties: &Parties,
        origin: &Origin,
        traffic: &Arc<Traffic>,
    ) -> Vec<Arc<ConnectionRecord>> {
        let opened_to = origin.as_ref().map_or(flow.server, |(address, _)| *address);
        let client_side =
            (parties.direction == Direction::Outbound).then_some((Direction::Outbound, opened_to));
        let server_side = parties.server.pod.as_ref().map(|_| (Direction::Inbound, flow.server));
        let security =
            if parties.are_of_one_node() { ConnectionSecurity::SameNode } else { ConnectionSecurity::None };
        let age = monotonic().saturating_sub(Duration::from_nanos(flow.opened));
        let record = |(direction, original_destination)| {
            self.next_id += 1;
            Arc::new(ConnectionRecord {
                id: self.next_id,
                direction,
                source: peer(flow.client, &parties.client),
                original_destination,
                destination: Some(peer(flow.server, &parties.server)),
                service: origin.as_ref().map(|(_, service)| Arc::clone(service)),
                transport: Transport::Kernel,
                security,
                attempts: 1,
                worker: 0,
                opened_at: SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH),
                opened: Instant::now().checked_sub(age).unwrap_or_else(Instant::now),
                traffic: Arc::clone(traffic),
            })
        };
        client_side.into_iter().chain(server_side).map(record).collect()
    }
}

/// Bytes the client has sent, and the server.
pub(super) fn bytes(state: &FlowState) -> (u64, u64) {
    (state.side(state.client()).bytes, state.side(state.client().other()).bytes)
}

/// Packets of both.
pub(super) fn packets(state: &FlowState) -> u64 {
    state.sides.iter().map(|side| side.packets).sum()
}

/// How a connection ended that is over.
pub(super) fn end(state: &FlowState) -> ConnectionEnd {
    let broke = |end| state.side(end).flags.has(SideFlags::RESET);
    let (flag, who) = if broke(state.client()) {
        (ResponseFlag::DownstreamConnectionTermination, "client")
    } else if broke(state.client().other()) {
        (ResponseFlag::UpstreamConnectionTermination, "server")
    } else {
        return ConnectionEnd::default();
    };
    ConnectionEnd { flag, detail: Some(format!("the {who} broke it: connection reset")) }
}

fn peer(address: SocketAddr, party: &Party) -> Peer {
    Peer { address, workload: party.workload.clone(), identity: party.identity.clone() }
}
