//! The agent's place in a Kubernetes cluster, apart from the pods of its node
//! ([`enrolment::kubernetes`](crate::enrolment::kubernetes)).
//!
//! - [`client`]: the way to the API server, which notices soon when that is dead.
//! - [`taint`]: a new node's pods wait until the agent serves.
//! - [`succession`]: whether another agent comes after this one, which decides what is left on the node.
//! - [`checks`]: what `meshctl check` says of the cluster.
//!
//! The API is asked for what [`RIGHTS`] lists and for nothing else; the chart grants exactly that. Nothing of it is needed
//! to carry traffic: while the API is away, all stays as it is.

pub mod checks;
pub mod client;
mod placement;
pub mod succession;
pub mod taint;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::runtime::utils::Backoff as WatchBackoff;
use mesh_xds::backoff::Backoff;
use serde::Serialize;

pub use succession::Succession;

/// The API server, and what of the cluster the agent is.
#[derive(Clone)]
pub struct Cluster {
    /// The way to the API server.
    pub client: Client,
    /// Name of this node.
    pub node: Arc<str>,
    /// Namespace of the agent's own pod.
    pub namespace: Arc<str>,
    /// The DaemonSet that the agent is of, where it is of one.
    pub daemon_set: Option<Arc<str>>,
    /// Key of the taint that keeps pods off a node without an agent, where that is used.
    pub startup_taint: Option<Arc<str>>,
}

/// The waits of a watch that fails. Not the usual ones, which grow to half a minute, twice where the server has forgotten the version
/// that the watch went on from: pods that start after the API has come back would run without the mesh for so long. The waits are
/// random, so that the agents of a big cluster do not all come at once.
pub(crate) fn watch_backoff() -> impl WatchBackoff {
    Waits(Backoff::new((Duration::from_millis(250), Duration::from_secs(5)), fastrand::Rng::new()))
}

struct Waits(Backoff);

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.0.delay())
    }
}

impl WatchBackoff for Waits {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// Something the API must let the agent do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Right {
    /// What is done: `list`, `watch`, ...
    pub verb: &'static str,
    /// API group; empty for the core.
    pub group: &'static str,
    /// Resource, in the plural.
    pub resource: &'static str,
    /// Where and for what.
    pub scope: Scope,
    /// What for, and what does not work without.
    pub purpose: &'static str,
}

/// Where a right holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Everywhere: RBAC has no way to say "of its own node". The agent asks with a field selector, or by name.
    Cluster,
    /// The same, and only where a start-up taint is used.
    StartupTaint,
    /// For the DaemonSet that the agent is of.
    OwnDaemonSet,
}

/// All that the agent does with the API.
pub const RIGHTS: &[Right] = &[
    right("list", "", "pods", Scope::Cluster, "finding the pods of the node"),
    right("watch", "", "pods", Scope::Cluster, "following the pods of the node"),
    right("patch", "", "pods", Scope::Cluster, "annotating pods whose traffic is redirected"),
    right("list", "", "namespaces", Scope::Cluster, "finding the namespaces that are enrolled"),
    right("watch", "", "namespaces", Scope::Cluster, "following the namespaces that are enrolled"),
    right("get", "", "nodes", Scope::Cluster, "knowing at its end whether the node is to have an agent"),
    right("list", "", "nodes", Scope::StartupTaint, "finding the start-up taint of its node"),
    right("watch", "", "nodes", Scope::StartupTaint, "following the start-up taint of its node"),
    right("patch", "", "nodes", Scope::StartupTaint, "removing the start-up taint of its node"),
    right(
        "get",
        "apps",
        "daemonsets",
        Scope::OwnDaemonSet,
        "knowing at its end whether another agent follows",
    ),
];

const fn right(
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    scope: Scope,
    purpose: &'static str,
) -> Right {
    Right { verb, group, resource, scope, purpose }
}

impl fmt::Display for Right {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, group, resource, .. } = self;
        match *group {
            "" => write!(out, "{verb} {resource}"),
            group => write!(out, "{verb} {resource}.{group}"),
        }
    }
}

impl Cluster {
    /// The rights that this agent uses.
    pub fn rights(&self) -> impl Iterator<Item = &'static Right> {
        let (of_set, tainted) = (self.daemon_set.is_some(), self.startup_taint.is_some());
        RIGHTS.iter().filter(move |right| match right.scope {
            Scope::Cluster => right.resource != "nodes" || of_set || tainted,
            Scope::StartupTaint => tainted,
            Scope::OwnDaemonSet => of_set,
        })
    }
}
