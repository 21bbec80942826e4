//! Brings the node's pods into the mesh and out of it again, while they run.
//!
//! ```text
//! source ──desired pods──> Enrolment ──> published LocalPods ──> steering
//!  (Kubernetes or control)     │  ^
//!                              │  └── devices (netlink)
//!                              └────> status ──> meshctl, pod annotations
//! ```
//!
//! A pod is published before the kernel starts to steer it and withdrawn from the kernel before it is
//! unpublished, so that every steered connection finds its pod. Until the source has spoken for the first time
//! nothing is withdrawn: after a restart, pods that the kernel steers already go on being steered.

use std::error::Error;

use crate::pods::{LocalPod, LocalPods};

/// The kernel's side of enrolment, written only by the reconciling loop.
pub trait PodSteering: Send {
    /// Why the kernel could not be told.
    type Error: Error + Send + Sync + 'static;

    /// Tells the kernel of a pod, or what has changed of it. From the return on its traffic is steered, if it is
    /// enrolled; if it is not, its addresses are merely its own. The pod's device may be known only later.
    fn apply(&mut self, pod: &LocalPod) -> Result<(), Self::Error>;

    /// Makes the kernel forget a pod, as it was applied last.
    fn withdraw(&mut self, pod: &LocalPod) -> Result<(), Self::Error>;

    /// Makes the kernel forget whatever is of none of `pods`: what an earlier agent left in pinned maps. Called
    /// once, when the source has spoken for the first time and its pods are applied.
    fn retain(&mut self, pods: &LocalPods) -> Result<(), Self::Error>;
}
