//! All resources of one type, as an immutable value that is cheap to clone.
//!
//! Every change gets the next number of a sequence, and the log holds, in that order, the *last* change of each
//! name. A client therefore needs to remember a single number to be told exactly what it has not seen yet, and a
//! resource that changed ten times while a client was busy is sent to it once.
//!
//! A removed resource stays in the log as a tombstone. The oldest tombstones are dropped when there are too many;
//! a client that had not read so far cannot be told what went and has to start over ([`Table::forgotten`]).

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::Hasher;
use std::sync::Arc;

use bytes::Bytes;
use imbl::{HashMap, OrdMap, OrdSet};
use prost::{Message, Name};

use crate::proto::{Any, discovery};

/// Tombstones a table keeps at least; above that, as many as it has resources.
const MIN_TOMBSTONES: usize = 1024;

/// A resource, encoded once for all clients. Clones share it.
#[derive(Clone)]
pub struct StoredResource(Arc<Stored>);

struct Stored {
    name: Arc<str>,
    aliases: Vec<Arc<str>>,
    version: String,
    encoded: Bytes,
}

impl StoredResource {
    /// Encodes `message` as the resource `name`.
    pub fn new<M: Name>(name: &str, message: &M) -> Self {
        Self::with_aliases(name, [], Any::pack(message))
    }

    /// A resource that can also be subscribed to by other names. Resources may share an alias: who subscribes to
    /// it gets all of them.
    pub fn with_aliases<'a>(name: &str, aliases: impl IntoIterator<Item = &'a str>, body: Any) -> Self {
        let aliases: Vec<Arc<str>> = aliases.into_iter().map(Arc::from).collect();
        let version = content_version(&aliases, &body);
        let encoded = discovery::Resource {
            version: version.clone(),
            resource: Some(body),
            name: name.to_owned(),
            aliases: aliases.iter().map(|alias| alias.to_string()).collect(),
            ttl: None,
        }
        .encode_to_vec()
        .into();
        Self(Arc::new(Stored { name: name.into(), aliases, version, encoded }))
    }

    /// Name, unique within the type.
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// Other names it answers to.
    pub fn aliases(&self) -> &[Arc<str>] {
        &self.0.aliases
    }

    /// Version: equal content has an equal one, on every server, so that a client that comes back or goes over
    /// to another server is sent differences only.
    pub fn version(&self) -> &str {
        &self.0.version
    }

    /// The resource as it is sent.
    pub(super) fn encoded(&self) -> &Bytes {
        &self.0.encoded
    }
}

impl fmt::Debug for StoredResource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}", self.0.name, self.0.version)
    }
}

/// SipHash with fixed keys: servers of different builds may disagree on it, which costs a client one full resend.
fn content_version(aliases: &[Arc<str>], body: &Any) -> String {
    let mut hasher = DefaultHasher::new();
    for alias in aliases {
        hasher.write(alias.as_bytes());
        hasher.write_u8(0xff);
    }
    hasher.write(body.type_url.as_bytes());
    hasher.write_u8(0xff);
    hasher.write(&body.value);
    format!("{:016x}", hasher.finish())
}

/// All resources of one type.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    entries: HashMap<Arc<str>, Entry>,
    /// The last change of each name, in the order of their sequence numbers.
    log: OrdMap<u64, Arc<str>>,
    /// (alias, name) pairs.
    aliases: OrdSet<(Arc<str>, Arc<str>)>,
    tombstones: OrdSet<u64>,
    forgotten: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    sequence: u64,
    /// `None` is a tombstone.
    resource: Option<StoredResource>,
}

/// The last change of a name.
pub(super) struct Change<'a> {
    pub(super) sequence: u64,
    pub(super) name: &'a Arc<str>,
    /// `None` if it was removed.
    pub(super) resource: Option<&'a StoredResource>,
}

impl Table {
    /// Number of resources.
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.tombstones.len()
    }

    /// Sequence number of the last change.
    pub(super) fn sequence(&self) -> u64 {
        self.log.get_max().map_or(0, |(sequence, _)| *sequence).max(self.forgotten)
    }

    /// Removals up to this number may have been forgotten.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    pub(super) fn resource(&self, name: &str) -> Option<&StoredResource> {
        self.entries.get(name)?.resource.as_ref()
    }

    pub(super) fn resources(&self) -> impl Iterator<Item = &StoredResource> {
        self.entries.values().filter_map(|entry| entry.resource.as_ref())
    }

    /// The resources that `name` stands for, as their name or as an alias.
    pub(super) fn resolve<'a>(&'a self, name: &'a Arc<str>) -> impl Iterator<Item = &'a StoredResource> {
        let first = (Arc::clone(name), Arc::from(""));
        let by_alias = self
            .aliases
            .range(first..)
            .take_while(move |(alias, _)| alias == name)
            .filter_map(|(_, target)| self.resource(target))
            .filter(move |resource| resource.name() != name);
        self.resource(name).into_iter().chain(by_alias)
    }

    /// The last change of every name that changed after `sequence`, oldest first.
    pub(super) fn changes_after(&self, sequence: u64) -> impl Iterator<Item = Change<'_>> {
        self.log.range(sequence.saturating_add(1)..).map(|(sequence, name)| Change {
            sequence: *sequence,
            name,
            resource: self.resource(name),
        })
    }

    /// Puts a resource in place. Returns whether that is a change.
    pub(super) fn upsert(&mut self, resource: StoredResource, sequence: u64) -> bool {
        if self.resource(resource.name()).is_some_and(|present| present.version() == resource.version()) {
            return false;
        }
        self.forget_entry(&Arc::clone(resource.name()));
        for alias in resource.aliases() {
            self.aliases.insert((Arc::clone(alias), Arc::clone(resource.name())));
        }
        let name = Arc::clone(resource.name());
        self.log.insert(sequence, Arc::clone(&name));
        self.entries.insert(name, Entry { sequence, resource: Some(resource) });
        true
    }

    /// Takes a resource away. Returns whether there was one.
    pub(super) fn remove(&mut self, name: &str, sequence: u64) -> bool {
        let Some(name) = self.resource(name).map(|resource| Arc::clone(resource.name())) else {
            return false;
        };
        self.forget_entry(&name);
        self.log.insert(sequence, Arc::clone(&name));
        self.tombstones.insert(sequence);
        self.entries.insert(name, Entry { sequence, resource: None });

        while self.tombstones.len() > self.len().max(MIN_TOMBSTONES) {
            let Some(oldest) = self.tombstones.remove_min() else { break };
            if let Some(name) = self.log.remove(&oldest) {
                self.entries.remove(&name);
            }
            self.forgotten = oldest;
        }
        true
    }

    /// Takes out all that is known of `name`, a tombstone too.
    fn forget_entry(&mut self, name: &Arc<str>) {
        let Some(entry) = self.entries.remove(name) else { return };
        self.log.remove(&entry.sequence);
        self.tombstones.remove(&entry.sequence);
        for alias in entry.resource.iter().flat_map(|resource| resource.aliases()) {
            self.aliases.remove(&(Arc::clone(alias), Arc::clone(name)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(name: &str, aliases: &[&str], content: &'static str) -> StoredResource {
        let body = Any { type_url: "t".to_owned(), value: Bytes::from_static(content.as_bytes()) };
        StoredResource::with_aliases(name, aliases.iter().copied(), body)
    }

    fn changes(table: &Table, after: u64) -> Vec<(u64, &str, bool)> {
        table.changes_after(after).map(|c| (c.sequence, c.name.as_ref(), c.resource.is_some())).collect()
    }

    #[test]
    fn only_the_last_change_of_a_name_is_logged() {
        let mut table = Table::default();
        assert!(table.upsert(resource("a", &[], "1"), 1));
        assert!(table.upsert(resource("b", &[], "1"), 2));
        assert!(table.upsert(resource("a", &[], "2"), 3));
        assert!(!table.upsert(resource("a", &[], "2"), 4), "equal content is no change");
        assert_eq!(changes(&table, 0), [(2, "b", true), (3, "a", true)]);

        assert!(table.remove("b", 5));
        assert!(!table.remove("b", 6));
        assert_eq!(changes(&table, 3), [(5, "b", false)]);
        assert_eq!((table.len(), table.sequence()), (1, 5));
    }

    #[test]
    fn names_resolve_through_aliases() {
        let mut table = Table::default();
        table.upsert(resource("a", &["ip1", "svc"], "1"), 1);
        table.upsert(resource("b", &["svc"], "1"), 2);
        let resolve = |table: &Table, name: &str| -> Vec<String> {
            table.resolve(&name.into()).map(|r| r.name().to_string()).collect()
        };
        assert_eq!(resolve(&table, "svc"), ["a", "b"]);
        assert_eq!(resolve(&table, "a"), ["a"]);

        table.upsert(resource("a", &["ip2"], "1"), 3);
        assert_eq!(resolve(&table, "svc"), ["b"]);
        assert_eq!(resolve(&table, "ip1"), Vec::<String>::new());
        table.remove("b", 4);
        assert_eq!(resolve(&table, "svc"), Vec::<String>::new());
    }

    #[test]
    fn tombstones_are_bounded_and_what_was_forgotten_is_known() {
        let mut table = Table::default();
        let mut sequence = 0;
        for number in 0..=MIN_TOMBSTONES {
            let name = format!("r{number}");
            table.upsert(resource(&name, &[], "1"), sequence + 1);
            table.remove(&name, sequence + 2);
            sequence += 2;
        }
        assert_eq!(table.tombstones.len(), MIN_TOMBSTONES);
        assert_eq!(table.entries.len(), MIN_TOMBSTONES);
        assert_eq!((table.forgotten(), table.sequence()), (2, sequence));
    }
}
