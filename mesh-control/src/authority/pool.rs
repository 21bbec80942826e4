//! Room for signing. It is computation, so it happens apart from the tasks that wait for the network, on as many
//! threads as there are cores; and no node can take all the room.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;

use tokio::sync::Semaphore;

/// Requests of all nodes that are signed or wait for it.
const PLACES: usize = 512;
/// Those of one node.
const PLACES_OF_A_NODE: usize = 32;

/// There is no room.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Busy {
    #[error("{PLACES_OF_A_NODE} requests of node {0} are waiting already: ask again in a moment")]
    Node(Arc<str>),
    #[error("{PLACES} requests are waiting already: ask again in a moment")]
    All,
    #[error("signing was broken off")]
    BrokenOff,
}

/// The room.
#[derive(Debug)]
pub(super) struct Pool {
    threads: Semaphore,
    places: Semaphore,
    nodes: Mutex<HashMap<Arc<str>, usize>>,
}

impl Default for Pool {
    fn default() -> Self {
        let threads = available_parallelism().map_or(1, usize::from);
        Self { threads: Semaphore::new(threads), places: Semaphore::new(PLACES), nodes: Mutex::default() }
    }
}

impl Pool {
    /// Does `work` for a node, if there is room.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        node: &Arc<str>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let _place_of_node = self.enter(node).ok_or_else(|| Busy::Node(Arc::clone(node)))?;
        let _place = self.places.try_acquire().map_err(|_| Busy::All)?;
        let _thread = self.threads.acquire().await.map_err(|_| Busy::BrokenOff)?;
        tokio::task::spawn_blocking(work).await.map_err(|_| Busy::BrokenOff)
    }

    fn enter(&self, node: &Arc<str>) -> Option<PlaceOfNode<'_>> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = nodes.entry(Arc::clone(node)).or_default();
        if *taken >= PLACES_OF_A_NODE {
            return None;
        }
        *taken += 1;
        Some(PlaceOfNode { pool: self, node: Arc::clone(node) })
    }
}

/// Gives the place back when the request is over, also if the agent went away.
struct PlaceOfNode<'a> {
    pool: &'a Pool,
    node: Arc<str>,
}

impl Drop for PlaceOfNode<'_> {
    fn drop(&mut self) {
        let mut nodes = self.pool.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut taken) = nodes.entry(Arc::clone(&self.node)) {
            *taken.get_mut() -= 1;
            if *taken.get() == 0 {
                taken.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    #[tokio::test]
    async fn a_node_that_asks_for_much_leaves_room_for_others() {
        let pool = Pool::default();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let held = async |node: &Arc<str>| {
            let released = Arc::clone(&released);
            pool.run(node, move || released.lock().unwrap().recv().is_ok()).await
        };
        let (greedy, modest): (Arc<str>, Arc<str>) = ("n1".into(), "n2".into());
        let many = join_all((0..PLACES_OF_A_NODE + 8).map(|_| held(&greedy)));
        let one = held(&modest);
        let let_go = async {
            // The futures above were all polled once by now.
            for _ in 0..=PLACES_OF_A_NODE {
                release.send(()).unwrap();
            }
        };
        let (many, one, ()) = tokio::join!(many, one, let_go);
        assert_eq!(one, Ok(true));
        assert_eq!(many.iter().filter(|result| **result == Ok(true)).count(), PLACES_OF_A_NODE);
        assert_eq!(many.iter().filter(|result| **result == Err(Busy::Node(Arc::clone(&greedy)))).count(), 8);
        assert!(pool.nodes.lock().unwrap().is_empty());
    }
}
