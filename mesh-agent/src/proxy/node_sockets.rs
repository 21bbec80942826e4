//! Sockets of the node's network namespace, for threads that are in another.
//!
//! A socket belongs to the namespace of the thread that makes it, and data-plane workers are in the agent's, where nearly all of
//! theirs are. What they need of the node's a thread there keeps in stock. It wakes up when half of that is gone, so a connection
//! mostly takes one without anybody being woken.

use std::io;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Notify;

/// Sockets of each address family that are ready.
const STOCK: usize = 16;
/// How few there are when more are made.
const LOW: usize = STOCK / 2;
/// How long until one is tried to be made again after that failed, unless somebody asks.
const RETRY: Duration = Duration::from_secs(1);

/// Where sockets of the node come from. The default makes them on the spot, for threads that are in the node's namespace.
#[derive(Debug, Clone, Default)]
pub struct NodeSockets {
    store: Option<Arc<Store>>,
}

impl NodeSockets {
    /// Keeps a stock of sockets of the calling thread's network namespace.
    ///
    /// # Errors
    /// If there can be no thread for that.
    pub fn start() -> io::Result<Self> {
        let store = Arc::<Store>::default();
        let stocked = Arc::downgrade(&store);
        thread::Builder::new().name("sockets".into()).spawn(move || keep_stocked(&stocked))?;
        Ok(Self { store: Some(store) })
    }

    /// A TCP socket of this family.
    ///
    /// # Errors
    /// If the kernel makes none: descriptors or memory ran out, or it does not know the family.
    pub(super) async fn take(&self, domain: Domain) -> io::Result<Socket> {
        let Some(store) = &self.store else { return make(domain) };
        loop {
            let mut made = pin!(store.made.notified());
            // From here on, so that none is missed that is made after the look.
            made.as_mut().enable();
            if let Some(taken) = store.take(domain) {
                return taken;
            }
            made.await;
        }
    }
}

/// A TCP socket of the calling thread's network namespace.
pub(super) fn make(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))
}

#[derive(Debug, Default)]
struct Store {
    shelves: Mutex<Shelves>,
    /// More are wanted, or nobody wants any.
    changed: Condvar,
    made: Notify,
}

#[derive(Debug, Default)]
struct Shelves {
    v4: Shelf,
    v6: Shelf,
}

#[derive(Debug, Default)]
struct Shelf {
    sockets: Vec<Socket>,
    /// Why there are none.
    error: Option<io::Error>,
}

impl Shelves {
    fn of(&mut self, domain: Domain) -> &mut Shelf {
        if domain == Domain::IPV4 { &mut self.v4 } else { &mut self.v6 }
    }
}

impl Store {
    /// A socket, or why there is none; nothing if one is to be waited for.
    fn take(&self, domain: Domain) -> Option<io::Result<Socket>> {
        let mut shelves = self.lock();
        let shelf = shelves.of(domain);
        let socket = shelf.sockets.pop();
        if shelf.sockets.len() <= LOW {
            self.changed.notify_one();
        }
        match socket {
            Some(socket) => Some(Ok(socket)),
            None => shelf.error.take().map(Err),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shelves> {
        // Lists of sockets are whole whatever happened to who had them.
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes sockets until nobody is left who could take one.
fn keep_stocked(store: &Weak<Store>) {
    while let Some(store) = store.upgrade() {
        for domain in [Domain::IPV4, Domain::IPV6] {
            let missing = STOCK.saturating_sub(store.lock().of(domain).sockets.len());
            // Without the lock: nobody waits for what others need.
            let made: io::Result<Vec<_>> = (0..missing).map(|_| make(domain)).collect();
            let mut shelves = store.lock();
            let shelf = shelves.of(domain);
            match made {
                Ok(sockets) => {
                    shelf.sockets.extend(sockets);
                    shelf.error = None;
                }
                Err(error) => shelf.error = Some(error),
            }
        }
        store.made.notify_waiters();
        let low = |shelves: &mut Shelves| {
            let is_low = |shelf: &Shelf| shelf.sockets.len() <= LOW && shelf.error.is_none();
            is_low(&shelves.v4) || is_low(&shelves.v6)
        };
        let shelves = store.lock();
        // Now and then, to see whether anybody is left.
        let waited = store.changed.wait_timeout_while(shelves, RETRY, |shelves| !low(shelves));
        drop(waited);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd as _};

    use super::*;
    use crate::steering::host::testing::{in_namespace, in_namespace_async};

    /// The cookie of a socket's network namespace.
    fn namespace_of(socket: impl AsFd) -> u64 {
        let (mut cookie, mut length) = (0_u64, 8);
        // SAFETY: the kernel writes as many bytes as it is told there are.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        cookie
    }

    #[test]
    fn sockets_are_the_node_s_whoever_takes_them() {
        let (sockets, node) =
            in_namespace(|| (NodeSockets::start().unwrap(), namespace_of(make(Domain::IPV4).unwrap())));
        in_namespace_async(async || {
            assert_ne!(namespace_of(make(Domain::IPV4).unwrap()), node);
            // More than are ever in stock.
            for _ in 0..STOCK * 3 {
                for domain in [Domain::IPV4, Domain::IPV6] {
                    let socket = sockets.take(domain).await.unwrap();
                    assert_eq!((namespace_of(&socket), socket.domain().unwrap()), (node, domain));
                }
            }
        });
    }

    #[test]
    fn what_failed_once_is_forgotten_when_it_works_again() {
        let sockets = NodeSockets::start().unwrap();
        let store = sockets.store.as_ref().unwrap();
        store.lock().v4.error = Some(io::ErrorKind::OutOfMemory.into());
        while store.lock().v4.error.is_some() {
            // Down to where more are made.
            store.lock().v4.sockets.truncate(LOW);
            store.changed.notify_one();
            thread::yield_now();
        }
    }

    #[test]
    fn nothing_is_left_once_nobody_takes_any() {
        let sockets = NodeSockets::start().unwrap();
        let store = Arc::downgrade(sockets.store.as_ref().unwrap());
        drop(sockets);
        while store.strong_count() > 0 {
            thread::yield_now();
        }
    }
}
