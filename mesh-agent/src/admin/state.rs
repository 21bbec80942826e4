//! What the admin API shows, as handles to the parts that know it.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::api::{Check, ConfigStatus, IdentityReport, PodState, SteeringReport};
use crate::config::SharedSnapshot;
use crate::connect_time::ConnectTime;
use crate::pods::LocalPods;
use crate::telemetry::logging::LogControl;
use crate::telemetry::{Direction, Telemetry};

/// A boxed future, so that the traits here can be used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Looks at the kernel's side. May make system calls; never called on a data-plane worker.
pub trait SteeringInspector: Send + Sync {
    /// Whether pods' traffic is steered: programs are attached and listeners alive.
    fn is_attached(&self) -> bool;

    /// Programs, attachments, counters; without the entries of the maps.
    fn report(&self) -> Result<SteeringReport, String>;

    /// Entries of each map. Walks through all of them: for who asks for it only.
    fn map_entries(&self) -> Result<BTreeMap<String, usize>, String>;

    /// What became of packets since the maps were made, by outcome.
    fn counters(&self) -> Vec<(&'static str, u64)>;

    /// Whether the kubelet is told from the node's other processes.
    fn knows_kubelet(&self) -> bool;

    /// What the kernel would do with the first packet of a connection, by its own maps.
    fn explain(&self, source: IpAddr, destination: SocketAddr) -> KernelAnswer;

    /// Has the kernel measure how long programs run, or not.
    fn measure_run_times(&self, enabled: bool) -> Result<(), String>;
}

/// What the kernel would do with the first packet of a connection, were an agent listening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelAnswer {
    /// Let it go its way, counted as this outcome.
    Pass(&'static str),
    /// Drop it, counted as this outcome.
    Drop(&'static str),
    /// Hand it to the agent.
    Capture {
        /// On whose behalf.
        direction: Direction,
        /// Whether it is dropped while no agent listens.
        fail_closed: bool,
    },
    /// Hand it to the agent on its way into the pod.
    TurnAround {
        /// Whether it is dropped while no agent listens.
        fail_closed: bool,
    },
}

/// Looks at the client of the control server.
pub trait ConfigInspector: Send + Sync {
    /// Where the configuration comes from and how that goes.
    fn status(&self) -> ConfigStatus;
}

/// Looks at the certificates of this node's pods.
pub trait IdentityInspector: Send + Sync {
    /// How every identity is doing, and what peers are verified with.
    fn report(&self) -> IdentityReport;
}

/// Looks at the node: kernel, sysctls, routes.
pub trait NodeInspector: Send + Sync {
    /// Everything that can be wrong with it.
    fn check(&self) -> BoxFuture<'_, Vec<Check>>;
}

/// Looks at enrolment.
pub trait EnrolmentInspector: Send + Sync {
    /// Pods that are not (only) what [`LocalPods`] says of them, by uid: pending or failed, and why.
    fn progress(&self) -> HashMap<Arc<str>, (PodState, String)>;
}

/// Facts that do not change while the agent runs.
#[derive(Debug, Clone)]
pub struct AgentFacts {
    /// Name of the node.
    pub node: String,
    /// Data-plane workers.
    pub workers: usize,
    /// When the agent started.
    pub started: Instant,
}

impl AgentFacts {
    pub(super) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Everything the admin API shows.
pub struct AdminState {
    /// What does not change.
    pub facts: AgentFacts,
    /// The mesh.
    pub mesh: Arc<SharedSnapshot>,
    /// The node's pods.
    pub pods: Arc<ArcSwap<LocalPods>>,
    /// What the kernel balances by itself.
    pub connect_time: Arc<ConnectTime>,
    /// Connections and their metrics.
    pub telemetry: Arc<Telemetry>,
    /// The agent's own log.
    pub log: Arc<LogControl>,
    /// The kernel's side.
    pub steering: Arc<dyn SteeringInspector>,
    /// The control server's side.
    pub config: Arc<dyn ConfigInspector>,
    /// The pods' certificates.
    pub identities: Arc<dyn IdentityInspector>,
    /// The node.
    pub host: Arc<dyn NodeInspector>,
    /// Pods on their way into the mesh.
    pub enrolment: Arc<dyn EnrolmentInspector>,
}
