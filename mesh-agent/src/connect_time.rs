//! Balancing at connect time: which connections the kernel sends straight to a pod of the same node.
//!
//! A pod that connects to a service draws one of its endpoints in the kernel, in proportion to the weights of all that
//! could be chosen. Endpoints on this node take the place of the service's address at once; when one elsewhere is
//! drawn the connection comes to the agent, which chooses among the *others*. So every endpoint has the share that its
//! weight gives it, and the agent must know what the kernel does: [`ConnectTime`] is the table the kernel was given.
//!
//! Only where the kernel's draw is the agent's: services with an address of their own, without a waypoint or session affinity, in
//! the tier of endpoints that comes first (with a preference for the own node that is all of them, and the agent hears nothing
//! of such a connection). Least-request, ejection and another try elsewhere are the agent's: an endpoint that the
//! agent has ejected is taken out of the table, but a connection that the kernel sent to a pod has no second try.

mod cgroups;
mod plan;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::config::SharedSnapshot;
use crate::enrolment::PodStatuses;
use crate::pods::{LocalPod, LocalPods};
use crate::steering::{OpenedTo, PodCgroup, Steering};

pub use cgroups::{hierarchy, mount_point};
pub use plan::{Plan, Shares, plan};

/// How often it is looked whether endpoints are ejected, or no longer are.
const TICK: Duration = Duration::from_millis(500);
/// The shortest time between two tables: a storm of changes is taken as one.
const PAUSE: Duration = Duration::from_millis(10);
/// Waits between two searches for the cgroups of pods that have none yet.
const FIRST_SEARCH: Duration = Duration::from_millis(500);
const LAST_SEARCH: Duration = Duration::from_secs(60);

/// How it is with a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodBalancing {
    /// The kernel balances its connections.
    Balanced,
    /// It has no cgroup of its own: not yet, or the node's runtime uses cgroup v1. Its connections go through the agent.
    NoCgroup,
    /// The kernel refuses, for this reason. Its connections go through the agent.
    Refused(String),
}

/// What the kernel balances, for those who have to know: the data plane and `meshctl`. Empty until the
/// [`Balancer`] runs, and always where it does not.
#[derive(Debug, Default)]
pub struct ConnectTime {
    table: ArcSwap<Table>,
    opened_to: OnceLock<OpenedTo>,
}

#[derive(Debug, Default)]
struct Table {
    plan: Plan,
    pods: HashMap<Arc<str>, PodBalancing>,
}

impl ConnectTime {
    /// The endpoints that the connection of `pod`, from `client` to a service, would have reached without the agent, had
    /// it drawn one of them: it drew another, and these are for want of others. None where the kernel has not drawn: for
    /// a process outside of the pod's cgroup, for a socket that was bound to a port.
    pub fn left_to_kernel(&self, pod: &LocalPod, client: SocketAddr, service: SocketAddr) -> Vec<SocketAddr> {
        let table = self.table.load();
        let Some(shares) = table.plan.get(&service) else { return Vec::new() };
        if self.opened_to(client, service).is_none() {
            return Vec::new();
        }
        shares.admitted(pod)
    }

    /// The service that the connection of `client` was opened to, if the kernel has drawn for it. One system call that
    /// does not wait, and none where nothing is balanced.
    pub fn opened_to(&self, client: SocketAddr, destination: SocketAddr) -> Option<SocketAddr> {
        self.opened_to.get()?.service(client, destination)
    }

    /// Whether this agent balances at connect time at all.
    pub fn is_on(&self) -> bool {
        self.opened_to.get().is_some()
    }

    /// How it is with every enrolled pod, by uid.
    pub fn pods(&self) -> Vec<(Arc<str>, PodBalancing)> {
        let table = self.table.load();
        table.pods.iter().map(|(uid, state)| (Arc::clone(uid), state.clone())).collect()
    }

    /// How it is with a pod; `None` for one that is not enrolled.
    pub fn pod(&self, uid: &str) -> Option<PodBalancing> {
        self.table.load().pods.get(uid).cloned()
    }
}

/// Ends what an agent before has begun, where this one does not balance.
pub fn remove(steering: &Steering) {
    for error in steering.set_balanced_cgroups([]).values() {
        warn!(%error, "a pod may still be balanced at connect time");
    }
    if let Err(error) = steering.set_local_endpoints(BTreeMap::new()) {
        warn!(%error, "the kernel still has a table of endpoints");
    }
}

/// Keeps the kernel's table what the configuration and the node's pods make it. The only writer.
pub struct Balancer {
    steering: Steering,
    snapshot: Arc<SharedSnapshot>,
    pods: Arc<ArcSwap<LocalPods>>,
    view: Arc<ConnectTime>,
    /// Below it are the pods' cgroups; `None` where the node has no cgroup2.
    root: Option<PathBuf>,
    cgroups: HashMap<Arc<str>, PodCgroup>,
    search: Search,
}

impl Balancer {
    /// A balancer of the pods whose cgroups are below `root`.
    pub fn new(
        steering: Steering,
        snapshot: Arc<SharedSnapshot>,
        pods: Arc<ArcSwap<LocalPods>>,
        view: Arc<ConnectTime>,
        root: Option<PathBuf>,
    ) -> Self {
        let _ = view.opened_to.set(steering.opened_to());
        let root = root.and_then(|root| hierarchy(&root));
        Self { steering, snapshot, pods, view, root, cgroups: HashMap::new(), search: Search::default() }
    }

    /// Follows the mesh and the pods, for ever. Pods are the published ones; `changes` tells that there are others.
    pub async fn run(mut self, mut changes: watch::Receiver<PodStatuses>) {
        let mut revisions = self.snapshot.subscribe();
        loop {
            revisions.borrow_and_update();
            self.update().await;
            sleep(PAUSE).await;
            tokio::select! {
                () = changed(&mut revisions) => {}
                () = changed(&mut changes) => self.search = Search::default(),
                () = sleep(TICK) => {}
            }
        }
    }

    /// Brings the kernel's table, and the published one, up to date.
    async fn update(&mut self) {
        let pods = self.pods.load_full();
        self.find_cgroups(&pods).await;
        let plan = plan(&self.snapshot.load(), &pods, Instant::now());
        if plan != self.view.table.load().plan {
            debug!(services = plan.len(), "services with endpoints on this node");
        }
        if let Err(error) = self.steering.set_local_endpoints(plan::for_kernel(&plan)) {
            warn!(%error, "the kernel does not know all endpoints of this node");
        }
        let refused = self.steering.set_balanced_cgroups(self.cgroups.values());
        let state = |pod: &LocalPod| match self.cgroups.get(&pod.uid) {
            None => PodBalancing::NoCgroup,
            Some(cgroup) => match refused.get(&cgroup.number) {
                None => PodBalancing::Balanced,
                Some(error) => PodBalancing::Refused(error.to_string()),
            },
        };
        let pods: HashMap<_, _> =
            pods.iter().filter(|pod| pod.enrolled).map(|pod| (Arc::clone(&pod.uid), state(pod))).collect();
        self.announce(&pods);
        self.view.table.store(Arc::new(Table { plan, pods }));
    }

    /// Forgets the cgroups of pods that left, and looks for those that are missing.
    async fn find_cgroups(&mut self, pods: &LocalPods) {
        self.cgroups.retain(|uid, cgroup| {
            let Some(pod) = pods.by_uid(uid).filter(|pod| pod.enrolled) else { return false };
            // The same directory, and the pod's address as it is now.
            let Some(address) = pod.addresses.first() else { return false };
            PodCgroup::at(&cgroup.path, *address).as_ref() == Some(cgroup)
        });
        let missing: Vec<_> =
            pods.iter().filter(|pod| pod.enrolled && !self.cgroups.contains_key(&pod.uid)).cloned().collect();
        let Some(root) = self.root.clone().filter(|_| !missing.is_empty()) else { return };
        if !self.search.is_due(Instant::now()) {
            return;
        }
        // A walk through some hundred directories.
        let search = tokio::task::spawn_blocking(move || cgroups::find(&root, &missing));
        self.cgroups.extend(search.await.unwrap_or_default());
    }

    fn announce(&self, pods: &HashMap<Arc<str>, PodBalancing>) {
        let before = self.view.table.load();
        for (uid, state) in pods.iter().filter(|(uid, state)| before.pods.get(*uid) != Some(state)) {
            match state {
                PodBalancing::Balanced => debug!(pod = %uid, "balanced at connect time"),
                PodBalancing::NoCgroup => debug!(pod = %uid, "has no cgroup; balanced by the agent"),
                PodBalancing::Refused(error) => warn!(pod = %uid, %error, "balanced by the agent"),
            }
        }
    }
}

/// Resolves when there is news; never again once there can be none.
async fn changed<T>(news: &mut watch::Receiver<T>) {
    if news.changed().await.is_err() {
        std::future::pending().await
    }
}

/// When to look for missing cgroups: a container runtime makes them while the pod starts, or never.
struct Search {
    due: Instant,
    wait: Duration,
}

impl Default for Search {
    fn default() -> Self {
        Self { due: Instant::now(), wait: FIRST_SEARCH }
    }
}

impl Search {
    /// Whether it is time; if so, the next is further away.
    fn is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.due;
        if due {
            self.due = now + self.wait;
            self.wait = (self.wait * 2).min(LAST_SEARCH);
        }
        due
    }
}

#[cfg(test)]
mod tests;
