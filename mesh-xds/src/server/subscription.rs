//! What one client wants and has of one resource type: the protocol's bookkeeping, without any I/O.
//!
//! A wildcard subscription is a position in the table's change log, whatever the number of resources. A
//! subscription by name also remembers what it delivered for the names, because a name may be an alias whose
//! meaning changes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::content::{Content, ContentsOfType, Draft, Place};
use super::table::{Change, StoredResource, Table};

const WILDCARD: &str = "*";

/// The client has not read removals that the table no longer remembers. It has to reconnect and say what it
/// holds.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client is too far behind to be told what was removed; it has to reconnect")]
pub(super) struct TooFarBehind;

/// A request, as far as it is about subscribing.
#[derive(Debug, Default)]
pub(super) struct Interest {
    pub(super) subscribe: Vec<String>,
    pub(super) unsubscribe: Vec<String>,
    pub(super) held: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
pub(super) struct Subscription {
    started: bool,
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// By name only: the resources that were sent for the names.
    delivered: HashMap<Arc<str>, StoredResource>,
    /// The client knows of all changes up to here.
    cursor: u64,
    /// State of the table when the client joined: it needs no word of what was removed earlier.
    joined: u64,
    /// The change being sent ends here; what comes later is the next one.
    goal: u64,
    /// Versions the client came with, until they are compared.
    held: BTreeMap<String, String>,
    /// Names to be answered even if nothing changed.
    unanswered: BTreeSet<Arc<str>>,
    /// Removals to announce.
    gone: BTreeSet<String>,
    /// The first answer is due even if there is nothing to say: clients wait for it before they call
    /// themselves ready.
    owes_answer: bool,
}

/// What becomes of removals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Removals {
    /// They are announced.
    Announced,
    /// They wait: the client may hold resources that name what is gone.
    Held,
}

/// One response.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) content: Arc<Content>,
    /// The change goes on in the next response.
    pub(super) more: bool,
}

impl Subscription {
    /// Whether it is for all resources.
    pub(super) fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    /// Number of names subscribed to.
    pub(super) fn name_count(&self) -> usize {
        self.names.len()
    }

    /// The client knows of all changes up to this sequence number.
    pub(super) fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Works a request in.
    pub(super) fn express(&mut self, interest: Interest, table: &Table) {
        let Interest { subscribe, unsubscribe, held } = interest;
        let first = !std::mem::replace(&mut self.started, true);
        if first {
            self.join(table);
            self.held = held;
        } else {
            self.distrust(subscribe.iter().chain(&unsubscribe), table);
        }

        let implicit = first && subscribe.is_empty() && unsubscribe.is_empty();
        let subscribed = implicit || subscribe.iter().any(|name| name == WILDCARD);
        let unsubscribed = unsubscribe.iter().any(|name| name == WILDCARD);
        // In this order: a client that only asks on demand says so by doing both at once.
        let wildcard = (self.wildcard || subscribed) && !unsubscribed;

        for name in subscribe.iter().filter(|name| *name != WILDCARD) {
            self.ask(name);
        }
        if first && !wildcard {
            self.return_named(table);
        }
        match (self.wildcard, wildcard) {
            (false, true) => self.become_wildcard(table),
            (true, false) => self.become_named(table),
            _ => {}
        }
        self.owes_answer |= first && !self.unanswered.is_empty();

        if !unsubscribe.is_empty() {
            self.leave(&unsubscribe);
        }
    }

    fn join(&mut self, table: &Table) {
        self.cursor = table.sequence();
        self.joined = table.sequence();
    }

    /// What a client holds that returns and asks by name.
    fn return_named(&mut self, table: &Table) {
        if self.names.is_empty() {
            // ztunnel says only here what it still wants.
            let held: Vec<String> = self.held.keys().cloned().collect();
            held.iter().for_each(|name| self.ask(name));
            return;
        }
        for name in self.held.keys() {
            match table.resource(name).filter(|resource| wants(&self.names, resource)) {
                // At which version, comes out when its names are answered.
                Some(resource) => {
                    self.delivered.insert(Arc::clone(resource.name()), resource.clone());
                }
                None => {
                    self.gone.insert(name.clone());
                }
            }
        }
    }

    /// What a later request names, the client may have dropped: what it said it holds is no longer certain.
    fn distrust<'a>(&mut self, names: impl Iterator<Item = &'a String>, table: &Table) {
        if self.held.is_empty() {
            return;
        }
        for name in names {
            self.held.remove(name);
            for resource in table.resolve(&name.as_str().into()) {
                self.held.remove(resource.name().as_ref());
            }
        }
    }

    fn ask(&mut self, name: &str) {
        let name: Arc<str> = name.into();
        self.unanswered.insert(Arc::clone(&name));
        self.names.insert(name);
    }

    fn leave(&mut self, names: &[String]) {
        for name in names {
            self.names.remove(name.as_str());
            self.unanswered.remove(name.as_str());
        }
        let names = &self.names;
        let left = self.delivered.extract_if(|_, resource| !wants(names, resource));
        // The client drops what it left. But it may keep one for an alias which, unknown to it, is no longer the
        // resource's: that one would never be heard of again.
        self.gone.extend(left.map(|(name, _)| name.to_string()));
    }

    /// Reads the log from its beginning; what the client holds already is passed over.
    fn become_wildcard(&mut self, table: &Table) {
        self.wildcard = true;
        self.owes_answer = true;
        self.joined = table.sequence();
        self.cursor = 0;
        let delivered = std::mem::take(&mut self.delivered);
        let known = self.held.keys().map(String::as_str).chain(delivered.keys().map(AsRef::as_ref));
        self.gone.extend(known.filter(|name| table.resource(name).is_none()).map(str::to_owned));
    }

    fn become_named(&mut self, table: &Table) {
        self.wildcard = false;
        self.join(table);
        let delivered = self.names.iter().flat_map(|name| table.resolve(name));
        self.delivered = delivered.map(|resource| (Arc::clone(resource.name()), resource.clone())).collect();
        self.unanswered.clone_from(&self.names);
    }

    /// Whether there is anything to tell the client of what was added or changed.
    pub(super) fn is_behind(&self, table: &Table) -> bool {
        self.cursor < table.sequence() || !self.unanswered.is_empty()
    }

    /// The next response, of about `limit` bytes (a single resource may be larger), if there is anything to say.
    pub(super) fn next_batch(
        &mut self,
        table: &Table,
        limit: usize,
        removals: Removals,
        shared: &ContentsOfType,
    ) -> Result<Option<Batch>, TooFarBehind> {
        if table.forgotten() > self.cursor.max(self.joined) {
            return Err(TooFarBehind);
        }
        if self.cursor >= self.goal {
            self.goal = table.sequence();
        }
        let content = match self.place(table, removals) {
            Some(place) => {
                let content = shared.at(place.clone(), || read_on(table, &place, limit));
                self.cursor = content.end;
                self.gone.extend(content.withheld.iter().map(|name| name.to_string()));
                content
            }
            None => Arc::new(self.own_content(table, limit, removals)),
        };
        let to_announce = removals == Removals::Announced && !self.gone.is_empty();
        let more = self.cursor < self.goal || to_announce || !self.unanswered.is_empty();

        if self.unanswered.is_empty() && self.cursor >= self.joined {
            self.held.clear();
        }
        let owed = std::mem::take(&mut self.owes_answer);
        Ok((!content.is_silent() || owed).then_some(Batch { content, more }))
    }

    /// Where the client is, if it is to be told what everybody is who is there.
    fn place(&self, table: &Table, removals: Removals) -> Option<Place> {
        let alike =
            self.wildcard && self.held.is_empty() && self.gone.is_empty() && self.unanswered.is_empty();
        alike.then(|| Place {
            table: table.sequence(),
            cursor: self.cursor,
            joined: self.joined.max(self.cursor),
            removals,
        })
    }

    /// What this client is told, in the light of all it has and wants.
    fn own_content(&mut self, table: &Table, limit: usize, removals: Removals) -> Content {
        let mut draft = Draft::default();
        let mut answered = HashSet::new();
        if removals == Removals::Announced {
            self.announce_gone(table, &mut draft, limit);
        }
        self.answer(table, &mut draft, &mut answered, limit);
        self.follow_changes(table, &mut draft, &answered, limit, removals);
        let mut content = draft.finish(self.cursor);
        self.gone.extend(content.withheld.drain(..).map(|name| name.to_string()));
        content
    }

    fn announce_gone(&mut self, table: &Table, draft: &mut Draft, limit: usize) {
        while draft.bytes() < limit {
            let Some(name) = self.gone.pop_first() else { break };
            // It may have come back meanwhile.
            let offered = table.resource(&name);
            if !offered.is_some_and(|resource| self.wildcard || wants(&self.names, resource)) {
                // Should it come back as it was, the client does not hold it any more.
                self.held.remove(&name);
                draft.push_removed(&name);
            }
        }
    }

    fn answer(&mut self, table: &Table, draft: &mut Draft, answered: &mut HashSet<Arc<str>>, limit: usize) {
        while draft.bytes() < limit {
            let Some(name) = self.unanswered.pop_first() else { break };
            let mut exists = false;
            for resource in table.resolve(&name) {
                exists = true;
                let held = self.held.get(resource.name().as_ref()).is_some_and(|v| v == resource.version());
                if !held && answered.insert(Arc::clone(resource.name())) {
                    draft.push(resource);
                    // What it came with is overwritten.
                    self.held.remove(resource.name().as_ref());
                }
                if !self.wildcard {
                    self.delivered.insert(Arc::clone(resource.name()), resource.clone());
                }
            }
            if !exists {
                draft.push_removed(&name);
            }
        }
    }

    fn follow_changes(
        &mut self,
        table: &Table,
        draft: &mut Draft,
        answered: &HashSet<Arc<str>>,
        limit: usize,
        removals: Removals,
    ) {
        if self.wildcard {
            let (place, held) = (self.cursor, &mut self.held);
            self.cursor = follow_all(table, place, self.joined, limit, removals, draft, |resource| {
                let held = held.remove(resource.name().as_ref());
                held.is_some_and(|version| version == resource.version())
                    || answered.contains(resource.name())
            });
            return;
        }
        for change in table.changes_after(self.cursor) {
            if draft.bytes() >= limit {
                return;
            }
            self.follow_named(table, &change, draft, answered, removals);
            self.cursor = change.sequence;
        }
        self.cursor = self.cursor.max(table.sequence());
    }

    fn follow_named(
        &mut self,
        table: &Table,
        change: &Change<'_>,
        draft: &mut Draft,
        answered: &HashSet<Arc<str>>,
        removals: Removals,
    ) {
        let name = change.name;
        if answered.contains(name) {
            return;
        }
        let before = match change.resource.filter(|resource| wants(&self.names, resource)) {
            Some(resource) => {
                draft.push(resource);
                self.delivered.insert(Arc::clone(name), resource.clone())
            }
            None => {
                let before = self.delivered.remove(name);
                if before.is_some() {
                    draft.remove(name, removals);
                }
                before
            }
        };
        // An alias that the client asked for and that leads nowhere any more is as good as removed.
        for alias in before.iter().flat_map(|resource| resource.aliases()) {
            if self.names.contains(alias) && table.resolve(alias).next().is_none() {
                draft.remove(alias, removals);
            }
        }
    }
}

/// What a client is told that follows everything, from `place` on.
fn read_on(table: &Table, place: &Place, limit: usize) -> Content {
    let mut draft = Draft::default();
    let end = follow_all(table, place.cursor, place.joined, limit, place.removals, &mut draft, |_| false);
    draft.finish(end)
}

/// Tells of the changes after `cursor` that are not `known`; returns up to where it came.
fn follow_all(
    table: &Table,
    mut cursor: u64,
    joined: u64,
    limit: usize,
    removals: Removals,
    draft: &mut Draft,
    mut known: impl FnMut(&StoredResource) -> bool,
) -> u64 {
    for change in table.changes_after(cursor) {
        if draft.bytes() >= limit {
            return cursor;
        }
        match change.resource {
            Some(resource) if known(resource) => {}
            Some(resource) => draft.push(resource),
            None if change.sequence > joined => draft.remove(change.name, removals),
            None => {}
        }
        cursor = change.sequence;
    }
    cursor.max(table.sequence())
}

fn wants(names: &BTreeSet<Arc<str>>, resource: &StoredResource) -> bool {
    names.contains(resource.name()) || resource.aliases().iter().any(|alias| names.contains(alias))
}

#[cfg(test)]
mod tests;
