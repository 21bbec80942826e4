//! What is known of the API's objects, and what that changes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{Event, Seen};
use crate::memory;
use crate::model::findings::Severity;
use crate::model::{Kind, Resource, ResourceKey};
use crate::source::report::LAST_GOOD;
use crate::source::{Change, Problem, Report, WatchReport, WatchState};

/// The resources that count, those of translation: they are shared, not copied.
#[derive(Debug)]
pub(super) struct Held {
    resources: HashMap<ResourceKey, Resource>,
    /// What was there before the changes that were not told yet.
    before: HashMap<ResourceKey, Option<Resource>>,
    problems: BTreeMap<ResourceKey, Vec<Problem>>,
    /// Kinds that are being listed, and what was seen of them.
    listing: HashMap<Kind, HashSet<ResourceKey>>,
    /// Kinds that were never listed as a whole.
    unread: BTreeSet<Kind>,
    states: BTreeMap<Kind, WatchState>,
    /// Whether the report would be another one.
    news: bool,
    /// Whether a list of many objects has ended since somebody asked.
    listed_many: bool,
}

impl Held {
    pub(super) fn new() -> Self {
        Self {
            resources: HashMap::new(),
            before: HashMap::new(),
            problems: BTreeMap::new(),
            listing: HashMap::new(),
            unread: Kind::ALL.into(),
            states: Kind::ALL.map(|kind| (kind, WatchState::Listing)).into(),
            news: true,
            listed_many: false,
        }
    }

    /// Works in what a feed tells.
    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::Listing(kind) => {
                self.listing.insert(kind, HashSet::new());
            }
            Event::Seen(seen) => self.see(*seen),
            Event::Gone(key) => self.forget(&key),
            Event::Listed(kind) => self.listed(kind),
            Event::State(kind, state) => {
                self.states.insert(kind, state);
                self.news = true;
            }
        }
    }

    /// Whether a list of many objects, which leaves memory to give back, has ended since the last call.
    pub(super) fn has_listed_many(&mut self) -> bool {
        std::mem::take(&mut self.listed_many)
    }

    /// Number of resources that may have changed since changes were taken.
    pub(super) fn pending(&self) -> usize {
        self.before.len()
    }

    /// Whether every kind was listed.
    pub(super) fn is_complete(&self) -> bool {
        self.unread.is_empty()
    }

    /// What changed since the last call.
    pub(super) fn changes(&mut self) -> Vec<Change> {
        let before = std::mem::take(&mut self.before);
        let changed = before.into_iter().filter_map(|(key, was)| match (was, self.resources.get(&key)) {
            (was, Some(now)) => (was.as_ref() != Some(now)).then(|| Change::Upsert(now.clone())),
            (Some(_), None) => Some(Change::Remove(key)),
            (None, None) => None,
        });
        changed.collect()
    }

    /// The report, if it is another one than the last.
    pub(super) fn report(&mut self) -> Option<Report> {
        if !std::mem::take(&mut self.news) {
            return None;
        }
        let watches =
            self.states.iter().map(|(kind, state)| WatchReport { kind: *kind, state: state.clone() });
        Some(Report {
            watches: watches.collect(),
            problems: self.problems.values().flatten().cloned().collect(),
            unread: self.unread.iter().map(Kind::to_string).collect(),
            ..Report::default()
        })
    }

    fn see(&mut self, seen: Seen) {
        let Seen { key, resource, stand_in, mut problems } = seen;
        if let Some(listed) = self.listing.get_mut(&key.kind) {
            listed.insert(key.clone());
        }
        let served = match resource {
            Some(resource) => Some(resource),
            None => {
                let good = self.resources.get(&key).filter(|good| good.stands_in().is_none());
                let (served, instead) = match good {
                    Some(good) => (Some(good.clone()), Some(LAST_GOOD)),
                    None => {
                        let instead = stand_in.as_ref().and_then(Resource::stands_in);
                        (stand_in, instead)
                    }
                };
                for problem in problems.iter_mut().filter(|problem| problem.severity == Severity::Refused) {
                    problem.served_instead = instead;
                }
                served
            }
        };
        self.note(&key, problems);
        self.set(key, served);
    }

    fn forget(&mut self, key: &ResourceKey) {
        if let Some(listed) = self.listing.get_mut(&key.kind) {
            listed.remove(key);
        }
        self.note(key, Vec::new());
        self.set(key.clone(), None);
    }

    fn listed(&mut self, kind: Kind) {
        let seen = self.listing.remove(&kind).unwrap_or_default();
        self.listed_many |= seen.len() >= memory::MANY;
        let known = self.resources.keys().chain(self.problems.keys());
        let gone: Vec<_> = known.filter(|key| key.kind == kind && !seen.contains(key)).cloned().collect();
        for key in gone {
            self.forget(&key);
        }
        self.news |= self.unread.remove(&kind);
    }

    fn note(&mut self, key: &ResourceKey, problems: Vec<Problem>) {
        let was = if problems.is_empty() {
            self.problems.remove(key)
        } else {
            self.problems.insert(key.clone(), problems.clone())
        };
        self.news |= was.unwrap_or_default() != problems;
    }

    fn set(&mut self, key: ResourceKey, now: Option<Resource>) {
        let held = self.resources.get(&key);
        if held == now.as_ref() {
            return;
        }
        if !self.before.contains_key(&key) {
            self.before.insert(key.clone(), held.cloned());
        }
        match now {
            Some(now) => self.resources.insert(key, now),
            None => self.resources.remove(&key),
        };
    }
}
