//! The listeners that steering sends connections to: one for each worker and address family.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};

use super::ProxyError;
use super::settings::ProxySettings;
use super::socket;

/// Address families a worker listens on.
const FAMILIES: usize = 2;

/// A listening socket and its place in the kernel's map of listeners.
#[derive(Debug)]
pub struct Listener {
    index: usize,
    address: SocketAddr,
    socket: TcpListener,
}

impl Listener {
    /// Its place: `worker * 2`, and one more for IPv6.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Where it is bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The worker that accepts from it.
    pub fn worker(&self) -> usize {
        self.index / FAMILIES
    }

    /// A second handle of the same socket, for the worker.
    pub(super) fn socket(&self) -> Result<TcpListener, ProxyError> {
        self.socket.try_clone().map_err(|source| ProxyError::Listen { address: self.address.ip(), source })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Opens every worker's listeners.
pub(super) fn open_all(settings: &ProxySettings) -> Result<Vec<Listener>, ProxyError> {
    let mut listeners = Vec::with_capacity(settings.workers.get() * FAMILIES);
    for worker in 0..settings.workers.get() {
        listeners.push(open(worker * FAMILIES, settings.listen_v4.into(), settings)?);
        match open(worker * FAMILIES + 1, settings.listen_v6.into(), settings) {
            Ok(listener) => listeners.push(listener),
            Err(ProxyError::Listen { source, .. }) if lacks_ipv6(&source) => {
                tracing::info!(worker, "no IPv6 on this node: listening on IPv4 only");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(listeners)
}

fn open(index: usize, address: IpAddr, settings: &ProxySettings) -> Result<Listener, ProxyError> {
    let failed = |source| ProxyError::Listen { address, source };
    let socket = socket::listen(address, settings).map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    Ok(Listener { index, address, socket })
}

/// Whether the kernel was built or started without IPv6, or has it disabled on the loopback device.
fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}
