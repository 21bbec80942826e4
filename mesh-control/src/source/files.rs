//! Manifests in directories, watched.
//!
//! A thread of its own does the blocking work. It looks at the directories when the kernel says that something
//! changed there and nothing else has changed for a moment, so that changes made together are seen together, and
//! every few seconds in case the kernel cannot say (network file systems, links out of the directory).
//!
//! A file that is being written is left alone until its writer closes it, because half of it may well be valid:
//! a service with fewer ports, an empty file. Events tell who is writing ([`writers`]) after the fact; the kernel says
//! so at the moment of reading ([`whole`]). Should the close never be seen, it is read after a moment anyway.

mod cross_check;
mod directory;
mod document;
#[cfg(test)]
mod robustness;
mod tree;
mod validation;
mod whole;
mod writers;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tracing::{info, warn};

use super::{Batch, BatchSender};
use directory::Directory;
pub use validation::{Accepted, Place, STANDARD_INPUT, Validation, validate};
use writers::Writers;

/// Changes made together, such as the files of one `cp`, become one batch: it ends when nothing has changed for this
/// long,
const QUIET: Duration = Duration::from_millis(2);
/// or this long after its first change.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// Without events the directories are looked at this often.
const RESCAN: Duration = Duration::from_secs(2);
/// Events waiting to be looked at. One that does not fit is no loss: a look always sees everything.
const EVENT_QUEUE: usize = 4096;

/// Starts to read and watch `roots`; the first batch holds everything. The thread ends when the receiver is gone.
pub fn watch(roots: Vec<PathBuf>, batches: BatchSender) -> std::io::Result<()> {
    thread::Builder::new()
        .name("manifests".to_owned())
        .spawn(move || FileSource { directory: Directory::new(roots.clone()), roots, batches }.run())?;
    Ok(())
}

/// The resources in a text, as a file that is new would give them, and everything that is wrong with it.
#[cfg(test)]
pub(crate) fn resources(text: &str) -> (Vec<crate::model::Resource>, Vec<super::Problem>) {
    let mut file = directory::ManifestFile::default();
    file.adopt(document::Manifest::parse(std::path::Path::new("test.yaml"), text));
    (file.resources.into_values().map(|given| given.resource).collect(), file.problems)
}

struct FileSource {
    roots: Vec<PathBuf>,
    directory: Directory,
    batches: BatchSender,
}

impl FileSource {
    fn run(mut self) {
        let (events, received) = sync_channel(EVENT_QUEUE);
        // Watching begins before the first look, so that nothing falls in between.
        let watcher = self.watch(&events);
        let mut writers = Writers::default();
        let mut noticed = Instant::now();
        let mut first = true;
        while let Ok(again) = self.look(&mut writers, noticed, first) {
            first = false;
            noticed = wait(&received, &mut writers, again.unwrap_or(RESCAN));
        }
        drop(watcher);
    }

    fn watch(&self, events: &SyncSender<notify::Event>) -> Option<RecommendedWatcher> {
        let sink = events.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Opening and reading are events too, and looking at the directories does both.
            if let Ok(event) = event
                && (!event.kind.is_access() || writers::is_close(&event))
            {
                let _ = sink.try_send(event);
            }
        });
        let mut watcher = watcher
            .inspect_err(|error| warn!(%error, "changes are noticed only every {RESCAN:?}: no file events"))
            .ok()?;
        for root in &self.roots {
            if let Err(error) = watcher.watch(root, RecursiveMode::Recursive) {
                warn!(directory = %root.display(), %error, "changes are noticed only every {RESCAN:?}");
            }
        }
        Some(watcher)
    }

    /// Looks at the directories and sends what is new; returns when to look again at the latest.
    fn look(
        &mut self,
        writers: &mut Writers,
        noticed: Instant,
        first: bool,
    ) -> Result<Option<Duration>, NobodyListens> {
        for path in writers.take_written() {
            self.directory.distrust(&path);
        }
        let scan = self.directory.scan(|path| writers.is_writing(path));
        let Some(report) = scan.report else {
            return if self.batches.is_closed() { Err(NobodyListens) } else { Ok(scan.again) };
        };
        info!(
            files = report.files.len(),
            problems = report.problems.len(),
            changes = scan.changes.len(),
            first,
            "manifests read"
        );
        let batch = Batch { changes: scan.changes, noticed, report: Arc::new(report) };
        self.batches.blocking_send(batch).map(|()| scan.again).map_err(|_| NobodyListens)
    }
}

/// The receiver of batches is gone.
struct NobodyListens;

/// Waits until it is time for another look, at most for `timeout`; returns when the first sign of a change was seen.
fn wait(events: &Receiver<notify::Event>, writers: &mut Writers, timeout: Duration) -> Instant {
    let timeout = writers.next_expiry().unwrap_or(RESCAN).min(RESCAN).min(timeout);
    let first = match events.recv_timeout(timeout) {
        Ok(event) => event,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            // Without a watcher the channel stays open: this function holds no sender, the source does.
            return Instant::now();
        }
    };
    let noticed = Instant::now();
    writers.note(&first);
    loop {
        let left = DEBOUNCE.saturating_sub(noticed.elapsed());
        // What is being written now belongs to the change, and cannot be read before.
        let patience = if writers.has_news() { QUIET.min(left) } else { left };
        match events.recv_timeout(patience) {
            Ok(event) => writers.note(&event),
            Err(_) => return noticed,
        }
        if left.is_zero() {
            return noticed;
        }
    }
}
