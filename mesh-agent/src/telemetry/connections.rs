//! The connections that are open now.
//!
//! Opening and closing a connection takes one lock for a few instructions. There are several shards per
//! data-plane worker, so that a reader who walks over them (a scrape, `meshctl connections`) never holds up a
//! worker for longer than it takes to read a fraction of its connections. The registry is as bounded as the
//! proxy's connection limits are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::record::{ConnectionRecord, Direction};
use super::traffic::SeriesUse;

/// How finely each worker's connections are divided; a power of two.
const SHARDS_PER_WORKER: usize = 16;

type Shard = Mutex<HashMap<u64, OpenConnection>>;

/// Every open connection of the node.
#[derive(Debug)]
pub(super) struct Registry {
    workers: usize,
    shards: Box<[Shard]>,
}

/// A connection and what has been reported of it.
#[derive(Debug)]
struct OpenConnection {
    record: Arc<ConnectionRecord>,
    series: SeriesUse,
    /// Bytes from the client to the server, as far as reported.
    sent: u64,
    /// Bytes from the server to the client, as far as reported.
    received: u64,
}

impl OpenConnection {
    /// Adds to the metrics what was relayed since the last time.
    fn report_traffic(&mut self) {
        let (sent, received) = (self.record.traffic.sent(), self.record.traffic.received());
        self.series.add_bytes(sent.saturating_sub(self.sent), received.saturating_sub(self.received));
        (self.sent, self.received) = (sent, received);
    }
}

impl Registry {
    /// A registry for connections of workers `0..workers`.
    pub(super) fn new(workers: usize) -> Self {
        let workers = workers.max(1);
        let shards = (0..workers * SHARDS_PER_WORKER).map(|_| Shard::default()).collect();
        Self { workers, shards }
    }

    /// Remembers a connection, and the metrics it counts in.
    pub(super) fn insert(&self, record: &Arc<ConnectionRecord>, series: SeriesUse) {
        let open = OpenConnection { record: Arc::clone(record), series, sent: 0, received: 0 };
        self.shard(record).insert(record.id, open);
    }

    /// Forgets a connection; gives back the metrics it counts in, all its bytes reported.
    pub(super) fn remove(&self, record: &ConnectionRecord) -> Option<SeriesUse> {
        let mut open = self.shard(record).remove(&record.id)?;
        open.report_traffic();
        Some(open.series)
    }

    /// Brings the metrics up to date with what open connections have relayed so far.
    pub(super) fn report_traffic(&self) {
        for shard in &self.shards {
            lock(shard).values_mut().for_each(OpenConnection::report_traffic);
        }
    }

    /// The open connections, in no particular order.
    pub(super) fn list(&self) -> Vec<Arc<ConnectionRecord>> {
        let mut records = Vec::new();
        for shard in &self.shards {
            records.extend(lock(shard).values().map(|open| Arc::clone(&open.record)));
        }
        records
    }

    /// How many connections of a direction are open.
    pub(super) fn count(&self, direction: Direction) -> usize {
        let of = |shard| lock(shard).values().filter(|open| open.record.direction == direction).count();
        self.shards.iter().map(of).sum()
    }

    /// The shard of a record: one of its worker's, so that workers do not meet.
    #[allow(clippy::indexing_slicing, reason = "the index is below workers * SHARDS_PER_WORKER")]
    fn shard(&self, record: &ConnectionRecord) -> MutexGuard<'_, HashMap<u64, OpenConnection>> {
        #[allow(clippy::cast_possible_truncation, reason = "only the low bits matter")]
        let part = record.id as usize % SHARDS_PER_WORKER;
        lock(&self.shards[record.worker % self.workers * SHARDS_PER_WORKER + part])
    }
}

/// A panic elsewhere leaves a map that is still sound: each change is one insertion or removal.
fn lock(shard: &Shard) -> MutexGuard<'_, HashMap<u64, OpenConnection>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
