//! Turns changes into the next [`Snapshot`] and publishes it.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use imbl::{HashMap, OrdMap};
use tokio::sync::watch;

use super::load::EndpointLoad;
use super::model::{Locality, Service, ServiceName, Workload};
use super::snapshot::{Endpoint, LocalNode, ServiceEntry, Snapshot};
use crate::policy::{Policy, PolicyStore, Strings};

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

/// The only writer of snapshots.
#[derive(Debug)]
pub struct Store {
    next: Snapshot,
    /// Endpoints by service, also of services that are not known (yet): the order of updates does not matter.
    members: HashMap<ServiceName, OrdMap<Arc<str>, Endpoint>>,
    policies: PolicyStore,
    strings: Strings,
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
            members: HashMap::new(),
            policies: PolicyStore::default(),
            strings: Strings::default(),
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

    /// Texts that policies share.
    pub(super) fn strings(&mut self) -> &mut Strings {
        &mut self.strings
    }

    /// Applies all `changes` and publishes one new snapshot.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.stage(changes);
        self.publish();
    }

    /// Takes in `changes` without showing them to readers before [`publish`](Self::publish).
    pub(super) fn stage(&mut self, changes: impl IntoIterator<Item = Change>) {
        let mut touched = BTreeSet::new();
        let mut relocated = false;
        for change in changes {
            match change {
                Change::Workload(workload) => {
                    let old = self.remove_workload(&workload.uid, &mut touched);
                    self.insert_workload(&workload, &mut touched);
                    self.follow_policies(old.as_deref(), Some(&workload));
                    relocated |= self.relocate(&workload);
                }
                Change::Service(service) => {
                    self.remove_service(&service.id);
                    touched.insert(service.id.clone());
                    let entry = ServiceEntry::new(service, OrdMap::new(), &self.next.node);
                    self.next.services.insert(entry.service.id.clone(), Arc::new(entry));
                }
                Change::Remove(name) => {
                    if let Some(old) = self.remove_workload(&name, &mut touched) {
                        self.next.loads.remove(&*name);
                        self.follow_policies(Some(&old), None);
                    } else if let Some(id) = ServiceName::parse(&name) {
                        self.remove_service(&id);
                        touched.insert(id);
                    }
                }
                Change::Policy(policy) => self.policies.insert(policy),
                Change::RemovePolicy(name) => self.policies.remove(&name),
            }
        }
        if relocated {
            touched.extend(self.next.services.keys().cloned());
        }
        for id in touched {
            self.rebuild(&id);
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

    fn insert_workload(&mut self, workload: &Arc<Workload>, touched: &mut BTreeSet<ServiceName>) {
        let load = Arc::clone(
            self.next
                .loads
                .entry(Arc::clone(&workload.uid))
                .or_insert_with(|| Arc::new(EndpointLoad::default())),
        );
        self.next.workloads.insert(Arc::clone(&workload.uid), Arc::clone(workload));
        for address in workload.network_addresses() {
            self.next.workloads_by_address.insert(address, Arc::clone(workload));
        }
        for (id, ports) in &workload.services {
            let endpoint = Endpoint {
                workload: Arc::clone(workload),
                ports: ports.as_slice().into(),
                load: Arc::clone(&load),
            };
            self.members.entry(id.clone()).or_default().insert(Arc::clone(&workload.uid), endpoint);
            touched.insert(id.clone());
        }
    }

    /// Takes a workload out of every index but the load counters; returns it if it was there.
    fn remove_workload(&mut self, uid: &str, touched: &mut BTreeSet<ServiceName>) -> Option<Arc<Workload>> {
        let old = self.next.workloads.remove(uid)?;
        for address in old.network_addresses() {
            // Another workload may have taken the address over meanwhile.
            if self.next.workloads_by_address.get(&address).is_some_and(|owner| owner.uid == old.uid) {
                self.next.workloads_by_address.remove(&address);
            }
        }
        for (id, _) in &old.services {
            if let Some(members) = self.members.get_mut(id) {
                members.remove(uid);
                if members.is_empty() {
                    self.members.remove(id);
                }
            }
            touched.insert(id.clone());
        }
        Some(old)
    }

    fn remove_service(&mut self, id: &ServiceName) {
        let Some(old) = self.next.services.remove(id) else {
            return;
        };
        for address in &old.service.addresses {
            if self.next.services_by_address.get(address).is_some_and(|owner| owner.service.id == *id) {
                self.next.services_by_address.remove(address);
            }
        }
    }

    /// Brings a service's endpoints and tiers up to date.
    fn rebuild(&mut self, id: &ServiceName) {
        let Some(old) = self.next.services.get(id) else {
            return;
        };
        let endpoints = self.members.get(id).cloned().unwrap_or_default();
        let entry = Arc::new(ServiceEntry::new(Arc::clone(&old.service), endpoints, &self.next.node));
        for address in &entry.service.addresses {
            self.next.services_by_address.insert(address.clone(), Arc::clone(&entry));
        }
        self.next.services.insert(id.clone(), entry);
    }

    /// Learns the node's locality from a workload that runs on it; says whether it was news.
    fn relocate(&mut self, workload: &Workload) -> bool {
        let node = &mut self.next.node;
        let news = workload.node == node.name
            && workload.locality != Locality::default()
            && workload.locality != node.locality;
        if news {
            node.locality = workload.locality.clone();
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
