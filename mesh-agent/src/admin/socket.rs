//! The Unix socket that `meshctl` speaks to. Only root and the agent's own user may.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::serve::Listener;
use nix::sys::stat::{Mode, umask};
use nix::unistd::Uid;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tracing::warn;

/// Wait after a failed `accept`, so that running out of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why there is no admin socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent answers there.
    #[error("admin socket {0}: another agent answers on it")]
    InUse(PathBuf),
    /// Something that is no socket is in the way.
    #[error("admin socket {0}: the file there is no socket; remove it or choose another path")]
    NotASocket(PathBuf),
    /// The system said no.
    #[error("admin socket {path}: {source}")]
    Io {
        /// Where the socket should be.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// The listening socket; its file goes with it.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    agent: Uid,
}

impl AdminSocket {
    /// Listens on `path`, mode 0600. Replaces the socket of an agent that is gone, nothing else.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io { path: path.into(), source };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        remove_stale(path)?;
        // Never open to others, not even between `bind` and `chmod`.
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = bound.map_err(failed)?;
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { listener, path: path.into(), agent: Uid::effective() })
    }

    fn admits(&self, stream: &UnixStream) -> bool {
        match stream.peer_cred() {
            Ok(peer) => {
                let uid = Uid::from_raw(peer.uid());
                let admitted = uid.is_root() || uid == self.agent;
                if !admitted {
                    warn!(%uid, pid = peer.pid(), "refused on the admin socket: root only");
                }
                admitted
            }
            Err(error) => {
                warn!(%error, "refused on the admin socket: the peer is unknown");
                false
            }
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // Nothing to be done about a file that somebody else removed.
        let _ = fs::remove_file(&self.path);
    }
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Io { path: path.into(), source };
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !kind.is_socket() {
        return Err(SocketError::NotASocket(path.into()));
    }
    match StdUnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.into())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Hands out only connections of those who may ask.
impl Listener for AdminSocket {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) if self.admits(&stream) => return (stream, address),
                Ok(_) => {}
                Err(error) => {
                    warn!(%error, "accepting on the admin socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
