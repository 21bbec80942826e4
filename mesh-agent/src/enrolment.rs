//! Brings the node's pods into the mesh and out of it again, while they run.
//!
//! ```text
//! PodSource ──desired pods──> Reconciler ──> published LocalPods ──> PodSteering
//!  (Kubernetes or control)      │    ^
//!                               │    └── devices (netlink)
//!                               └──> statuses ──> meshctl, pod annotations
//! ```
//!
//! A pod is published before the kernel starts to steer it and withdrawn from the kernel before it is
//! unpublished, so that every steered connection finds its pod. Until the source has named all pods for the first
//! time nothing is withdrawn: after a restart, pods that the kernel steers already go on being steered.

pub mod control;
pub mod device;
pub mod kubernetes;
pub mod reconciler;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::error::Error;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;

use crate::pods::{LocalPod, LocalPods};

pub use reconciler::Reconciler;

/// What a source says of the node's pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DesiredPods {
    /// The pods, without their devices.
    pub pods: Vec<Arc<LocalPod>>,
    /// Whether these are all of them. While they are not, others that are steered already go on being steered.
    pub complete: bool,
    /// The uids of those that are on their way out of the mesh: enrolled still, until the others no longer open tunnels to them.
    pub leaving: HashSet<Arc<str>>,
    /// What is wrong with a pod's own settings, by uid. The pod has its last good ones, or the defaults.
    pub problems: HashMap<Arc<str>, String>,
}

/// Where the node's pods are learnt from. It says its whole set anew whenever that changes.
pub enum PodSource {
    /// The Kubernetes API.
    Kubernetes(Box<kubernetes::KubernetesSource>),
    /// The control server.
    Control(control::ControlSource),
}

impl PodSource {
    /// Keeps `desired` up to date, for ever.
    pub async fn run(self, desired: watch::Sender<DesiredPods>) {
        match self {
            Self::Kubernetes(source) => source.run(desired).await,
            Self::Control(source) => source.run(desired).await,
        }
    }
}

/// The kernel's side of enrolment, written only by the [`Reconciler`].
pub trait PodSteering: Send {
    /// Why the kernel could not be told.
    type Error: Error + Send + Sync + 'static;

    /// Tells the kernel of a pod, or what has changed of it. From the return on its traffic is steered, if it is
    /// enrolled; if it is not, its addresses are merely its own. The pod's device may be known only later. A pod
    /// whose addresses change, or that was made anew under its name, is withdrawn first.
    fn apply(&mut self, pod: &LocalPod) -> Result<(), Self::Error>;

    /// Makes the kernel forget a pod, as it was applied last.
    fn withdraw(&mut self, pod: &LocalPod) -> Result<(), Self::Error>;

    /// Makes the kernel forget whatever is of none of `pods`: what an earlier agent left in pinned maps. Called
    /// once, when the source has named all pods for the first time and these are applied.
    fn retain(&mut self, pods: &LocalPods) -> Result<(), Self::Error>;
}

/// How a pod of this node is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodStatus {
    /// The pod, with its device.
    #[serde(flatten)]
    pub pod: Arc<LocalPod>,
    /// Since when its traffic is steered, in seconds since 1970; `None` while it is not.
    pub steered_since: Option<u64>,
    /// What is wrong: with its settings, or with telling the kernel.
    pub error: Option<String>,
}

/// All pods of this node, by uid.
pub type PodStatuses = Arc<BTreeMap<Arc<str>, PodStatus>>;
