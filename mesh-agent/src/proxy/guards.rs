//! Ends connections that policy allowed when they were opened and no longer does.
//!
//! Every authorized connection is registered with the worker that owns it. When a change of the configuration could
//! change a decision, each worker asks policy again for its own connections, a few at a time so that relaying goes
//! on meanwhile, and wakes those that are denied.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::future::pending;
use std::pin::Pin;
use std::rc::{Rc, Weak};

use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::authorize::{NotAllowed, Subject};
use super::relay::RelayEnd;
use super::worker::Worker;
use crate::config::Snapshot;
use crate::policy::SETTLING_TIME;
use crate::telemetry::ConnectionEnd;

/// Connections that are asked about before others get their turn.
const BATCH: usize = 64;

/// The authorized connections of one worker.
#[derive(Debug, Default)]
pub(super) struct Guards {
    open: RefCell<HashMap<u64, Rc<Watched>>>,
    next: Cell<u64>,
}

#[derive(Debug)]
struct Watched {
    subject: Subject,
    /// Boxed: rare, and it takes room.
    denied: OnceCell<Box<NotAllowed>>,
    changed: Notify,
}

/// An authorized connection, for as long as this is held.
#[derive(Debug)]
pub(super) struct Guard {
    watched: Rc<Watched>,
    key: u64,
    guards: Rc<Guards>,
}

impl Guards {
    /// Registers a connection that policy just allowed.
    pub(super) fn register(self: &Rc<Self>, subject: Subject) -> Guard {
        let key = self.next.get();
        self.next.set(key.wrapping_add(1));
        let watched = Rc::new(Watched { subject, denied: OnceCell::new(), changed: Notify::new() });
        self.open.borrow_mut().insert(key, Rc::clone(&watched));
        Guard { watched, key, guards: Rc::clone(self) }
    }

    /// Asks policy again for every connection. Returns whether some are left alone only because a policy that their
    /// workload names may still be on its way.
    async fn recheck(&self, snapshot: &Snapshot, settled: bool) -> bool {
        let open: Vec<Weak<Watched>> = self.open.borrow().values().map(Rc::downgrade).collect();
        let mut unsettled = false;
        for batch in open.chunks(BATCH) {
            for watched in batch.iter().filter_map(Weak::upgrade) {
                // A pod that is gone takes its connections with it.
                let Some(Err(denied)) = watched.subject.check(snapshot) else { continue };
                if denied.may_settle() && !settled {
                    unsettled = true;
                } else if watched.denied.set(Box::new(NotAllowed::Denied(denied))).is_ok() {
                    watched.changed.notify_one();
                }
            }
            yield_now().await;
        }
        unsettled
    }
}

impl Guard {
    /// Relays until the end, or until policy no longer allows the connection.
    pub(super) async fn watch(&self, relaying: Pin<&mut impl Future<Output = RelayEnd>>) -> ConnectionEnd {
        tokio::select! {
            biased;
            end = relaying => end.into(),
            () = self.watched.changed.notified() => {
                let denied = self.watched.denied.get();
                let reason = denied.map(ToString::to_string).unwrap_or_default();
                ConnectionEnd {
                    flag: denied.map(|denied| denied.flag()).unwrap_or_default(),
                    detail: Some(format!("ended by a change of policy: {reason}")),
                }
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.guards.open.borrow_mut().remove(&self.key);
    }
}

/// Keeps the worker's open connections in line with policy, for ever.
pub(super) async fn enforce(worker: Rc<Worker>) {
    let mut snapshots = worker.snapshot.subscribe();
    let mut enforced = worker.snapshot.load().policy_revision();
    let mut settled_at: Option<Instant> = None;
    loop {
        let settled = async {
            match settled_at {
                Some(moment) => sleep_until(moment).await,
                None => pending().await,
            }
        };
        let settled = tokio::select! {
            changed = snapshots.changed() => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
            () = settled => true,
        };
        let snapshot = worker.snapshot.load();
        let revision = snapshot.policy_revision();
        if settled || revision != enforced {
            enforced = revision;
            let unsettled = worker.guards.recheck(&snapshot, settled).await;
            settled_at = unsettled.then(|| settled_at.unwrap_or_else(|| Instant::now() + SETTLING_TIME));
        }
    }
}
