//! How many connections may be open at once: on the node, and of one pod.
//!
//! The limit of the node keeps the agent's descriptors from running out; the limit of a pod keeps one pod from
//! taking them all from the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use imbl::HashMap;
use thiserror::Error;

use super::settings::ProxySettings;

/// A limit that was reached.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum LimitReached {
    /// All of the node's connections are taken.
    #[error("the node has its {0} connections open (setting max_connections)")]
    Node(usize),
    /// All of one pod's connections are taken.
    #[error("pod {pod} has its {limit} connections open (setting max_connections_per_pod)")]
    Pod { pod: Arc<str>, limit: usize },
}

/// Counts open connections against their limits. Shared by all workers.
#[derive(Debug)]
pub(super) struct Limits {
    node: Gauge,
    pod_limit: usize,
    /// By pod uid. A pod's count is made with its first connection and removed, when another is made, after its
    /// last one.
    pods: ArcSwap<HashMap<Arc<str>, Gauge>>,
}

impl Limits {
    pub(super) fn new(settings: &ProxySettings) -> Self {
        Self {
            node: Gauge::new(settings.max_connections),
            pod_limit: settings.max_connections_per_pod,
            pods: ArcSwap::default(),
        }
    }

    /// Takes one of the node's connections.
    pub(super) fn admit(&self) -> Result<Permit, LimitReached> {
        self.node.take().ok_or(LimitReached::Node(self.node.limit))
    }

    /// Takes one of the pod's connections.
    pub(super) fn admit_pod(&self, pod: &Arc<str>) -> Result<Permit, LimitReached> {
        let known = self.pods.load().get(pod).cloned();
        let gauge = known.unwrap_or_else(|| self.add(pod));
        gauge.take().ok_or_else(|| LimitReached::Pod { pod: Arc::clone(pod), limit: gauge.limit })
    }

    fn add(&self, pod: &Arc<str>) -> Gauge {
        let fresh = Gauge::new(self.pod_limit);
        self.pods.rcu(|pods| {
            let mut pods = HashMap::clone(pods);
            pods.retain(|_, gauge| gauge.in_use());
            pods.entry(Arc::clone(pod)).or_insert_with(|| fresh.clone());
            pods
        });
        self.pods.load().get(pod).cloned().unwrap_or(fresh)
    }
}

/// A count with a limit.
#[derive(Debug, Clone)]
struct Gauge {
    taken: Arc<AtomicUsize>,
    limit: usize,
}

impl Gauge {
    fn new(limit: usize) -> Self {
        Self { taken: Arc::default(), limit }
    }

    fn take(&self) -> Option<Permit> {
        let permit = Permit(Arc::clone(&self.taken));
        // Counted first and given back by the permit's drop: two takers at the limit may both be refused, never
        // both be let in.
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        (before < self.limit).then_some(permit)
    }

    fn in_use(&self) -> bool {
        self.taken.load(Ordering::Relaxed) > 0
    }
}

/// One open connection; gives its place back when dropped.
#[derive(Debug)]
pub(super) struct Permit(Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(node: usize, pod: usize) -> Limits {
        Limits::new(&ProxySettings {
            max_connections: node,
            max_connections_per_pod: pod,
            ..ProxySettings::new(1)
        })
    }

    #[test]
    fn a_full_pod_leaves_room_for_others() {
        let limits = limits(10, 2);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let one = limits.admit_pod(&a).unwrap();
        let _two = limits.admit_pod(&a).unwrap();
        assert_eq!(limits.admit_pod(&a).unwrap_err(), LimitReached::Pod { pod: a.clone(), limit: 2 });
        let _other = limits.admit_pod(&b).unwrap();
        drop(one);
        let _again = limits.admit_pod(&a).unwrap();
    }

    #[test]
    fn the_node_has_a_limit() {
        let limits = limits(1, 1);
        let one = limits.admit().unwrap();
        assert_eq!(limits.admit().unwrap_err(), LimitReached::Node(1));
        drop(one);
        assert!(limits.admit().is_ok());
    }

    #[test]
    fn counts_of_pods_that_left_do_not_pile_up() {
        let limits = limits(10, 2);
        for pod in 0..100 {
            drop(limits.admit_pod(&format!("pod-{pod}").into()).unwrap());
        }
        assert!(limits.pods.load().len() <= 2);
    }
}
