//! Finds the kubelet's cgroup, by which the kernel tells its probes from what else the node's processes send to pods.
//!
//! A cgroup is made anew whenever its service is restarted, and then has another number: so it is looked for again and
//! again. Once it has been found, its absence means that no kubelet runs, and nothing passes in its place. While none has
//! ever been found, connections of all processes of the node pass, since a probe that is refused costs a pod its life;
//! checks and metrics say so.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::connect_time;
use crate::steering::{Steering, SteeringError};

/// How often the cgroup is looked for: well below the time a kubelet takes from its start to its first probe.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Where service managers put the kubelet, or the program it is a part of, below the root of the hierarchy.
const USUAL: [&str; 14] = [
    "system.slice/kubelet.service",
    // Bottlerocket, EKS.
    "runtime.slice/kubelet.service",
    // kind.
    "kubelet.slice/kubelet.service",
    "system.slice/k3s.service",
    "system.slice/k3s-agent.service",
    "system.slice/rke2-server.service",
    "system.slice/rke2-agent.service",
    "system.slice/k0scontroller.service",
    "system.slice/k0sworker.service",
    "system.slice/snap.microk8s.daemon-kubelite.service",
    "system.slice/snap.kubelet-eks.daemon.service",
    "system.slice/snap.kubelet.daemon.service",
    // Talos.
    "podruntime/kubelet",
    "system.slice/origin-node.service",
];

/// What is known of the kubelet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Kubelet {
    /// No cgroup of its has been found yet, and none was named: processes of the node are not told apart.
    #[default]
    Unknown,
    /// Its cgroups.
    In(Vec<PathBuf>),
    /// It had one, or one was named, which is not there: no kubelet runs.
    Gone,
}

/// What is known of the kubelet, for who asks. Cheap to share.
#[derive(Debug, Clone, Default)]
pub struct KubeletState(Arc<ArcSwap<Kubelet>>);

impl KubeletState {
    /// As it is now.
    pub fn current(&self) -> Arc<Kubelet> {
        self.0.load_full()
    }
}

/// Tells the kernel which cgroups are the kubelet's.
pub struct KubeletWatch {
    steering: Steering,
    root: Option<PathBuf>,
    named: Vec<PathBuf>,
    state: KubeletState,
}

impl KubeletWatch {
    /// Looks below `root`, or where cgroup2 is mounted, for the cgroups that are `named`, or else for the usual ones. The
    /// kernel knows what is there now when this returns.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn start(
        steering: Steering,
        root: Option<PathBuf>,
        named: Vec<PathBuf>,
    ) -> Result<Self, SteeringError> {
        let root = root.or_else(connect_time::mount_point).and_then(|root| connect_time::hierarchy(&root));
        let watch = Self { steering, root, named, state: KubeletState::default() };
        watch.look()?;
        Ok(watch)
    }

    /// What is found, now and later.
    pub fn state(&self) -> KubeletState {
        self.state.clone()
    }

    /// Looks again and again.
    pub async fn run(self) {
        let mut again = interval(LOOK_AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            again.tick().await;
            if let Err(error) = self.look() {
                warn!(%error, "the kernel does not know the kubelet's cgroup");
            }
        }
    }

    fn look(&self) -> Result<(), SteeringError> {
        let found = self.root.as_deref().map(|root| find(root, &self.named)).unwrap_or_default();
        let numbers: BTreeSet<u64> = found.iter().map(|(number, _)| *number).collect();
        // Once known it stays so: also for the next agent, which may start before the kubelet does.
        let known = !numbers.is_empty() || !self.named.is_empty() || self.steering.knows_kubelet()?;
        self.steering.set_kubelet(&numbers, known)?;
        let now = match (known, found.is_empty()) {
            (false, _) => Kubelet::Unknown,
            (true, true) => Kubelet::Gone,
            (true, false) => Kubelet::In(found.into_iter().map(|(_, path)| path).collect()),
        };
        if *self.state.current() != now {
            info!(kubelet = ?now, "the kubelet's cgroup");
            self.state.0.store(Arc::new(now));
        }
        Ok(())
    }
}

/// The cgroups that are there, with their numbers, which are their inodes'.
fn find(root: &Path, named: &[PathBuf]) -> Vec<(u64, PathBuf)> {
    let usual = || USUAL.iter().map(PathBuf::from).collect();
    let places = if named.is_empty() { usual() } else { named.to_vec() };
    let found = places.into_iter().filter_map(|place| {
        let path = root.join(place.strip_prefix("/").unwrap_or(&place));
        let metadata = fs::metadata(&path).ok().filter(fs::Metadata::is_dir)?;
        Some((metadata.ino(), path))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_places_are_looked_at_unless_others_are_named() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(find(root.path(), &[]), []);
        let usual = root.path().join("system.slice/k3s-agent.service");
        let named = root.path().join("node/kubelet");
        for path in [&usual, &named] {
            fs::create_dir_all(path).unwrap();
        }
        let paths = |named: &[PathBuf]| -> Vec<PathBuf> {
            find(root.path(), named).into_iter().map(|(_, path)| path).collect()
        };
        assert_eq!(paths(&[]), [usual]);
        assert_eq!(paths(&["/node/kubelet".into(), "node/none".into()]), [named]);
    }

    #[test]
    fn a_cgroup_that_is_made_anew_has_another_number() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("kubelet");
        fs::create_dir(&place).unwrap();
        let named = [PathBuf::from("kubelet")];
        let first = find(root.path(), &named);
        // What has the number does not give it away.
        fs::rename(&place, root.path().join("former")).unwrap();
        assert_eq!(find(root.path(), &named), []);
        fs::create_dir(&place).unwrap();
        assert_ne!(find(root.path(), &named), first);
    }
}
