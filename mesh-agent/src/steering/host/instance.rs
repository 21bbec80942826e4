//! One agent per node.
//!
//! Two locks, both released by the kernel when the process ends, however it ends: a file lock in the run
//! directory, and an abstract unix socket, which is unique per network namespace. Two agents that share one of
//! the two would steer the same packets or undo each other's state.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::HostError;

/// Name of the abstract socket.
const SOCKET: &[u8] = b"mesh-agent";

/// Name of the lock file in the run directory.
const LOCK_FILE: &str = "agent.lock";

/// Proof that no other agent runs on this node, for as long as it lives.
#[derive(Debug)]
pub struct InstanceLock {
    _namespace: UnixListener,
    file: File,
    path: PathBuf,
}

impl InstanceLock {
    /// Takes both locks, or says who has them.
    pub fn acquire(run_dir: &Path) -> Result<Self, HostError> {
        let namespace = lock_namespace()?;
        fs::create_dir_all(run_dir).map_err(HostError::file("creating", run_dir))?;
        let path = run_dir.join(LOCK_FILE);
        let file = lock_file(&path)?;
        Ok(Self { _namespace: namespace, file, path })
    }

    /// Deletes the lock file. Only where no agent follows, since a waiting one may have it open.
    ///
    /// # Errors
    /// When it cannot be deleted.
    pub fn discard(self) -> Result<(), HostError> {
        fs::remove_file(&self.path).map_err(HostError::file("deleting", &self.path))?;
        drop(self.file);
        Ok(())
    }
}

/// The socket is bound and never accepted from: connecting to it tells a newcomer who the owner is.
fn lock_namespace() -> Result<UnixListener, HostError> {
    let doing = "binding the abstract socket @mesh-agent";
    let address = SocketAddr::from_abstract_name(SOCKET).map_err(HostError::netlink(doing))?;
    UnixListener::bind_addr(&address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => HostError::AlreadyRunning {
            holder: socket_owner(&address).unwrap_or_else(|| "a process that cannot be asked".into()),
            lock: "the abstract socket @mesh-agent of this network namespace".into(),
        },
        _ => HostError::netlink(doing)(error),
    })
}

fn socket_owner(address: &SocketAddr) -> Option<String> {
    let stream = UnixStream::connect_addr(address).ok()?;
    let credentials = getsockopt(&stream, PeerCredentials).ok()?;
    Some(match credentials.pid() {
        0 => "a process of another pid namespace".into(),
        pid => format!("process {pid}"),
    })
}

fn lock_file(path: &Path) -> Result<File, HostError> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(HostError::file("opening", path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).map_err(HostError::file("reading", path))?;
            return Err(HostError::AlreadyRunning {
                holder: format!("process {}", holder.trim()),
                lock: path.display().to_string(),
            });
        }
        Err(TryLockError::Error(error)) => return Err(HostError::file("locking", path)(error)),
    }
    let mut replace = || -> io::Result<()> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    replace().map_err(HostError::file("writing", path))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steering::host::testing::{acquire_released, in_namespace};

    #[test]
    fn a_second_agent_is_refused_and_told_who_runs() {
        in_namespace(|| {
            let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let held = InstanceLock::acquire(one.path()).unwrap();
            let pid = format!("process {}", std::process::id());

            let same_namespace = InstanceLock::acquire(other.path()).unwrap_err().to_string();
            assert!(same_namespace.contains(&pid) && same_namespace.contains('@'), "{same_namespace}");

            let directory = one.path().to_owned();
            let same_directory = std::thread::spawn(move || {
                in_namespace(move || InstanceLock::acquire(&directory).unwrap_err().to_string())
            });
            let same_directory = same_directory.join().unwrap();
            assert!(
                same_directory.contains(&pid) && same_directory.contains("agent.lock"),
                "{same_directory}"
            );

            drop(held);
            acquire_released(one.path()).discard().unwrap();
            assert_eq!(fs::read_dir(one.path()).unwrap().count(), 0);
        });
    }
}
