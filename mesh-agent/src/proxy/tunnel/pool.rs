//! The tunnels that a worker has opened.
//!
//! Connections share a tunnel when they agree in everything that the other side can see of it: who the client is and
//! by which certificate, its address, where the tunnel leads and who must be there. So an address that is given to
//! another workload never gets an old tunnel, and neither does a client whose certificate was renewed: nobody asks for
//! the old ones any more, and they close when their last stream has ended and they have been idle for a while.
//!
//! Who needs a tunnel takes the first that has room, else waits for one that is being opened, as many as it will have
//! room for, else opens one more. Attempts belong to the pool: whoever waits may give up and others go on waiting.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::Shared;
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout_at};

use super::client::{Ends, NotOpened, Tunnel, establish};
use super::double;
use super::error::{Step, TunnelError, TunnelFailure};
use super::request::TunnelRoute;
use super::state::Guard;
use super::stream::TunnelStream;
use crate::identity::Identity;
use crate::proxy::node_sockets::NodeSockets;
use crate::proxy::relay::BufferPool;
use crate::proxy::settings::ProxySettings;

/// A worker's pool of tunnels.
#[derive(Clone)]
pub struct Tunnels(Rc<Pool>);

struct Pool {
    settings: Arc<ProxySettings>,
    buffers: Rc<BufferPool>,
    node: NodeSockets,
    destinations: RefCell<HashMap<Key, Destination>>,
    /// Tunnels of all destinations, those that are being opened included.
    tunnels: Cell<usize>,
}

/// What connections must agree in to share a tunnel.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    /// Of the client's credentials: of an identity, and of one certificate of it.
    generation: u64,
    source: Option<IpAddr>,
    gateway: SocketAddr,
    expected: Arc<[Identity]>,
    trunk: bool,
}

/// The tunnels of one key; at least one.
#[derive(Default)]
struct Destination {
    open: Vec<Rc<Tunnel>>,
    opening: Vec<Rc<Attempt>>,
    /// Streams that its last tunnel had room for: what to expect of the next one. Nothing before the first.
    capacity: Option<usize>,
}

/// A tunnel that is being opened.
struct Attempt {
    /// How many wait for it.
    waiting: Cell<usize>,
    outcome: Outcome,
}

type Outcome = Shared<oneshot::Receiver<Result<(), TunnelFailure>>>;

/// What there is for somebody who needs a stream.
enum Found {
    Stream(Rc<Tunnel>, Guard),
    Opening(Outcome),
}

impl Tunnels {
    /// An empty pool. `buffers` are the worker's; tunnels from the node's own address take their sockets from `node`.
    pub fn new(settings: Arc<ProxySettings>, buffers: Rc<BufferPool>, node: NodeSockets) -> Self {
        let destinations = RefCell::default();
        Self(Rc::new(Pool { settings, buffers, node, destinations, tunnels: Cell::new(0) }))
    }

    /// Opens a connection: takes or opens a tunnel, asks for the connection and waits for the answer.
    pub async fn open(
        &self,
        route: &TunnelRoute,
        deadline: std::time::Instant,
    ) -> Result<TunnelStream, TunnelError> {
        let opened = match &route.path.inner {
            None => self.0.open(route, deadline.into()).await,
            Some(expected) => self.open_double(route, expected, deadline.into()).await,
        };
        opened.map_err(|cause| TunnelError {
            gateway: route.path.gateway,
            expected: Arc::clone(route.path.inner.as_ref().unwrap_or(&route.path.expected)),
            cause,
        })
    }

    async fn open_double(
        &self,
        route: &TunnelRoute,
        expected: &Arc<[Identity]>,
        deadline: Instant,
    ) -> Result<TunnelStream, TunnelFailure> {
        let outer = self.0.open(route, deadline).await?;
        let ends = Ends { expected: Arc::clone(expected), ..route.ends(false) };
        let inner = double::open(outer, &self.0.buffers, &ends, route, &self.0.settings.tunnel);
        timeout_at(deadline, Box::pin(inner)).await.unwrap_or(Err(TunnelFailure::Timeout(Step::Answer)))
    }

    /// Tunnels that are open or being opened.
    pub fn count(&self) -> usize {
        self.0.tunnels.get()
    }
}

impl Pool {
    async fn open(
        self: &Rc<Self>,
        route: &TunnelRoute,
        deadline: Instant,
    ) -> Result<TunnelStream, TunnelFailure> {
        let ends = route.ends(self.settings.tunnel.trunks);
        let mut is_retry = false;
        loop {
            let (tunnel, guard) = self.take(&ends, deadline).await?;
            let connecting = tunnel.connect(route, guard);
            let failed = match timeout_at(deadline, connecting).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(failed)) => failed,
                Err(_) => {
                    tunnel.doubt();
                    return Err(TunnelFailure::Timeout(Step::Answer));
                }
            };
            // No byte of the client was sent: at worst the server sees a connection that nothing comes over.
            let may_retry = match &failed {
                NotOpened::Answered(_) => false,
                NotOpened::NotProcessed(_) => true,
                // One that has carried others before was stale. One that has not will not do next time either.
                NotOpened::Broken(_) => tunnel.is_proven(),
            };
            if is_retry || !may_retry {
                return Err(failed.into());
            }
            if tunnel.state.streams() < tunnel.capacity(&self.settings.tunnel) {
                tunnel.retire();
            }
            is_retry = true;
        }
    }

    /// Takes a stream of a tunnel that is open, or of one as soon as it is.
    async fn take(
        self: &Rc<Self>,
        ends: &Ends,
        deadline: Instant,
    ) -> Result<(Rc<Tunnel>, Guard), TunnelFailure> {
        loop {
            let outcome = match self.find(ends)? {
                Found::Stream(tunnel, guard) => return Ok((tunnel, guard)),
                Found::Opening(outcome) => outcome,
            };
            let outcome = timeout_at(deadline, outcome).await;
            let outcome = outcome.map_err(|_| TunnelFailure::Timeout(Step::Handshake))?;
            // The attempt itself is gone only when its worker is.
            outcome.unwrap_or(Err(TunnelFailure::Timeout(Step::Handshake)))?;
        }
    }

    fn find(self: &Rc<Self>, ends: &Ends) -> Result<Found, TunnelFailure> {
        let key = Key::from(ends);
        let settings = &self.settings.tunnel;
        let mut destinations = self.destinations.borrow_mut();
        if let Some(destination) = destinations.get_mut(&key) {
            // The first with room: those that come after it get a chance to fall idle.
            let entered = |tunnel: &Rc<Tunnel>| Some((Rc::clone(tunnel), tunnel.enter(settings)?));
            if let Some((tunnel, guard)) = destination.open.iter().find_map(entered) {
                return Ok(Found::Stream(tunnel, guard));
            }
            if let Some(tunnel) = destination.open.last() {
                destination.capacity = Some(tunnel.capacity(settings));
            }
            if let Some(outcome) = destination.join(settings.streams()) {
                return Ok(Found::Opening(outcome));
            }
            let tunnels = destination.open.len() + destination.opening.len();
            if tunnels >= settings.tunnels_per_destination {
                return Err(TunnelFailure::Overflow(tunnels, "tunnels_per_destination"));
            }
        }
        if self.tunnels.get() >= settings.tunnels && !self.drop_idle(&mut destinations) {
            return Err(TunnelFailure::Overflow(self.tunnels.get(), "tunnels"));
        }
        let (tell, told) = oneshot::channel();
        let attempt = Rc::new(Attempt { waiting: Cell::new(1), outcome: told.shared() });
        let outcome = attempt.outcome.clone();
        let destination = destinations.entry(key.clone()).or_default();
        destination.opening.push(Rc::clone(&attempt));
        let capacity = destination.capacity.unwrap_or(settings.streams());
        self.tunnels.set(self.tunnels.get() + 1);
        spawn_local(run(Rc::clone(self), key, (ends.clone(), capacity), attempt, tell));
        Ok(Found::Opening(outcome))
    }

    /// Drops a tunnel without streams, of whatever destination.
    fn drop_idle(&self, destinations: &mut HashMap<Key, Destination>) -> bool {
        let is_idle = |tunnel: &Rc<Tunnel>| tunnel.state.streams() == 0;
        let found = destinations.iter().find_map(|(key, destination)| {
            Some((key.clone(), destination.open.iter().find(|tunnel| is_idle(tunnel))?.clone()))
        });
        let Some((key, tunnel)) = found else {
            return false;
        };
        self.remove(destinations, &key, |destination| {
            destination.open.retain(|known| !Rc::ptr_eq(known, &tunnel));
        });
        true
    }

    /// Removes tunnels or attempts of a destination, and the destination with its last one.
    fn remove(
        &self,
        destinations: &mut HashMap<Key, Destination>,
        key: &Key,
        remove: impl FnOnce(&mut Destination),
    ) {
        let Some(destination) = destinations.get_mut(key) else {
            return;
        };
        let before = destination.count();
        remove(destination);
        let after = destination.count();
        self.tunnels.set(self.tunnels.get() + after - before);
        if after == 0 {
            destinations.remove(key);
        }
    }
}

impl Destination {
    fn count(&self) -> usize {
        self.open.len() + self.opening.len()
    }

    /// Waits for a tunnel that is being opened and will have room.
    fn join(&self, streams: usize) -> Option<Outcome> {
        let capacity = self.capacity.unwrap_or(streams);
        let attempt = self.opening.iter().find(|attempt| attempt.waiting.get() < capacity)?;
        attempt.waiting.set(attempt.waiting.get() + 1);
        Some(attempt.outcome.clone())
    }
}

/// Opens a tunnel, and drives it to its end.
async fn run(
    pool: Rc<Pool>,
    key: Key,
    (ends, capacity): (Ends, usize),
    attempt: Rc<Attempt>,
    tell: oneshot::Sender<Result<(), TunnelFailure>>,
) {
    // Boxed: it takes room that is given back before the tunnel is driven, which may last for days.
    let established = Box::pin(establish(&ends, capacity, &pool.settings, &pool.buffers, &pool.node)).await;
    drop(ends);
    let is_attempt = |known: &Rc<Attempt>| Rc::ptr_eq(known, &attempt);
    let (tunnel, driver) = match established {
        Ok((tunnel, driver)) => (Rc::new(tunnel), driver),
        Err(failure) => {
            pool.remove(&mut pool.destinations.borrow_mut(), &key, |destination| {
                destination.opening.retain(|known| !is_attempt(known));
            });
            let _ = tell.send(Err(failure));
            return;
        }
    };
    pool.remove(&mut pool.destinations.borrow_mut(), &key, |destination| {
        destination.opening.retain(|known| !is_attempt(known));
        destination.open.push(Rc::clone(&tunnel));
    });
    let _ = tell.send(Ok(()));

    // From here on the pool owns the tunnel; with the pool it ends.
    let settings = Arc::clone(&pool.settings);
    let (tunnel, pool) = (to_weak(tunnel), to_weak(pool));
    let forget = || {
        if let (Some(pool), Some(tunnel)) = (pool.upgrade(), tunnel.upgrade()) {
            pool.remove(&mut pool.destinations.borrow_mut(), &key, |destination| {
                destination.open.retain(|known| !Rc::ptr_eq(known, &tunnel));
            });
        }
    };
    driver.drive(&tunnel, &settings.tunnel, forget).await;
}

fn to_weak<T>(owned: Rc<T>) -> Weak<T> {
    Rc::downgrade(&owned)
}

impl From<&Ends> for Key {
    fn from(ends: &Ends) -> Self {
        Self {
            generation: ends.credentials.generation(),
            source: ends.source,
            gateway: ends.gateway,
            expected: Arc::clone(&ends.expected),
            trunk: ends.trunk,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt() -> Rc<Attempt> {
        let (_, told) = oneshot::channel();
        Rc::new(Attempt { waiting: Cell::new(1), outcome: told.shared() })
    }

    #[test]
    fn as_many_wait_for_a_tunnel_as_it_will_carry() {
        let mut destination = Destination { opening: vec![attempt()], ..Destination::default() };
        for _ in 1..100 {
            assert!(destination.join(100).is_some());
        }
        assert!(destination.join(100).is_none());
        destination.opening.push(attempt());
        assert!(destination.join(100).is_some());

        // The last tunnel had room for fewer: so will the next.
        destination.capacity = Some(2);
        assert!(destination.join(100).is_none());
        destination.opening.push(attempt());
        assert!(destination.join(100).is_some());
        assert!(destination.join(100).is_none());
    }
}
