//! Which files somebody is writing, and which were written to, as far as events tell.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use notify::EventKind;
use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};

/// A file whose close is not seen by then is read as it is: the event may have been lost.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

/// Whether a writer closed a file.
pub(super) fn is_close(event: &notify::Event) -> bool {
    event.kind == EventKind::Access(AccessKind::Close(AccessMode::Write))
}

/// Files that were written to and not closed since.
#[derive(Debug, Default)]
pub(super) struct Writers {
    until: HashMap<PathBuf, Instant>,
    written: HashSet<PathBuf>,
}

impl Writers {
    /// Learns from an event.
    pub(super) fn note(&mut self, event: &notify::Event) {
        let now = Instant::now();
        let manifests = event.paths.iter().filter(|path| super::directory::is_manifest(path));
        self.written.extend(manifests.cloned());
        match event.kind {
            EventKind::Modify(ModifyKind::Data(_)) | EventKind::Create(CreateKind::File) => {
                for path in event.paths.iter().filter(|path| super::directory::is_manifest(path)) {
                    // Created together with a link or a rename, a file has no writer: it is there at once.
                    if path.is_symlink() {
                        continue;
                    }
                    self.until.insert(path.clone(), now + PATIENCE);
                }
            }
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Name(_)) => {
                for path in &event.paths {
                    self.until.remove(path);
                }
            }
            _ => {}
        }
        self.until.retain(|_, until| *until > now);
    }

    /// The files that were written to, renamed or removed since this was last asked.
    pub(super) fn take_written(&mut self) -> impl Iterator<Item = PathBuf> {
        std::mem::take(&mut self.written).into_iter()
    }

    /// Whether there is something to look at: a file that was written to and is not being written any more.
    pub(super) fn has_news(&self) -> bool {
        self.until.is_empty() || self.written.iter().any(|path| !self.until.contains_key(path))
    }

    /// Whether the file may be half-written.
    pub(super) fn is_writing(&self, path: &Path) -> bool {
        self.until.get(path).is_some_and(|until| *until > Instant::now())
    }

    /// Time until the first file is read although its close was not seen.
    pub(super) fn next_expiry(&self) -> Option<Duration> {
        let now = Instant::now();
        let left = self.until.values().map(|until| until.saturating_duration_since(now));
        // An instant later, when the look will see it as expired.
        left.filter(|left| !left.is_zero()).min().map(|left| left + Duration::from_millis(1))
    }
}
