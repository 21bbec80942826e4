//! Memory that is not needed any more goes back to the system: what a start and a large synchronisation leave behind.

use std::fs;
use std::ops::Range;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::debug;

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

/// Gives free heap pages back, and the pages of the program that are only mapped: those that are run again are mapped
/// again, out of the page cache; those of the start are not.
pub fn give_back() {
    // SAFETY: it touches nothing but the allocator's own free memory, under the allocator's locks.
    unsafe { libc::malloc_trim(0) };
    match fs::read_to_string("/proc/self/smaps") {
        Ok(smaps) => clean_mappings(&smaps).into_iter().for_each(|range| unmap_pages(&range)),
        Err(error) => debug!(%error, "cannot read /proc/self/smaps: pages of the program stay mapped"),
    }
}

/// The mappings of files that cannot be written to and of which no page was ever written.
fn clean_mappings(smaps: &str) -> Vec<Range<usize>> {
    let mut clean = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        match first {
            // Relocated pages are the process's own: they would not come back from the file.
            "Anonymous:" => {
                let range = candidate.take();
                clean.extend(range.filter(|_| words.next() == Some("0")));
            }
            _ if first.ends_with(':') => {}
            range => {
                let is_readonly = matches!(words.next(), Some("r--p" | "r-xp"));
                let is_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
                candidate = parse(range).filter(|_| is_readonly && is_file);
            }
        }
    }
    clean
}

fn parse(range: &str) -> Option<Range<usize>> {
    let (start, end) = range.split_once('-')?;
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

fn unmap_pages(range: &Range<usize>) {
    let start = std::ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: a private mapping of a file, without a page of its own: what is read there is the file before and after.
    if unsafe { libc::madvise(start, range.len(), libc::MADV_DONTNEED) } != 0 {
        debug!(error = %std::io::Error::last_os_error(), "pages of the program stay mapped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clean_pages_of_files_are_given_back() {
        let smaps = "\
55d0-55d8 r--p 00000000 00:1e 42    /bin/agent
Rss:                  4 kB
Anonymous:            0 kB
55d8-55e0 r--p 00000000 00:1e 42    /bin/agent
Anonymous:            8 kB
55e0-55f0 r-xp 00000000 00:1e 42    /bin/agent
Anonymous:            0 kB
55f0-5600 rw-p 00000000 00:1e 42    /bin/agent
Anonymous:            0 kB
7ff0-7ff8 r--p 00000000 00:00 0     [vvar]
Anonymous:            0 kB
7ff8-7fff r-xp 00000000 00:00 0
Anonymous:            0 kB
";
        assert_eq!(clean_mappings(smaps), [0x55d0..0x55d8, 0x55e0..0x55f0]);
    }

    #[test]
    fn the_program_goes_on() {
        give_back();
        assert!(!clean_mappings(&fs::read_to_string("/proc/self/smaps").unwrap()).is_empty());
    }
}
