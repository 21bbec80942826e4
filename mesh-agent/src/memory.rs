//! Memory that is not needed any more goes back to the system: what a start and a large synchronisation leave behind.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::config::SharedSnapshot;

/// A change of the mesh by at least so many workloads leaves something to give back.
const MANY: usize = 1_000;
/// After a change: others may follow.
const SETTLING: Duration = Duration::from_millis(200);

/// Gives back what is free now, and after every change of many workloads. For ever.
pub async fn keep_small(snapshot: &SharedSnapshot) {
    let mut changes: watch::Receiver<u64> = snapshot.subscribe();
    let mut known = None;
    loop {
        sleep(SETTLING).await;
        changes.mark_unchanged();
        let workloads = snapshot.load().workload_count();
        if known.is_none_or(|known: usize| known.abs_diff(workloads) >= MANY) {
            known = Some(workloads);
            // It takes milliseconds; nobody waits for it.
            let _ = tokio::task::spawn_blocking(give_back).await;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Gives free heap pages back. Pages of the program that only its start has run are left to the kernel, which takes them
/// back when memory is short.
pub(crate) fn give_back() {
    // SAFETY: it touches nothing but the allocator's own free memory, under the allocator's locks.
    unsafe { libc::malloc_trim(0) };
}
