//! Makes the kernel and the published pods what the source says they should be.

use std::collections::{BTreeMap, HashMap};
use std::future::{self, Future};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::{DesiredPods, PodStatus, PodStatuses, PodSteering};
use crate::pods::{LocalPod, LocalPods, PodDevice};

#[cfg(test)]
mod tests;

/// Finds the host-side devices of pods.
pub trait Devices: Send {
    /// The devices of those of `pods` whose device is known, by uid. What a pod says of its device is what was
    /// found the last time.
    fn locate(&mut self, pods: &[Arc<LocalPod>])
    -> impl Future<Output = HashMap<Arc<str>, PodDevice>> + Send;

    /// Resolves when it is worth looking again.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

/// The only writer of [`PodSteering`] and of the published [`LocalPods`].
pub struct Reconciler<S> {
    steering: S,
    published: Arc<ArcSwap<LocalPods>>,
    statuses: watch::Sender<PodStatuses>,
    /// What the kernel knows, as it was told.
    applied: HashMap<Arc<str>, Arc<LocalPod>>,
    steered_since: HashMap<Arc<str>, u64>,
    /// Whether what an earlier agent left in the kernel is gone.
    cleaned: bool,
}

impl<S: PodSteering> Reconciler<S> {
    /// A reconciler of a kernel that nobody has told anything, or that was told by an earlier agent.
    pub fn new(steering: S, published: Arc<ArcSwap<LocalPods>>) -> Self {
        Self {
            steering,
            published,
            statuses: watch::Sender::default(),
            applied: HashMap::new(),
            steered_since: HashMap::new(),
            cleaned: false,
        }
    }

    /// How every pod is doing, for as long as the reconciler runs.
    pub fn statuses(&self) -> watch::Receiver<PodStatuses> {
        self.statuses.subscribe()
    }

    /// Follows the source and the devices, for ever. Stopping it at any await leaves all as it is.
    pub async fn run(mut self, mut desired: watch::Receiver<DesiredPods>, mut devices: impl Devices) {
        let mut retry = Backoff::default();
        loop {
            let current = desired.borrow_and_update().clone();
            let pods = self.with_devices(&current, &mut devices).await;
            let settled = self.reconcile(&current, pods);
            tokio::select! {
                () = changed(&mut desired) => retry = Backoff::default(),
                () = devices.changed() => {}
                () = retry.wait(), if !settled => {}
            }
        }
    }

    /// The desired pods, with their devices as far as these are known.
    async fn with_devices(&self, desired: &DesiredPods, devices: &mut impl Devices) -> Vec<Arc<LocalPod>> {
        let last_known = |pod: &Arc<LocalPod>| {
            let device = self.applied.get(&pod.uid).filter(|old| !is_another(old, pod))?.device.clone();
            Some(Arc::new(LocalPod { device, ..LocalPod::clone(pod) }))
        };
        let pods: Vec<_> =
            desired.pods.iter().map(|pod| last_known(pod).unwrap_or_else(|| Arc::clone(pod))).collect();
        let mut found = devices.locate(&pods).await;
        pods.into_iter()
            .map(|pod| match found.remove(&pod.uid) {
                device if device == pod.device => pod,
                device => Arc::new(LocalPod { device, ..LocalPod::clone(&pod) }),
            })
            .collect()
    }

    /// Takes one step to the desired state; says whether that is all there is to do for now.
    fn reconcile(&mut self, desired: &DesiredPods, pods: Vec<Arc<LocalPod>>) -> bool {
        let target: HashMap<Arc<str>, Arc<LocalPod>> =
            pods.into_iter().map(|pod| (Arc::clone(&pod.uid), pod)).collect();
        let mut problems = desired.problems.clone();

        self.publish_before(&target);
        if desired.complete {
            self.withdraw_missing(&target, &mut problems);
        }
        self.apply_changed(&target, &mut problems);
        if desired.complete && !self.cleaned {
            self.clean(&target);
        }
        self.publish_after(&target, &mut problems);

        self.cleaned >= desired.complete
            && target.values().all(|pod| self.applied.get(&pod.uid) == Some(pod) && pod.device.is_some())
            && (!desired.complete || self.applied.len() == target.len())
    }

    /// Publishes all that the kernel steers now and all that it is going to: a pod that leaves is still enrolled,
    /// and a pod that joins is already. Where two claim one address, the one that stays has it.
    fn publish_before(&self, target: &HashMap<Arc<str>, Arc<LocalPod>>) {
        let leaves =
            |old: &&Arc<LocalPod>| target.get(&old.uid).is_none_or(|new| old.enrolled && !new.enrolled);
        let leaving: Vec<_> = self.applied.values().filter(leaves).collect();
        let staying = target.values().filter(|new| !leaving.iter().any(|old| old.uid == new.uid));
        self.publish(leaving.iter().copied().chain(staying));
    }

    fn withdraw_missing(
        &mut self,
        target: &HashMap<Arc<str>, Arc<LocalPod>>,
        problems: &mut HashMap<Arc<str>, String>,
    ) {
        let steering = &mut self.steering;
        self.applied.retain(|uid, pod| {
            if target.contains_key(uid) {
                return true;
            }
            match steering.withdraw(pod) {
                Ok(()) => {
                    info!(pod = %uid, "pod is gone");
                    false
                }
                Err(error) => {
                    warn!(pod = %uid, %error, "kernel did not forget a pod");
                    problems.insert(Arc::clone(uid), error.to_string());
                    true
                }
            }
        });
    }

    fn apply_changed(
        &mut self,
        target: &HashMap<Arc<str>, Arc<LocalPod>>,
        problems: &mut HashMap<Arc<str>, String>,
    ) {
        for (uid, pod) in target {
            let old = self.applied.get(uid);
            if old == Some(pod) {
                continue;
            }
            let told = match old.filter(|old| is_another(old, pod)) {
                Some(old) => self.steering.withdraw(old).and_then(|()| self.steering.apply(pod)),
                None => self.steering.apply(pod),
            };
            match told {
                Ok(()) => {
                    announce(old.map(Arc::as_ref), pod);
                    self.applied.insert(Arc::clone(uid), Arc::clone(pod));
                }
                Err(error) => {
                    warn!(pod = %uid, %error, "kernel was not told of a pod");
                    problems.insert(Arc::clone(uid), error.to_string());
                }
            }
        }
    }

    /// Ends what an earlier agent left behind, which must not be before this one's pods are in place.
    fn clean(&mut self, target: &HashMap<Arc<str>, Arc<LocalPod>>) {
        match self.steering.retain(&LocalPods::new(target.values().cloned())) {
            Ok(()) => self.cleaned = true,
            Err(error) => warn!(%error, "kernel still knows pods of an earlier agent"),
        }
    }

    fn publish_after(
        &mut self,
        target: &HashMap<Arc<str>, Arc<LocalPod>>,
        problems: &mut HashMap<Arc<str>, String>,
    ) {
        let remaining = self.applied.values().filter(|pod| !target.contains_key(&pod.uid));
        let all: Vec<_> = remaining.chain(target.values()).cloned().collect();
        self.publish(&all);

        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs());
        let Self { applied, steered_since, .. } = self;
        steered_since.retain(|uid, _| applied.get(uid).is_some_and(|pod| pod.enrolled));
        for pod in applied.values().filter(|pod| pod.enrolled) {
            steered_since.entry(Arc::clone(&pod.uid)).or_insert(now);
        }
        let statuses: BTreeMap<_, _> = all
            .into_iter()
            .map(|pod| {
                let uid = Arc::clone(&pod.uid);
                let steered_since = steered_since.get(&uid).copied();
                let error = problems.remove(&uid);
                (uid, PodStatus { pod, steered_since, error })
            })
            .collect();
        self.statuses.send_if_modified(|current| {
            let news = **current != statuses;
            if news {
                *current = Arc::new(statuses);
            }
            news
        });
    }

    fn publish<'a>(&self, pods: impl IntoIterator<Item = &'a Arc<LocalPod>>) {
        self.published.store(Arc::new(LocalPods::new(pods.into_iter().cloned())));
    }
}

/// Whether a pod of the same name is in truth another, as one of a StatefulSet is that was made anew, or has other
/// addresses. What the kernel knows of the old one must not become the new one's.
fn is_another(old: &LocalPod, new: &LocalPod) -> bool {
    let replaced =
        old.kubernetes_uid.as_ref().zip(new.kubernetes_uid.as_ref()).is_some_and(|(old, new)| old != new);
    replaced || old.addresses != new.addresses
}

/// Resolves when the source has something new; never again once the source is gone.
async fn changed(desired: &mut watch::Receiver<DesiredPods>) {
    if desired.changed().await.is_err() {
        future::pending().await
    }
}

fn announce(old: Option<&LocalPod>, pod: &LocalPod) {
    let device = pod.device.as_ref().map_or("unknown", |device| device.name.as_str());
    let event = match (old.is_some_and(|old| old.enrolled), pod.enrolled) {
        (false, true) => "pod enrolled",
        (true, false) => "pod left the mesh",
        (true, true) => "enrolled pod changed",
        (false, false) => "pod known, not enrolled",
    };
    info!(pod = %pod.uid, addresses = ?pod.addresses, device, failure_mode = ?pod.failure_mode, "{event}");
}

/// Ever longer waits, up to a bound.
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(Duration::from_millis(100))
    }
}

impl Backoff {
    const LONGEST: Duration = Duration::from_secs(10);

    async fn wait(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(Self::LONGEST);
    }
}
