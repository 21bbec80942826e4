//! The policies there are, found by whom they are for.
//!
//! A policy is for workloads of its own namespace; one of the root namespace is for those of all namespaces. With a
//! selector it is for those it selects, and these say so.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::index::Selecting;
use crate::model::{AuthorizationPolicy, Labels, ObjectName, PeerAuthentication};

/// By age: the first counts. Those without a date (written by hand) come first, in the order of their names.
type Age = (Option<Time>, ObjectName);

/// The policies there are.
#[derive(Debug, Default)]
pub(super) struct Policies {
    root: Arc<str>,
    authorizations: BTreeMap<ObjectName, Arc<AuthorizationPolicy>>,
    authorizations_by_selector: Selecting<ObjectName>,
    peers: BTreeMap<ObjectName, Arc<PeerAuthentication>>,
    peers_by_selector: Selecting<Age>,
    /// Those for all of a namespace.
    wide_peers: HashMap<Arc<str>, BTreeSet<Age>>,
}

impl Policies {
    pub(super) fn new(root: Arc<str>) -> Self {
        Self { root, ..Self::default() }
    }

    /// Whether policies of the namespace are for the whole mesh.
    pub(super) fn is_root(&self, namespace: &str) -> bool {
        *self.root == *namespace
    }

    pub(super) fn authorization(&self, name: &ObjectName) -> Option<&Arc<AuthorizationPolicy>> {
        self.authorizations.get(name)
    }

    pub(super) fn authorization_count(&self) -> usize {
        self.authorizations.len()
    }

    pub(super) fn peer(&self, name: &ObjectName) -> Option<&Arc<PeerAuthentication>> {
        self.peers.get(name)
    }

    pub(super) fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// The PeerAuthentications of a namespace.
    pub(super) fn peers_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &ObjectName> {
        let from = ObjectName::new(Arc::clone(namespace), "");
        self.peers.range(from..).map(|(name, _)| name).take_while(move |name| name.namespace == *namespace)
    }

    pub(super) fn all_peers(&self) -> impl Iterator<Item = &ObjectName> {
        self.peers.keys()
    }

    /// Authorization policies that select a workload of the namespace with these labels, in the order of their names.
    pub(super) fn selecting(&self, namespace: &Arc<str>, labels: &Labels) -> BTreeSet<&ObjectName> {
        let of = |namespace| self.authorizations_by_selector.candidates(namespace, labels);
        of(namespace)
            .chain(of(&self.root))
            .filter(|name| {
                let selector = self.authorizations.get(*name).and_then(|policy| policy.selector.as_ref());
                selector.is_some_and(|selector| selector.matches(labels))
            })
            .collect()
    }

    /// The oldest PeerAuthentication for all workloads of the namespace; for the root namespace, of the mesh.
    pub(super) fn wide_peer(&self, namespace: &Arc<str>) -> Option<&PeerAuthentication> {
        let (_, name) = self.wide_peers.get(namespace)?.first()?;
        self.peers.get(name).map(AsRef::as_ref)
    }

    /// The PeerAuthentication for all workloads of the mesh.
    pub(super) fn mesh_peer(&self) -> Option<&PeerAuthentication> {
        self.wide_peer(&self.root)
    }

    /// The oldest PeerAuthentication that selects a workload of the namespace with these labels. As with Istio those
    /// of the root namespace select nobody.
    pub(super) fn selecting_peer(
        &self,
        namespace: &Arc<str>,
        labels: &Labels,
    ) -> Option<&PeerAuthentication> {
        if self.is_root(namespace) {
            return None;
        }
        let candidates: BTreeSet<&Age> = self.peers_by_selector.candidates(namespace, labels).collect();
        candidates
            .into_iter()
            .filter_map(|(_, name)| self.peers.get(name).map(AsRef::as_ref))
            .find(|policy| policy.selector.as_ref().is_some_and(|selector| selector.matches(labels)))
    }

    pub(super) fn insert_authorization(&mut self, policy: Arc<AuthorizationPolicy>) {
        let name = &policy.name;
        if let Some(selector) = &policy.selector {
            self.authorizations_by_selector.insert(&name.namespace, selector, name.clone());
        }
        self.authorizations.insert(name.clone(), policy);
    }

    pub(super) fn remove_authorization(&mut self, name: &ObjectName) -> Option<Arc<AuthorizationPolicy>> {
        let policy = self.authorizations.remove(name)?;
        if let Some(selector) = &policy.selector {
            self.authorizations_by_selector.remove(&name.namespace, selector, name);
        }
        Some(policy)
    }

    pub(super) fn insert_peer(&mut self, policy: Arc<PeerAuthentication>) {
        let (namespace, age) = (&policy.name.namespace, age(&policy));
        match &policy.selector {
            Some(selector) => self.peers_by_selector.insert(namespace, selector, age),
            None => {
                self.wide_peers.entry(Arc::clone(namespace)).or_default().insert(age);
            }
        }
        self.peers.insert(policy.name.clone(), policy);
    }

    pub(super) fn remove_peer(&mut self, name: &ObjectName) -> Option<Arc<PeerAuthentication>> {
        let policy = self.peers.remove(name)?;
        let age = age(&policy);
        if let Some(selector) = &policy.selector {
            self.peers_by_selector.remove(&name.namespace, selector, &age);
        } else if let Some(wide) = self.wide_peers.get_mut(&name.namespace) {
            wide.remove(&age);
            if wide.is_empty() {
                self.wide_peers.remove(&name.namespace);
            }
        }
        Some(policy)
    }
}

fn age(policy: &PeerAuthentication) -> Age {
    (policy.created.clone(), policy.name.clone())
}
