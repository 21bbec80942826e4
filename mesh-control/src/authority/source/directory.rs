//! A directory that keeps what was generated.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tracing::warn;

use super::{Change, Found, STATE, SourceError};

/// Held while the state is changed: `mesh-control ca rotate` may run beside the server.
const LOCK: &str = "lock";
/// Nobody but the owner.
const PRIVATE: u32 = 0o600;
/// Larger files were not written here.
const MAX_BYTES: u64 = 1 << 20;

/// The directory.
#[derive(Debug, Clone)]
pub(in crate::authority) struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(in crate::authority) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn change(&self, change: &Change, now: SystemTime) -> Result<Found, SourceError> {
        let path = self.path.join(STATE);
        let state_error = |error| SourceError::State { path: path.clone(), error };
        // Nearly always nothing is due, and nothing has to be locked to see it.
        if let Some(kept) = self.read(&path)?
            && let (state, false) = change.apply(Some(&kept), now).map_err(state_error)?
        {
            return Found::generated(state).map_err(state_error);
        }
        let _lock = self.lock()?;
        let kept = self.read(&path)?;
        let (state, changed) = change.apply(kept.as_deref(), now).map_err(state_error)?;
        if changed {
            let written = write_file(&path, &state.write(), PRIVATE);
            written.map_err(|error| file_error(&path, "cannot be written", &error))?;
        }
        Found::generated(state).map_err(state_error)
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, SourceError> {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file_error(path, "cannot be read", &error)),
        };
        if metadata.len() > MAX_BYTES {
            let reason = format!("is larger than {MAX_BYTES} bytes: it is not what was written here");
            return Err(SourceError::File { path: path.to_owned(), reason });
        }
        let mode = metadata.permissions().mode();
        if mode & 0o077 != 0 {
            warn!(file = %path.display(), mode = format!("{:o}", mode & 0o777), "others may read private keys: make it 0600");
            // Once is enough; and it may be that this is not allowed.
            let _ = fs::set_permissions(path, fs::Permissions::from_mode(PRIVATE));
        }
        fs::read(path).map(Some).map_err(|error| file_error(path, "cannot be read", &error))
    }

    /// Waits for others that change the state, which takes them milliseconds.
    fn lock(&self) -> Result<File, SourceError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
        made.map_err(|error| file_error(&self.path, "cannot be made", &error))?;
        let path = self.path.join(LOCK);
        let open = || {
            let file =
                OpenOptions::new().create(true).truncate(false).write(true).mode(PRIVATE).open(&path)?;
            file.lock()?;
            Ok(file)
        };
        open().map_err(|error: io::Error| file_error(&path, "cannot be locked", &error))
    }
}

fn file_error(path: &Path, what: &str, error: &io::Error) -> SourceError {
    SourceError::File { path: path.to_owned(), reason: format!("{what}: {error}") }
}

/// Replaces a file as a whole: readers, and whoever comes after a crash, find the old or the new content.
pub(in crate::authority) fn write_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.{}", std::process::id()));
    let write = || {
        // A left-over of a process that died would keep its permissions.
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}
