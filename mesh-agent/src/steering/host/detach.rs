//! Removes every trace of an agent, also of one that crashed.
//!
//! Nothing is taken from settings that may have changed since: devices and the nftables table are found by their names,
//! sysctls through the journal, pins by their directory.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::time::sleep;
use tracing::warn;

use super::instance::InstanceLock;
use super::journal::Journal;
use super::sysctls::Sysctls;
use super::{HostError, HostSettings, namespace, untrack};

#[cfg(test)]
mod tests;

/// How long to wait for the end of an agent that holds the lock.
const PATIENCE: Duration = Duration::from_secs(1);

/// Something that was removed or put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trace {
    /// Devices to the agent's network namespace, so many: only there while it is.
    Devices(usize),
    /// The nftables table.
    Untracking,
    /// A sysctl, put back to its value before.
    Sysctl(String),
    /// Pinned kernel objects, which steered until now.
    Pin(PathBuf),
    /// A file of the run directory.
    File(PathBuf),
}

impl fmt::Display for Trace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Devices(count) => write!(out, "{count} devices to the agent"),
            Self::Untracking => write!(out, "nftables table {}", untrack::TABLE),
            Self::Sysctl(name) => write!(out, "sysctl {name}, back to its value before"),
            Self::Pin(path) => write!(out, "pinned kernel objects {}", path.display()),
            Self::File(path) => write!(out, "file {}", path.display()),
        }
    }
}

/// Removes every trace of an agent from the node and says what there was.
///
/// `unload` ends steering in the kernel: it detaches the programs and removes their pins. It goes first: with the devices
/// gone, packets for the agent would be lost. A living agent is an error, unless `force`.
pub async fn detach<E: From<HostError>>(
    settings: &HostSettings,
    force: bool,
    unload: impl FnOnce() -> Result<Vec<PathBuf>, E>,
) -> Result<Vec<Trace>, E> {
    let run_dir = &settings.run_dir;
    let run_dir_was_there = run_dir.exists();
    let lock = match acquire(run_dir).await {
        Ok(lock) => Some(lock),
        Err(error @ HostError::AlreadyRunning { .. }) if force => {
            warn!(%error, "detaching nevertheless");
            None
        }
        Err(error) => return Err(error.into()),
    };

    let mut traces: Vec<Trace> = unload()?.into_iter().map(Trace::Pin).collect();
    match namespace::remove().await? {
        0 => {}
        count => traces.push(Trace::Devices(count)),
    }
    if untrack::remove()? {
        traces.push(Trace::Untracking);
    }
    match Journal::read(run_dir) {
        Ok(mut journal) => {
            let restored = Sysctls::new(&settings.proc_sys).restore(&mut journal)?;
            traces.extend(restored.into_iter().map(Trace::Sysctl));
            if journal.discard()? {
                traces.push(Trace::File(run_dir.join("journal")));
            }
        }
        // The rest is removed all the same; the file stays for whoever knows how to read it.
        Err(error @ HostError::Journal { .. }) => warn!(%error, "sysctls are left as they are"),
        Err(error) => return Err(error.into()),
    }
    if let Some(lock) = lock {
        lock.discard()?;
    }
    remove_if_empty(run_dir)?;
    if run_dir_was_there && !run_dir.exists() {
        traces.push(Trace::File(run_dir.clone()));
    }
    Ok(traces)
}

/// Waits a moment for an agent that has only just been told to stop.
async fn acquire(run_dir: &Path) -> Result<InstanceLock, HostError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match InstanceLock::acquire(run_dir) {
            Err(HostError::AlreadyRunning { .. }) if Instant::now() < deadline => {
                sleep(PATIENCE / 50).await;
            }
            outcome => return outcome,
        }
    }
}

/// The run directory may hold files of others, such as the admin socket of an agent that is being forced out.
fn remove_if_empty(directory: &Path) -> Result<(), HostError> {
    match fs::remove_dir(directory) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Err(HostError::file("deleting", directory)(error))
        }
        _ => Ok(()),
    }
}
