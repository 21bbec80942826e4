//! Whom a change of a policy touches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Dirty, Inputs, in_namespace};
use crate::model::{AuthorizationPolicy, ObjectName, PeerAuthentication, Selector};
use crate::translate::Item;

impl Inputs {
    /// Puts a policy in the place of another, or of none. Workloads name the policies that select them: they look at
    /// its selector only.
    pub(super) fn replace_policy(
        &mut self,
        name: &ObjectName,
        policy: Option<Arc<AuthorizationPolicy>>,
        dirty: &mut Dirty,
    ) {
        let was = self.policies.remove_authorization(name);
        let now = policy.as_ref();
        let (before, after) =
            (was.and_then(|was| was.selector.clone()), now.and_then(|now| now.selector.clone()));
        if let Some(policy) = policy {
            self.policies.insert_authorization(policy);
        }
        dirty.insert(Item::AuthorizationPolicy(name.clone()));
        if before != after {
            for selector in before.iter().chain(&after) {
                self.touch_selected_by_policy(&name.namespace, selector, dirty);
            }
        }
    }

    pub(super) fn touch_peer(&self, policy: &PeerAuthentication, dirty: &mut Dirty) {
        let namespace = &policy.name.namespace;
        dirty.insert(Item::PeerAuthentication(policy.name.clone()));
        match &policy.selector {
            // It selects nobody.
            Some(_) if self.policies.is_root(namespace) => {}
            Some(selector) => self.touch_selected(namespace, Some(selector), dirty),
            None if self.policies.is_root(namespace) => {
                dirty.extend(self.policies.all_peers().cloned().map(Item::PeerAuthentication));
                for namespace in self.namespaces_of_workloads() {
                    self.touch_workloads(&namespace, dirty);
                }
            }
            None => {
                dirty.extend(self.policies.peers_in(namespace).cloned().map(Item::PeerAuthentication));
                self.touch_workloads(namespace, dirty);
            }
        }
    }

    fn touch_selected_by_policy(&self, namespace: &Arc<str>, selector: &Selector, dirty: &mut Dirty) {
        if !self.policies.is_root(namespace) {
            return self.touch_selected(namespace, Some(selector), dirty);
        }
        for namespace in self.namespaces_of_workloads() {
            self.touch_selected(&namespace, Some(selector), dirty);
        }
    }

    fn touch_workloads(&self, namespace: &Arc<str>, dirty: &mut Dirty) {
        dirty.extend(in_namespace(&self.pods, namespace).map(Item::Pod));
        dirty.extend(in_namespace(&self.workload_entries, namespace).map(Item::WorkloadEntry));
        dirty.extend(in_namespace(&self.service_entries, namespace).map(Item::ServiceEntry));
    }

    fn namespaces_of_workloads(&self) -> BTreeSet<Arc<str>> {
        let mut namespaces = BTreeSet::new();
        namespaces.extend(namespaces_of(&self.pods));
        namespaces.extend(namespaces_of(&self.workload_entries));
        namespaces.extend(namespaces_of(&self.service_entries));
        namespaces
    }
}

/// The namespaces that have one of the resources, without looking at each resource.
fn namespaces_of<V>(resources: &BTreeMap<ObjectName, V>) -> impl Iterator<Item = Arc<str>> {
    let first = resources.keys().next().map(|name| Arc::clone(&name.namespace));
    std::iter::successors(first, |namespace| {
        // No name sorts after this one, which no namespace has: names are of ASCII.
        let last = ObjectName::new(Arc::clone(namespace), "\u{10ffff}");
        resources.range(last..).next().map(|(name, _)| Arc::clone(&name.namespace))
    })
}
