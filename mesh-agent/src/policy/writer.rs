//! Brings [`Policies`] up to date, one change at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::model::{Policy, Scope};
use super::policies::{Policies, Selection};
use crate::config::Workload;

/// The only writer of [`Policies`].
#[derive(Debug, Default)]
pub struct PolicyStore {
    policies: Policies,
    /// Workloads of this node by namespace; namespaces without any are left out.
    local: BTreeMap<Arc<str>, usize>,
    /// Pods of one kind name the same policies: they share what their list selects.
    lists: HashMap<List, u64>,
    selections: HashMap<u64, Users>,
    /// Which selections name a policy, held or not.
    named_by: HashMap<Arc<str>, BTreeSet<u64>>,
    last_number: u64,
}

/// Names of policies, sorted, and the namespace of the workloads that name them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct List {
    namespace: Arc<str>,
    names: Arc<[Arc<str>]>,
}

#[derive(Debug)]
struct Users {
    list: List,
    workloads: usize,
}

impl PolicyStore {
    /// The policies as they are now.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Takes in a policy that is new or has changed.
    pub fn insert(&mut self, policy: Arc<Policy>) {
        let old = self.policies.held.insert(Arc::clone(&policy.name), Arc::clone(&policy));
        if old.as_ref() == Some(&policy) {
            return;
        }
        if let Some(old) = old {
            self.unplace(&old);
        }
        self.place(&policy);
    }

    /// Takes out a policy, if it is held.
    pub fn remove(&mut self, name: &str) {
        if let Some(old) = self.policies.held.remove(name) {
            self.unplace(&old);
            for number in self.named_by.get(name).into_iter().flatten() {
                if let Some(selection) = self.policies.selections.get_mut(number) {
                    selection.missing.insert(Arc::clone(&old.name));
                    self.policies.revision += 1;
                }
            }
        }
    }

    /// A workload of this node is new or has changed.
    pub fn insert_workload(&mut self, old: Option<&Workload>, workload: &Workload) {
        let same = |old: &Workload| {
            old.authorization_policies == workload.authorization_policies
                && old.addresses == workload.addresses
                && old.identity() == workload.identity()
        };
        if old.is_some_and(same) {
            return;
        }
        if let Some(old) = old {
            self.remove_workload(old);
        }
        *self.local.entry(Arc::clone(&workload.namespace)).or_default() += 1;
        self.select(workload);
        self.policies.revision += 1;
    }

    /// A workload of this node is gone.
    pub fn remove_workload(&mut self, workload: &Workload) {
        if let Some(count) = self.local.get_mut(&workload.namespace) {
            *count -= 1;
            if *count == 0 {
                self.local.remove(&workload.namespace);
            }
        }
        self.deselect(workload);
        self.policies.revision += 1;
    }

    /// Whether nothing is left of what was taken in, besides counters.
    #[cfg(test)]
    pub(super) fn is_pristine(&self) -> bool {
        let Self { policies, local, lists, selections, named_by, .. } = self;
        let sets = [policies.namespaces.len(), policies.selections.len(), policies.selected.len()];
        let own = [local.len(), lists.len(), selections.len(), named_by.len(), policies.held.len()];
        policies.global.is_pristine() && sets.into_iter().chain(own).all(|left| left == 0)
    }

    /// Puts a policy where those that it decides about find it.
    fn place(&mut self, policy: &Arc<Policy>) {
        match policy.scope {
            Scope::Global => self.policies.global.insert(policy),
            Scope::Namespace => {
                let namespace = Arc::clone(&policy.namespace);
                self.policies.namespaces.entry(namespace).or_default().insert(policy);
            }
            Scope::Workload => {}
        }
        let mut decides = self.decides(policy);
        for number in self.named_by.get(&policy.name).into_iter().flatten() {
            let Some(selection) = self.policies.selections.get_mut(number) else { continue };
            decides = true;
            selection.missing.remove(&policy.name);
            if self.selections.get(number).is_some_and(|users| !policy.covers(&users.list.namespace)) {
                selection.set.insert(policy);
            }
        }
        self.policies.revision += u64::from(decides);
    }

    fn unplace(&mut self, policy: &Policy) {
        match policy.scope {
            Scope::Global => self.policies.global.remove(policy),
            Scope::Namespace => {
                if let Some(set) = self.policies.namespaces.get_mut(&policy.namespace) {
                    set.remove(policy);
                    if set.is_empty() {
                        self.policies.namespaces.remove(&policy.namespace);
                    }
                }
            }
            Scope::Workload => {}
        }
        for number in self.named_by.get(&policy.name).into_iter().flatten() {
            if let Some(selection) = self.policies.selections.get_mut(number) {
                selection.set.remove(policy);
            }
        }
        self.policies.revision += u64::from(self.decides(policy));
    }

    /// Whether a policy decides about any workload of this node without being named.
    fn decides(&self, policy: &Policy) -> bool {
        match policy.scope {
            Scope::Global => !self.local.is_empty(),
            Scope::Namespace => self.local.contains_key(&policy.namespace),
            Scope::Workload => false,
        }
    }

    fn select(&mut self, workload: &Workload) {
        let Some(list) = List::of(workload) else { return };
        let number = match self.lists.get(&list) {
            Some(number) => *number,
            None => self.add_list(list),
        };
        if let Some(users) = self.selections.get_mut(&number) {
            users.workloads += 1;
        }
        self.policies.selected.insert(Arc::clone(&workload.uid), number);
    }

    fn add_list(&mut self, list: List) -> u64 {
        self.last_number += 1;
        let number = self.last_number;
        for name in &*list.names {
            self.named_by.entry(Arc::clone(name)).or_default().insert(number);
        }
        let selection = Selection::new(&list.names, &list.namespace, &self.policies.held);
        self.policies.selections.insert(number, selection);
        self.selections.insert(number, Users { list: list.clone(), workloads: 0 });
        self.lists.insert(list, number);
        number
    }

    fn deselect(&mut self, workload: &Workload) {
        let Some(number) = self.policies.selected.remove(&*workload.uid) else { return };
        let Some(users) = self.selections.get_mut(&number) else { return };
        users.workloads -= 1;
        if users.workloads > 0 {
            return;
        }
        let Some(Users { list, .. }) = self.selections.remove(&number) else { return };
        self.policies.selections.remove(&number);
        for name in &*list.names {
            if let Some(numbers) = self.named_by.get_mut(name) {
                numbers.remove(&number);
                if numbers.is_empty() {
                    self.named_by.remove(name);
                }
            }
        }
        self.lists.remove(&list);
    }
}

impl List {
    /// The list of a workload, if it names any policy.
    fn of(workload: &Workload) -> Option<Self> {
        let mut names = workload.authorization_policies.clone();
        names.sort_unstable();
        names.dedup();
        let namespace = Arc::clone(&workload.namespace);
        (!names.is_empty()).then(|| Self { namespace, names: names.into() })
    }
}
