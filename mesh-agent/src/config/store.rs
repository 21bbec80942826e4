//! Turns changes into the next [`Snapshot`] and publishes it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::intern::Pools;
use super::model::{Locality, Service, ServiceName, Workload};
use super::snapshot::{AtAddress, Endpoint, Endpoints, LocalNode, ServiceEntry, Snapshot};
use crate::policy::{Policy, PolicyStore};

#[cfg(test)]
mod tests;

/// One change of the mesh's configuration.
#[derive(Debug, Clone)]
pub enum Change {
    /// A workload is new or has changed.
    Workload(Arc<Workload>),
    /// A service is new or has changed.
    Service(Arc<Service>),
    /// The workload or service with this resource name is gone.
    Remove(Arc<str>),
    /// An authorization policy is new or has changed.
    Policy(Arc<Policy>),
    /// The policy with this resource name is gone.
    RemovePolicy(Arc<str>),
}

/// The current snapshot, for any number of readers, and a signal when there is a newer one.
#[derive(Debug)]
pub struct SharedSnapshot {
    current: ArcSwap<Snapshot>,
    revision: watch::Sender<u64>,
}

impl SharedSnapshot {
    /// The current snapshot. Take it once per decision, so that the decision is consistent.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Resolves whenever there is a newer snapshot than the last seen.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}

/// Endpoints by the uids of their workloads.
type Members = BTreeMap<Arc<str>, Endpoint>;

/// What became of the endpoints of services: new or changed, or gone.
type Touched = BTreeMap<ServiceName, BTreeMap<Arc<str>, Option<Endpoint>>>;

/// The only writer of snapshots.
#[derive(Debug)]
pub struct Store {
    next: Snapshot,
    /// Endpoints of services that are not known (yet), by workload uid: the order of updates does not matter. Those of
    /// known services are in their entries.
    waiting: HashMap<ServiceName, Members>,
    policies: PolicyStore,
    pools: Pools,
    shared: Arc<SharedSnapshot>,
}

impl Store {
    /// An empty store for the given node.
    pub fn new(node: LocalNode) -> Self {
        let next = Snapshot { node, ..Snapshot::default() };
        let shared = Arc::new(SharedSnapshot {
            current: ArcSwap::from_pointee(next.clone()),
            revision: watch::Sender::new(0),
        });
        Self {
            next,
            waiting: HashMap::new(),
            policies: PolicyStore::default(),
            pools: Pools::default(),
            shared,
        }
    }

    /// What readers hold.
    pub fn shared(&self) -> Arc<SharedSnapshot> {
        Arc::clone(&self.shared)
    }

    /// What will be published next.
    pub(super) fn next(&self) -> &Snapshot {
        &self.next
    }

    /// What resources have in common.
    pub(super) fn pools(&mut self) -> &mut Pools {
        &mut self.pools
    }

    /// Applies all `changes` and publishes one new snapshot.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.stage(changes);
        self.publish();
    }

    /// Takes in `changes` without showing them to readers before [`publish`](Self::publish).
    pub(super) fn stage(&mut self, changes: impl IntoIterator<Item = Change>) {
        let mut touched = Touched::new();
        let mut services = BTreeSet::new();
        let mut relocated = false;
        for change in changes {
            match change {
                Change::Workload(workload) => {
                    if self.next.workloads.get(&workload.uid).is_some_and(|known| known == &workload) {
                        continue;
                    }
                    let old = self.remove_workload(&workload.uid, &mut touched);
                    if let Some(old) = &old {
                        workload.load.succeed(&old.load);
                    }
                    self.insert_workload(&workload, &mut touched);
                    self.follow_policies(old.as_deref(), Some(&workload));
                    relocated |= self.relocate(&workload);
                }
                Change::Service(service) => {
                    services.insert(service.id.clone());
                    self.replace_service(service);
                }
                Change::Remove(name) => {
                    if let Some(old) = self.remove_workload(&name, &mut touched) {
                        self.follow_policies(Some(&old), None);
                    } else if let Some(id) = ServiceName::parse(&name) {
                        self.remove_service(&id);
                    }
                }
                Change::Policy(policy) => self.policies.insert(policy),
                Change::RemovePolicy(name) => self.policies.remove(&name),
            }
        }
        if relocated {
            services.extend(self.next.services.keys().cloned());
        }
        services.retain(|id| !touched.contains_key(id));
        for (id, changes) in touched {
            self.rebuild(&id, changes);
        }
        for id in services {
            self.rebuild(&id, BTreeMap::new());
        }
        self.next.policies = self.policies.policies().clone();
    }

    /// Keeps ready what applies to the workloads of this node.
    fn follow_policies(&mut self, old: Option<&Workload>, new: Option<&Workload>) {
        let node = &self.next.node;
        let local = |workload: &&Workload| workload.node == node.name && workload.cluster == node.cluster;
        match (old.filter(local), new.filter(local)) {
            (old, Some(new)) => self.policies.insert_workload(old, new),
            (Some(old), None) => self.policies.remove_workload(old),
            (None, None) => {}
        }
    }

    fn insert_workload(&mut self, workload: &Arc<Workload>, touched: &mut Touched) {
        self.next.workloads.insert(Arc::clone(workload));
        if !workload.host_network {
            for index in 0..workload.addresses.len() {
                self.next.workloads_by_address.insert(AtAddress { value: Arc::clone(workload), index });
            }
        }
        for ((id, _), role) in workload.services.iter().zip(0..) {
            let endpoint = Endpoint { workload: Arc::clone(workload), role };
            let of_service = touched.entry(id.clone()).or_default();
            of_service.insert(Arc::clone(&workload.uid), Some(endpoint));
        }
    }

    /// Takes a workload out of every index; returns it if it was there.
    fn remove_workload(&mut self, uid: &str, touched: &mut Touched) -> Option<Arc<Workload>> {
        let old = self.next.workloads.remove(uid)?;
        for address in old.network_addresses() {
            // Another workload may have taken the address over meanwhile.
            if self.next.workloads_by_address.get(&address).is_some_and(|owner| owner.value.uid == old.uid) {
                self.next.workloads_by_address.remove(&address);
            }
        }
        for (id, _) in &old.services {
            touched.entry(id.clone()).or_default().insert(Arc::clone(&old.uid), None);
        }
        Some(old)
    }

    /// Puts in a service, with the endpoints it had or that waited for it.
    fn replace_service(&mut self, service: Arc<Service>) {
        self.remove_service(&service.id);
        let members = self.waiting.remove(&service.id).unwrap_or_default();
        let endpoints = Endpoints::new(members.into_values().collect());
        let entry = ServiceEntry::new(service, endpoints, &self.next.node);
        self.next.services.insert(entry.service.id.clone(), Arc::new(entry));
    }

    /// Takes a service out; its endpoints wait for it to come back.
    fn remove_service(&mut self, id: &ServiceName) {
        let Some(old) = self.next.services.remove(id) else {
            return;
        };
        for address in &old.service.addresses {
            let owner = self.next.services_by_address.get(address);
            if owner.is_some_and(|owner| owner.value.service.id == *id) {
                self.next.services_by_address.remove(address);
            }
        }
        if !old.endpoints.is_empty() {
            let members = old.endpoints.iter();
            let members =
                members.map(|endpoint| (Arc::clone(&endpoint.workload.uid), endpoint.clone())).collect();
            self.waiting.insert(id.clone(), members);
        }
    }

    /// Brings a service's endpoints and tiers up to date.
    fn rebuild(&mut self, id: &ServiceName, changes: BTreeMap<Arc<str>, Option<Endpoint>>) {
        let Some(old) = self.next.services.get(id) else {
            let waiting = self.waiting.entry(id.clone()).or_default();
            for (uid, change) in changes {
                match change {
                    Some(endpoint) => drop(waiting.insert(uid, endpoint)),
                    None => drop(waiting.remove(&uid)),
                }
            }
            if waiting.is_empty() {
                self.waiting.remove(id);
            }
            return;
        };
        let staying =
            old.endpoints.iter().filter(|known| !changes.contains_key(&known.workload.uid)).cloned();
        let endpoints = Endpoints::new(staying.chain(changes.values().flatten().cloned()).collect());
        let entry = Arc::new(ServiceEntry::new(Arc::clone(&old.service), endpoints, &self.next.node));
        for index in 0..entry.service.addresses.len() {
            self.next.services_by_address.insert(AtAddress { value: Arc::clone(&entry), index });
        }
        self.next.services.insert(id.clone(), entry);
    }

    /// Learns the node's locality from a workload that runs on it; says whether it was news.
    fn relocate(&mut self, workload: &Workload) -> bool {
        let node = &mut self.next.node;
        let news = workload.node == node.name
            && *workload.locality != Locality::default()
            && *workload.locality != node.locality;
        if news {
            node.locality = Locality::clone(&workload.locality);
        }
        news
    }

    /// Shows readers what has been taken in.
    pub(super) fn publish(&mut self) {
        self.next.revision += 1;
        self.shared.current.store(Arc::new(self.next.clone()));
        self.shared.revision.send_replace(self.next.revision);
    }
}
