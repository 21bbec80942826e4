//! The listeners that steering sends connections to: for each worker and address family one for connections that are
//! steered where they come in, and one for those that are turned around on their way into a pod.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};

use mesh_common::Arrival;

use super::ProxyError;
use super::settings::ProxySettings;
use super::socket;

/// A listening socket and its place in the kernel's map of listeners.
#[derive(Debug)]
pub struct Listener {
    worker: usize,
    arrival: Arrival,
    address: SocketAddr,
    socket: TcpListener,
}

impl Listener {
    /// The worker that accepts from it.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// How its connections come.
    pub fn arrival(&self) -> Arrival {
        self.arrival
    }

    /// Where it is bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A second handle of the same socket, for the worker.
    pub(super) fn socket(&self) -> Result<(TcpListener, Arrival), ProxyError> {
        let socket = self.socket.try_clone();
        let socket = socket.map_err(|source| ProxyError::Listen { address: self.address.ip(), source })?;
        Ok((socket, self.arrival))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Opens every worker's listeners.
pub(super) fn open_all(settings: &ProxySettings) -> Result<Vec<Listener>, ProxyError> {
    let mut listeners = Vec::new();
    for worker in 0..settings.workers.get() {
        for arrival in [Arrival::Steered, Arrival::Around] {
            listeners.push(open(worker, arrival, settings.listen_v4.into(), settings)?);
            match open(worker, arrival, settings.listen_v6.into(), settings) {
                Ok(listener) => listeners.push(listener),
                Err(ProxyError::Listen { source, .. }) if lacks_ipv6(&source) => {
                    tracing::info!(worker, "no IPv6 on this node: listening on IPv4 only");
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(listeners)
}

fn open(
    worker: usize,
    arrival: Arrival,
    address: IpAddr,
    settings: &ProxySettings,
) -> Result<Listener, ProxyError> {
    let failed = |source| ProxyError::Listen { address, source };
    let socket = socket::listen(address, arrival, settings).map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    Ok(Listener { worker, arrival, address, socket })
}

/// Whether the kernel was built or started without IPv6, or has it disabled on the loopback device.
fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}
