//! The resources there are, and who looks at whom.
//!
//! | output of | looks at |
//! |---|---|
//! | Service | the service, its namespace |
//! | Pod | the pod, its namespace, its node, services and service entries that select it, slices that list it, policies for it, pods that have one of its addresses |
//! | EndpointSlice | the slice, its service, pods that have one of its addresses |
//! | ServiceEntry | the entry, policies for its endpoints |
//! | WorkloadEntry | the entry, services and service entries that select it, policies for it |
//! | AuthorizationPolicy | the policy |
//! | PeerAuthentication | the policy, those for all of its namespace and for the mesh |
//!
//! Each `touch_*` marks the items that look at a resource. It is called for the old version while that is in the
//! indexes, and for the new one once it is.

mod affected;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::Item;
use super::index::{Index, Labelled, Selecting};
use super::policies::Policies;
use crate::model::{
    EndpointSlice, EntryEndpoints, Kind, Labels, Namespace, Node, ObjectName, Pod, Resource, ResourceKey,
    Selector, Service, ServiceEntry, WorkloadEntry,
};
use crate::source::Change;

/// The resources there are.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    pub(super) namespaces: HashMap<Arc<str>, Arc<Namespace>>,
    pub(super) nodes: HashMap<Arc<str>, Arc<Node>>,
    pub(super) pods: BTreeMap<ObjectName, Arc<Pod>>,
    pub(super) services: BTreeMap<ObjectName, Arc<Service>>,
    pub(super) slices: BTreeMap<ObjectName, Arc<EndpointSlice>>,
    pub(super) service_entries: BTreeMap<ObjectName, Arc<ServiceEntry>>,
    pub(super) workload_entries: BTreeMap<ObjectName, Arc<WorkloadEntry>>,
    pub(super) policies: Policies,

    pods_by_node: Index<Arc<str>, ObjectName>,
    /// Pods that have their addresses for themselves.
    pods_by_address: Index<IpAddr, ObjectName>,
    /// Whatever a selector may select: pods, workload entries, and service entries by the labels of their endpoints.
    workloads_by_label: Labelled<Item>,
    services_by_selector: Selecting<ObjectName>,
    entries_by_selector: Selecting<ObjectName>,
    slices_by_service: Index<ObjectName, ObjectName>,
    slices_by_pod: Index<ObjectName, ObjectName>,
    /// Slices that list an address without naming a pod.
    slices_by_address: Index<IpAddr, ObjectName>,
}

/// Items to translate anew.
type Dirty = BTreeSet<Item>;

impl Inputs {
    /// None yet. Policies in the namespace `root` are for the whole mesh.
    pub(super) fn new(root: Arc<str>) -> Self {
        Self { policies: Policies::new(root), ..Self::default() }
    }

    /// Works a change in and marks who looks at it.
    pub(super) fn apply(&mut self, change: Change, dirty: &mut Dirty) {
        match change {
            Change::Upsert(resource) => {
                let key = resource.key();
                // A policy is replaced in one step: most of its changes touch nobody.
                if key.kind != Kind::AuthorizationPolicy {
                    self.remove(&key, dirty);
                }
                self.insert(resource, dirty);
            }
            Change::Remove(key) => self.remove(&key, dirty),
        }
    }

    pub(super) fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Namespace => self.namespaces.len(),
            Kind::Node => self.nodes.len(),
            Kind::Pod => self.pods.len(),
            Kind::Service => self.services.len(),
            Kind::EndpointSlice => self.slices.len(),
            Kind::ServiceEntry => self.service_entries.len(),
            Kind::WorkloadEntry => self.workload_entries.len(),
            Kind::AuthorizationPolicy => self.policies.authorization_count(),
            Kind::PeerAuthentication => self.policies.peer_count(),
        }
    }

    /// Services whose selector selects a resource with these labels.
    pub(super) fn services_selecting<'a>(
        &'a self,
        namespace: &Arc<str>,
        labels: &'a Labels,
    ) -> impl Iterator<Item = &'a Arc<Service>> {
        let candidates = self.services_by_selector.candidates(namespace, labels);
        candidates
            .filter_map(|name| self.services.get(name))
            .filter(|service| service.selector.as_ref().is_some_and(|selector| selector.matches(labels)))
    }

    /// Service entries whose selector selects a resource with these labels.
    pub(super) fn entries_selecting<'a>(
        &'a self,
        namespace: &Arc<str>,
        labels: &'a Labels,
    ) -> impl Iterator<Item = &'a Arc<ServiceEntry>> {
        let candidates = self.entries_by_selector.candidates(namespace, labels);
        candidates
            .filter_map(|name| self.service_entries.get(name))
            .filter(|entry| entry.selector().is_some_and(|selector| selector.matches(labels)))
    }

    /// Whether the endpoints of a service are listed; then its selector says nothing.
    pub(super) fn has_slices(&self, service: &ObjectName) -> bool {
        self.slices_by_service.len_of(service) > 0
    }

    /// Slices that list the pod, by its name or by one of its addresses.
    pub(super) fn slices_listing(&self, pod: &Pod) -> BTreeMap<&ObjectName, &Arc<EndpointSlice>> {
        let by_address = own_addresses(pod).flat_map(|address| self.slices_by_address.of(address));
        self.slices_by_pod
            .of(&pod.name)
            .chain(by_address)
            .filter(|slice| slice.namespace == pod.name.namespace)
            .filter_map(|name| self.slices.get_key_value(name))
            .collect()
    }

    /// Whether a pod of the namespace has the address for itself.
    pub(super) fn is_pod_address(&self, namespace: &str, address: &IpAddr) -> bool {
        self.pods_by_address.of(address).any(|pod| &*pod.namespace == namespace)
    }

    /// The addresses at which a pod is reached. One that another pod was given since is left out: until its record is
    /// deleted, a pod that has ended may say it has an address that is another's.
    pub(super) fn addresses_of(&self, pod: &Pod) -> Vec<IpAddr> {
        let later = |other: &ObjectName, address: &IpAddr| {
            let other = self.pods.get(other).filter(|other| other.network == pod.network);
            other.is_some_and(|other| other.addresses.contains(address) && claim(other) > claim(pod))
        };
        let taken = |address: &IpAddr| self.pods_by_address.of(address).any(|other| later(other, address));
        pod.addresses.iter().filter(|address| pod.host_network || !taken(address)).copied().collect()
    }

    fn insert(&mut self, resource: Resource, dirty: &mut Dirty) {
        match resource {
            Resource::Namespace(namespace) => {
                self.touch_namespace(&namespace.name.name, dirty);
                self.namespaces.insert(Arc::clone(&namespace.name.name), namespace);
            }
            Resource::Node(node) => {
                self.touch_node(&node.name.name, dirty);
                self.nodes.insert(Arc::clone(&node.name.name), node);
            }
            Resource::Pod(pod) => self.insert_pod(pod, dirty),
            Resource::Service(service) => {
                if let Some(selector) = &service.selector {
                    let namespace = &service.name.namespace;
                    self.services_by_selector.insert(namespace, selector, service.name.clone());
                }
                self.touch_service(&service, dirty);
                self.services.insert(service.name.clone(), service);
            }
            Resource::EndpointSlice(slice) => self.insert_slice(slice, dirty),
            Resource::ServiceEntry(entry) => {
                if let Some(selector) = entry.selector() {
                    let namespace = &entry.name.namespace;
                    self.entries_by_selector.insert(namespace, selector, entry.name.clone());
                }
                for labels in endpoint_labels(&entry) {
                    let item = Item::ServiceEntry(entry.name.clone());
                    self.workloads_by_label.insert(&entry.name.namespace, labels, &item);
                }
                self.touch_service_entry(&entry, dirty);
                self.service_entries.insert(entry.name.clone(), entry);
            }
            Resource::WorkloadEntry(entry) => {
                let item = Item::WorkloadEntry(entry.name.clone());
                self.workloads_by_label.insert(&entry.name.namespace, &entry.labels, &item);
                dirty.insert(item);
                self.workload_entries.insert(entry.name.clone(), entry);
            }
            Resource::AuthorizationPolicy(policy) => {
                self.replace_policy(&policy.name.clone(), Some(policy), dirty);
            }
            Resource::PeerAuthentication(policy) => {
                self.policies.insert_peer(Arc::clone(&policy));
                self.touch_peer(&policy, dirty);
            }
        }
    }

    fn remove(&mut self, key: &ResourceKey, dirty: &mut Dirty) {
        let name = &key.name;
        match key.kind {
            Kind::Namespace => {
                if self.namespaces.remove(&name.name).is_some() {
                    self.touch_namespace(&name.name, dirty);
                }
            }
            Kind::Node => {
                if self.nodes.remove(&name.name).is_some() {
                    self.touch_node(&name.name, dirty);
                }
            }
            Kind::Pod => {
                if let Some(pod) = self.pods.remove(name) {
                    self.remove_pod(&pod, dirty);
                }
            }
            Kind::Service => {
                if let Some(service) = self.services.remove(name) {
                    self.touch_service(&service, dirty);
                    if let Some(selector) = &service.selector {
                        self.services_by_selector.remove(&name.namespace, selector, name);
                    }
                }
            }
            Kind::EndpointSlice => {
                if let Some(slice) = self.slices.remove(name) {
                    self.remove_slice(&slice, dirty);
                }
            }
            Kind::ServiceEntry => {
                if let Some(entry) = self.service_entries.remove(name) {
                    self.touch_service_entry(&entry, dirty);
                    if let Some(selector) = entry.selector() {
                        self.entries_by_selector.remove(&name.namespace, selector, name);
                    }
                    for labels in endpoint_labels(&entry) {
                        let item = Item::ServiceEntry(name.clone());
                        self.workloads_by_label.remove(&name.namespace, labels, &item);
                    }
                }
            }
            Kind::WorkloadEntry => {
                if let Some(entry) = self.workload_entries.remove(name) {
                    let item = Item::WorkloadEntry(name.clone());
                    self.workloads_by_label.remove(&name.namespace, &entry.labels, &item);
                    dirty.insert(item);
                }
            }
            Kind::AuthorizationPolicy => self.replace_policy(name, None, dirty),
            Kind::PeerAuthentication => {
                if let Some(policy) = self.policies.remove_peer(name) {
                    self.touch_peer(&policy, dirty);
                }
            }
        }
    }

    fn insert_pod(&mut self, pod: Arc<Pod>, dirty: &mut Dirty) {
        let name = &pod.name;
        self.pods_by_node.insert(Arc::clone(&pod.node), name.clone());
        self.workloads_by_label.insert(&name.namespace, &pod.labels, &Item::Pod(name.clone()));
        for address in own_addresses(&pod) {
            self.pods_by_address.insert(*address, name.clone());
        }
        self.touch_pod(&pod, dirty);
        self.pods.insert(name.clone(), pod);
    }

    fn remove_pod(&mut self, pod: &Pod, dirty: &mut Dirty) {
        let name = &pod.name;
        self.touch_pod(pod, dirty);
        self.pods_by_node.remove(&pod.node, name);
        self.workloads_by_label.remove(&name.namespace, &pod.labels, &Item::Pod(name.clone()));
        for address in own_addresses(pod) {
            self.pods_by_address.remove(address, name);
        }
    }

    fn insert_slice(&mut self, slice: Arc<EndpointSlice>, dirty: &mut Dirty) {
        let service = service_of(&slice);
        let first = service.as_ref().is_some_and(|service| !self.has_slices(service));
        for pod in slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_ref()) {
            let pod = ObjectName::new(Arc::clone(&slice.name.namespace), Arc::clone(pod));
            self.slices_by_pod.insert(pod, slice.name.clone());
        }
        for address in loose_addresses(&slice) {
            self.slices_by_address.insert(*address, slice.name.clone());
        }
        self.touch_slice(&slice, first, dirty);
        if let Some(service) = service {
            self.slices_by_service.insert(service, slice.name.clone());
        }
        self.slices.insert(slice.name.clone(), slice);
    }

    fn remove_slice(&mut self, slice: &EndpointSlice, dirty: &mut Dirty) {
        let service = service_of(slice);
        if let Some(service) = &service {
            self.slices_by_service.remove(service, &slice.name);
        }
        let last = service.as_ref().is_some_and(|service| !self.has_slices(service));
        self.touch_slice(slice, last, dirty);
        for pod in slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_ref()) {
            let pod = ObjectName::new(Arc::clone(&slice.name.namespace), Arc::clone(pod));
            self.slices_by_pod.remove(&pod, &slice.name);
        }
        for address in loose_addresses(slice) {
            self.slices_by_address.remove(address, &slice.name);
        }
    }

    fn touch_namespace(&self, namespace: &Arc<str>, dirty: &mut Dirty) {
        dirty.extend(in_namespace(&self.pods, namespace).map(Item::Pod));
        dirty.extend(in_namespace(&self.services, namespace).map(Item::Service));
    }

    fn touch_node(&self, node: &Arc<str>, dirty: &mut Dirty) {
        dirty.extend(self.pods_by_node.of(node).cloned().map(Item::Pod));
    }

    fn touch_pod(&self, pod: &Pod, dirty: &mut Dirty) {
        dirty.insert(Item::Pod(pod.name.clone()));
        let listed = own_addresses(pod).flat_map(|address| self.slices_by_address.of(address));
        dirty.extend(listed.cloned().map(Item::EndpointSlice));
        // Whoever says it has the same address has it now, or has it no longer.
        let others = own_addresses(pod).flat_map(|address| self.pods_by_address.of(address));
        dirty.extend(others.cloned().map(Item::Pod));
    }

    fn touch_service(&self, service: &Service, dirty: &mut Dirty) {
        dirty.insert(Item::Service(service.name.clone()));
        self.touch_selected(&service.name.namespace, service.selector.as_ref(), dirty);
        for slice in self.slices_by_service.of(&service.name).filter_map(|name| self.slices.get(name)) {
            self.touch_slice(slice, false, dirty);
        }
    }

    /// `toggles` if its service goes over from selecting pods to listing them, or back.
    fn touch_slice(&self, slice: &EndpointSlice, toggles: bool, dirty: &mut Dirty) {
        let namespace = &slice.name.namespace;
        dirty.insert(Item::EndpointSlice(slice.name.clone()));
        let named = slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_ref());
        dirty.extend(named.map(|pod| Item::Pod(ObjectName::new(Arc::clone(namespace), Arc::clone(pod)))));
        let by_address = loose_addresses(slice).flat_map(|address| self.pods_by_address.of(address));
        dirty.extend(by_address.filter(|pod| pod.namespace == *namespace).cloned().map(Item::Pod));
        if toggles && let Some(service) = service_of(slice).and_then(|name| self.services.get(&name)) {
            self.touch_selected(namespace, service.selector.as_ref(), dirty);
        }
    }

    fn touch_service_entry(&self, entry: &ServiceEntry, dirty: &mut Dirty) {
        dirty.insert(Item::ServiceEntry(entry.name.clone()));
        self.touch_selected(&entry.name.namespace, entry.selector(), dirty);
    }

    fn touch_selected(&self, namespace: &Arc<str>, selector: Option<&Selector>, dirty: &mut Dirty) {
        let Some(selector) = selector else {
            return;
        };
        dirty.extend(self.workloads_by_label.candidates(namespace, selector));
    }
}

/// How well a pod's word for its address counts: one that is being ended may have given it back.
fn claim(pod: &Pod) -> (bool, Option<i64>, &ObjectName) {
    (!pod.terminating, pod.started, &pod.name)
}

/// Addresses that tell the pod: those of a node or of a pod that is no more do not.
fn own_addresses(pod: &Pod) -> impl Iterator<Item = &IpAddr> {
    pod.addresses.iter().filter(|_| !pod.host_network && !pod.finished)
}

/// Addresses of a slice's endpoints that name no pod.
fn loose_addresses(slice: &EndpointSlice) -> impl Iterator<Item = &IpAddr> {
    slice.endpoints.iter().filter(|endpoint| endpoint.pod.is_none()).flat_map(|endpoint| &endpoint.addresses)
}

/// The labels of the endpoints that are written into a service entry.
fn endpoint_labels(entry: &ServiceEntry) -> impl Iterator<Item = &Labels> {
    let listed = match &entry.endpoints {
        EntryEndpoints::Listed(endpoints) => endpoints.as_slice(),
        EntryEndpoints::Selected(_) => &[],
    };
    listed.iter().map(|endpoint| &endpoint.labels)
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectName> {
    let service = slice.service.as_ref()?;
    Some(ObjectName::new(Arc::clone(&slice.name.namespace), Arc::clone(service)))
}

fn in_namespace<V>(
    resources: &BTreeMap<ObjectName, V>,
    namespace: &Arc<str>,
) -> impl Iterator<Item = ObjectName> {
    resources
        .range(ObjectName::new(Arc::clone(namespace), "")..)
        .map(|(name, _)| name)
        .take_while(move |name| name.namespace == *namespace)
        .cloned()
}
