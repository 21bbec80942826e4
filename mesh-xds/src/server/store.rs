//! The resources a server offers, by type.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::table::{StoredResource, Table};

/// The resources of all types at one moment. Cloning it copies nothing.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    tables: imbl::OrdMap<Arc<str>, Table>,
    version: u64,
}

impl Snapshot {
    /// Number of changes since the server started; a larger one is a later state.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Number of resources of a type.
    pub fn len(&self, type_url: &str) -> usize {
        self.tables.get(type_url).map_or(0, Table::len)
    }

    /// The resource types that were ever offered.
    pub fn types(&self) -> impl Iterator<Item = &Arc<str>> {
        self.tables.keys()
    }

    /// A resource by its name.
    pub fn resource(&self, type_url: &str, name: &str) -> Option<&StoredResource> {
        self.tables.get(type_url)?.resource(name)
    }

    pub(super) fn table(&self, type_url: &str) -> Option<&Table> {
        self.tables.get(type_url)
    }
}

/// Changes that become visible together.
#[derive(Debug, Default)]
pub struct Transaction {
    upserts: Vec<(Arc<str>, StoredResource)>,
    removals: Vec<(Arc<str>, String)>,
    /// Types of which nothing else shall remain.
    complete: Vec<Arc<str>>,
}

impl Transaction {
    /// No change.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a resource or puts it in the place of the one of the same name.
    pub fn upsert(&mut self, type_url: &str, resource: StoredResource) {
        self.upserts.push((type_url.into(), resource));
    }

    /// Removes a resource.
    pub fn remove(&mut self, type_url: &str, name: impl Into<String>) {
        self.removals.push((type_url.into(), name.into()));
    }

    /// Replaces all resources of a type. Those with equal content are not changed, hence not sent again.
    pub fn replace(&mut self, type_url: &str, resources: impl IntoIterator<Item = StoredResource>) {
        let type_url: Arc<str> = type_url.into();
        self.upserts.extend(resources.into_iter().map(|resource| (Arc::clone(&type_url), resource)));
        self.complete.push(type_url);
    }
}

/// What a transaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Version of the store after it.
    pub version: u64,
    /// Resources added or changed.
    pub upserted: usize,
    /// Resources removed.
    pub removed: usize,
}

/// The current resources; clones are the same store.
#[derive(Debug, Clone)]
pub struct ResourceStore {
    /// Held while a transaction is worked in, so that readers of `published` never wait for one.
    draft: Arc<Mutex<Snapshot>>,
    published: watch::Sender<Snapshot>,
}

impl Default for ResourceStore {
    fn default() -> Self {
        Self { draft: Arc::default(), published: watch::Sender::new(Snapshot::default()) }
    }
}

impl ResourceStore {
    /// A store without resources.
    pub fn new() -> Self {
        Self::default()
    }

    /// The state now.
    pub fn snapshot(&self) -> Snapshot {
        self.published.borrow().clone()
    }

    /// Works the changes in and lets every client know. Takes time in proportion to the changes, not to the store.
    pub fn update(&self, transaction: Transaction) -> Applied {
        self.update_noting(transaction, |_| {})
    }

    /// The same; `note` is called with a change before any client can be sent it, and not where nothing changes.
    pub fn update_noting(&self, transaction: Transaction, note: impl FnOnce(&Applied)) -> Applied {
        let mut draft = self.draft.lock().unwrap_or_else(PoisonError::into_inner);
        let (upserted, removed) = draft.apply(transaction);
        let applied = Applied { version: draft.version, upserted, removed };
        if upserted + removed > 0 {
            note(&applied);
            self.published.send_replace(draft.clone());
        }
        applied
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.published.subscribe()
    }
}

impl Snapshot {
    fn apply(&mut self, transaction: Transaction) -> (usize, usize) {
        let Transaction { upserts, mut removals, complete } = transaction;
        for type_url in complete {
            let kept: HashSet<&Arc<str>> = upserts
                .iter()
                .filter(|(of, _)| *of == type_url)
                .map(|(_, resource)| resource.name())
                .collect();
            let table = self.tables.entry(Arc::clone(&type_url)).or_default();
            removals.extend(
                table
                    .resources()
                    .filter(|resource| !kept.contains(resource.name()))
                    .map(|resource| (Arc::clone(&type_url), resource.name().to_string())),
            );
        }

        let (mut upserted, mut removed) = (0, 0);
        for (type_url, name) in removals {
            let table = self.tables.entry(type_url).or_default();
            if table.remove(&name, self.version + 1) {
                self.version += 1;
                removed += 1;
            }
        }
        for (type_url, resource) in upserts {
            let table = self.tables.entry(type_url).or_default();
            if table.upsert(resource, self.version + 1) {
                self.version += 1;
                upserted += 1;
            }
        }
        (upserted, removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::workload::Workload;

    fn workload(uid: &str, node: &str) -> StoredResource {
        StoredResource::new(uid, &Workload { node: node.to_owned(), ..Default::default() })
    }

    fn transaction(build: impl FnOnce(&mut Transaction)) -> Transaction {
        let mut transaction = Transaction::new();
        build(&mut transaction);
        transaction
    }

    #[test]
    fn a_snapshot_does_not_change_under_its_reader() {
        let store = ResourceStore::new();
        store.update(transaction(|t| t.upsert("t", workload("a", "n1"))));
        let before = store.snapshot();
        store.update(transaction(|t| {
            t.remove("t", "a");
            t.upsert("t", workload("b", "n1"));
        }));
        assert_eq!((before.len("t"), store.snapshot().len("t")), (1, 1));
        assert!(before.resource("t", "a").is_some() && store.snapshot().resource("t", "a").is_none());
        assert!(before.version() < store.snapshot().version());
    }

    #[test]
    fn replacing_with_equal_content_changes_nothing() {
        let store = ResourceStore::new();
        let set = || [workload("a", "n1"), workload("b", "n1")];
        let first = store.update(transaction(|t| t.replace("t", set())));
        assert_eq!((first.upserted, first.removed), (2, 0));
        let again = store.update(transaction(|t| t.replace("t", set())));
        assert_eq!(again, Applied { version: first.version, upserted: 0, removed: 0 });
        let fewer = store.update(transaction(|t| t.replace("t", [workload("b", "n2")])));
        assert_eq!((fewer.upserted, fewer.removed), (1, 1));
    }
}
