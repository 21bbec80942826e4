//! What responses say of resources, encoded once for all clients that are told the same.
//!
//! Clients that follow a whole type, have nothing else to hear of it and have come equally far ([`Place`]) are told the
//! same, whoever they are: a thousand agents that start, or that one change goes out to, share one encoding. It lives for
//! as long as one of them has it on its way; nothing is kept for later, so that memory does not grow with the number
//! of clients but with that of the places at which they are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use prost::Message;

use super::subscription::Removals;
use super::table::StoredResource;
use crate::proto::discovery::DeltaDiscoveryResponse;

/// The resources and removals of one response.
#[derive(Debug)]
pub(super) struct Content {
    /// The fields of a [`DeltaDiscoveryResponse`] that are about resources.
    pub(super) encoded: Bytes,
    /// All the names it is about.
    pub(super) names: Vec<Arc<str>>,
    /// Resources in it.
    pub(super) resources: usize,
    /// Bytes of its resources and names.
    pub(super) bytes: usize,
    /// A client that has it knows of all changes up to here.
    pub(super) end: u64,
    /// Removals up to there that are not in it and have to be announced later.
    pub(super) withheld: Vec<Arc<str>>,
}

/// A content that is being put together.
#[derive(Debug, Default)]
pub(super) struct Draft {
    resources: Vec<Bytes>,
    removed: Vec<String>,
    names: Vec<Arc<str>>,
    withheld: Vec<Arc<str>>,
    bytes: usize,
}

impl Draft {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, resource: &StoredResource) {
        self.bytes += resource.encoded().len();
        self.resources.push(resource.encoded().clone());
        self.names.push(Arc::clone(resource.name()));
    }

    pub(super) fn push_removed(&mut self, name: &str) {
        self.bytes += name.len();
        self.removed.push(name.to_owned());
        self.names.push(name.into());
    }

    pub(super) fn remove(&mut self, name: &Arc<str>, removals: Removals) {
        match removals {
            Removals::Announced => self.push_removed(name),
            Removals::Held => self.withheld.push(Arc::clone(name)),
        }
    }

    pub(super) fn finish(mut self, end: u64) -> Content {
        self.names.shrink_to_fit();
        let resources = self.resources.len();
        let fields = DeltaDiscoveryResponse {
            resources: self.resources,
            removed_resources: self.removed,
            ..DeltaDiscoveryResponse::default()
        };
        Content {
            encoded: fields.encode_to_vec().into(),
            names: self.names,
            resources,
            bytes: self.bytes,
            end,
            withheld: self.withheld,
        }
    }
}

impl Content {
    /// Whether it says nothing.
    pub(super) fn is_silent(&self) -> bool {
        self.encoded.is_empty()
    }
}

/// How far a client has come that follows a whole type and has nothing else to hear of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// Last change of the table it reads; a table with the same one has the same content.
    pub(super) table: u64,
    /// It knows of all changes up to here.
    pub(super) cursor: u64,
    /// It need not hear of removals up to here.
    pub(super) joined: u64,
    /// What becomes of removals.
    pub(super) removals: Removals,
}

/// What is on its way to clients now, by type and place. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Contents(Arc<Mutex<ByPlace>>);

type ByPlace = HashMap<(Arc<str>, Place), Weak<Content>>;

impl Contents {
    /// Those of one type.
    pub(super) fn of(&self, type_url: &Arc<str>) -> ContentsOfType {
        ContentsOfType { contents: self.clone(), type_url: Arc::clone(type_url) }
    }

    fn lock(&self) -> MutexGuard<'_, ByPlace> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is on its way to clients now, of one type.
#[derive(Debug, Default)]
pub(super) struct ContentsOfType {
    contents: Contents,
    type_url: Arc<str>,
}

impl ContentsOfType {
    /// What a client at `place` is told next: what another one there is being told, or else what `read` reads.
    pub(super) fn at(&self, place: Place, read: impl FnOnce() -> Content) -> Arc<Content> {
        let key = (Arc::clone(&self.type_url), place);
        if let Some(known) = self.contents.lock().get(&key).and_then(Weak::upgrade) {
            return known;
        }
        let content = Arc::new(read());
        let mut contents = self.contents.lock();
        if let Some(known) = contents.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        if contents.len() == contents.capacity() {
            contents.retain(|_, content| content.strong_count() > 0);
        }
        contents.insert(key, Arc::downgrade(&content));
        content
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(cursor: u64) -> Place {
        Place { table: 9, cursor, joined: 0, removals: Removals::Announced }
    }

    fn content(name: &str) -> Content {
        let mut draft = Draft::default();
        draft.push_removed(name);
        draft.finish(9)
    }

    #[test]
    fn clients_at_one_place_share_what_they_are_told() {
        let contents = Contents::default();
        let of_type = contents.of(&"t".into());
        let first = of_type.at(place(1), || content("a"));
        let second = of_type.at(place(1), || panic!("it is there"));
        assert!(Arc::ptr_eq(&first, &second));
        assert!(!Arc::ptr_eq(&first, &of_type.at(place(2), || content("a"))), "another place");
        assert!(
            !Arc::ptr_eq(&first, &contents.of(&"u".into()).at(place(1), || content("a"))),
            "another type"
        );
    }

    #[test]
    fn what_everybody_has_is_forgotten() {
        let contents = Contents::default();
        let of_type = contents.of(&"t".into());
        for cursor in 0..10_000 {
            drop(of_type.at(place(cursor), || content("a")));
        }
        assert!(contents.lock().len() < 10, "{}", contents.lock().len());
    }
}
