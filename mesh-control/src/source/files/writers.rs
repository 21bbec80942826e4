//! Which files somebody is writing, as far as events tell.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use notify::EventKind;
use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};

/// A file whose close is not seen by then is read as it is: the event may have been lost.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether a writer closed a file.
pub(super) fn is_close(event: &notify::Event) -> bool {
    event.kind == EventKind::Access(AccessKind::Close(AccessMode::Write))
}

/// Files that were written to and not closed since.
#[derive(Debug, Default)]
pub(super) struct Writers {
    until: HashMap<PathBuf, Instant>,
}

impl Writers {
    /// Learns from an event.
    pub(super) fn note(&mut self, event: &notify::Event) {
        let now = Instant::now();
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
