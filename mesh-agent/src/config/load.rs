//! What this node has seen of an endpoint: how busy it is and whether it could be connected to.
//!
//! One [`EndpointLoad`] is shared by every snapshot that knows the workload, and by every service the workload
//! stands behind. All of it is relaxed atomics: a choice made from a value that is a moment old is as good.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, Instant};

/// How long an endpoint is avoided after its first failure in a row; doubled with every other one.
const FIRST_EJECTION: Duration = Duration::from_secs(1);

/// The longest an endpoint is avoided before it is tried again.
const LONGEST_EJECTION: Duration = Duration::from_secs(30);

/// What moments are counted from, so that one fits an atomic.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// How busy and how reliable an endpoint is, as seen from this node.
#[derive(Debug, Default)]
pub struct EndpointLoad {
    active: AtomicU32,
    /// Connection attempts that failed since the last one that did not.
    failures: AtomicU32,
    /// Milliseconds since [`EPOCH`] until which the endpoint is avoided; 0 where it is not.
    avoided_until: AtomicU64,
}

impl EndpointLoad {
    /// Connections from this node that are open now.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// Counts one connection more, until the returned guard is dropped.
    pub fn enter(self: &Arc<Self>) -> ActiveConnection {
        self.active.fetch_add(1, Ordering::Relaxed);
        ActiveConnection(Arc::clone(self))
    }

    /// Connection attempts that failed in a row, up to now.
    pub fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Whether the endpoint failed lately and had better be left alone at `now`.
    pub fn is_ejected(&self, now: Instant) -> bool {
        let until = self.avoided_until.load(Ordering::Relaxed);
        until != 0 && milliseconds(now) < until
    }

    /// Notes that it could be connected to.
    pub fn succeeded(&self) {
        // Read first: a shared cache line that stays unwritten costs other cores nothing.
        if self.failures() != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.avoided_until.store(0, Ordering::Relaxed);
        }
    }

    /// Notes that it could not be connected to. Whether it is to be avoided for that is up to the caller, see
    /// [`eject`](Self::eject).
    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Has the endpoint avoided from `now` on, the longer the more often it failed; says for how long.
    pub fn eject(&self, now: Instant) -> Duration {
        let doublings = self.failures().saturating_sub(1).min(8);
        let period = (FIRST_EJECTION * (1 << doublings)).min(LONGEST_EJECTION);
        self.avoided_until.store(milliseconds(now + period), Ordering::Relaxed);
        period
    }
}

/// The load of one workload, made when it is first asked for: most workloads of a mesh are never connected to from here.
///
/// Clones of one that was asked for share it. It is no part of what a workload is: all are equal.
#[derive(Debug, Default)]
pub struct SharedLoad(OnceLock<Arc<EndpointLoad>>);

impl SharedLoad {
    /// The load.
    pub fn get(&self) -> &Arc<EndpointLoad> {
        self.0.get_or_init(Arc::default)
    }

    /// Goes on with the load of an earlier version of the workload. Does nothing once it was asked for.
    pub(super) fn succeed(&self, earlier: &Self) {
        if self.0.get().is_none() {
            // Shared even if nobody asked yet: holders of the earlier version still may.
            let _ = self.0.set(Arc::clone(earlier.get()));
        }
    }
}

impl Clone for SharedLoad {
    fn clone(&self) -> Self {
        Self(OnceLock::from(Arc::clone(self.get())))
    }
}

impl PartialEq for SharedLoad {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

fn milliseconds(moment: Instant) -> u64 {
    u64::try_from(moment.saturating_duration_since(*EPOCH).as_millis()).unwrap_or(u64::MAX)
}

/// One open connection to an endpoint.
#[derive(Debug)]
pub struct ActiveConnection(Arc<EndpointLoad>);

impl Drop for ActiveConnection {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ejection_grows_is_bounded_and_ends_with_success() {
        let load = EndpointLoad::default();
        let now = Instant::now() + Duration::from_secs(1);
        let mut periods = Vec::new();
        for _ in 0..8 {
            load.failed();
            periods.push(load.eject(now).as_secs());
        }
        assert_eq!(periods, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert!(load.is_ejected(now + Duration::from_secs(29)));
        assert!(!load.is_ejected(now + Duration::from_secs(31)));
        load.succeeded();
        assert!(!load.is_ejected(now));
        assert_eq!(load.failures(), 0);
    }

    #[test]
    fn a_connection_counts_while_its_guard_lives() {
        let load = Arc::new(EndpointLoad::default());
        let one = load.enter();
        let two = load.enter();
        assert_eq!(load.active(), 2);
        drop(one);
        drop(two);
        assert_eq!(load.active(), 0);
    }
}
