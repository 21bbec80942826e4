//! Writes changes to the cache beside the traffic: gathered for a while, in one file at a time.
//!
//! What is gathered lies encoded in large pieces of memory. A first synchronisation gathers the whole mesh, while the
//! store takes it in: were each resource an allocation of its own, it would leave a hole beside each workload that
//! stays.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mesh_xds::proto::discovery::Resource;
use prost::Message;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::{error, warn};

use super::{Cache, CacheError, Changes};
use crate::memory::give_back;

/// The least time between two files.
const INTERVAL: Duration = Duration::from_millis(200);
/// Writing takes at most this part of the time: one in so many.
const SHARE: u32 = 10;

/// Size of the pieces of memory that encoded resources lie in.
const PIECE: usize = 256 * 1024;

/// So many changes leave memory behind that is worth giving back.
const MANY: usize = 1_000;

/// Takes changes from the configuration client and brings them to disk.
#[derive(Debug, Clone)]
pub struct CacheWriter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    cache: Cache,
    /// Bounded by the number of resources in the mesh: a later change of a resource replaces the earlier one.
    pending: Mutex<Pending>,
    changed: Notify,
    /// What is pending is not complete: the file keeps the state before it.
    held: AtomicBool,
}

#[derive(Debug, Default)]
struct Pending {
    changes: Changes,
    /// Room for what comes next.
    room: BytesMut,
}

impl Pending {
    fn encode(&mut self, resource: &Resource) -> Bytes {
        let length = resource.encoded_len();
        if self.room.capacity() < length {
            self.room = BytesMut::with_capacity(PIECE.max(length));
        }
        // It has room: nothing can fail.
        let _ = resource.encode(&mut self.room);
        self.room.split().freeze()
    }
}

impl CacheWriter {
    /// A writer for `cache`; [`run`](Self::run) does the writing.
    pub fn new(cache: Cache) -> Self {
        Self {
            shared: Arc::new(Shared {
                cache,
                pending: Mutex::default(),
                changed: Notify::new(),
                held: AtomicBool::new(false),
            }),
        }
    }

    /// Notes that `resource`, called `name`, is the last good version.
    pub fn put(&self, type_url: &Arc<str>, name: Arc<str>, resource: &Resource) {
        let mut pending = self.pending();
        let encoded = pending.encode(resource);
        pending.changes.insert((Arc::clone(type_url), name), Some(encoded));
        drop(pending);
        self.shared.changed.notify_one();
    }

    /// Notes that a resource is gone.
    pub fn remove(&self, type_url: &Arc<str>, name: &Arc<str>) {
        self.pending().changes.insert((Arc::clone(type_url), Arc::clone(name)), None);
        self.shared.changed.notify_one();
    }

    /// Gathers without writing, until [`release`](Self::release): what comes next is complete only together.
    pub fn hold(&self) {
        self.shared.held.store(true, Ordering::Relaxed);
    }

    /// Writes what was gathered, and goes on writing.
    pub fn release(&self) {
        if self.shared.held.swap(false, Ordering::Relaxed) {
            self.shared.changed.notify_one();
        }
    }

    /// Forgets what is on disk and not written yet, because all of it comes anew.
    pub fn reset(&self) -> Result<(), CacheError> {
        self.take();
        self.shared.cache.clear()
    }

    /// Writes until `stop` resolves, then writes what is left.
    ///
    /// `lost` is called when the file turns out to be damaged: the state has to come anew from the server.
    pub async fn run(self, stop: impl Future<Output = ()>, lost: impl Fn()) {
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = self.shared.changed.notified() => {}
                () = &mut stop => break,
            }
            let started = Instant::now();
            self.write(&lost).await;
            let next = started + INTERVAL.max(started.elapsed() * SHARE);
            tokio::select! {
                () = sleep_until(next) => {}
                () = &mut stop => break,
            }
        }
        self.write(&lost).await;
    }

    async fn write(&self, lost: &impl Fn()) {
        if self.shared.held.load(Ordering::Relaxed) {
            return;
        }
        let changes = self.take();
        if changes.is_empty() {
            return;
        }
        let cache = self.shared.cache.clone();
        let result = tokio::task::spawn_blocking(move || {
            let merged = cache.merge(&changes);
            if merged.is_ok() && changes.len() >= MANY {
                drop(changes);
                give_back();
                return (merged, Changes::new());
            }
            (merged, changes)
        })
        .await;
        match result {
            Ok((Ok(()), _)) => {}
            Ok((Err(error @ CacheError::Damaged { .. }), _)) => {
                error!(%error, "last good configuration lost");
                if let Err(error) = self.shared.cache.clear() {
                    warn!(%error, "cannot remove the damaged file");
                }
                lost();
            }
            Ok((Err(error), changes)) => {
                warn!(%error, "cannot write the last good configuration; will try again with the next change");
                self.put_back(changes);
            }
            Err(error) => error!(%error, "writing the last good configuration"),
        }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Changes {
        mem::take(&mut *self.pending()).changes
    }

    /// Returns changes that could not be written, below those that came meanwhile.
    fn put_back(&self, changes: Changes) {
        let mut pending = self.pending();
        for (key, change) in changes {
            pending.changes.entry(key).or_insert(change);
        }
    }
}
