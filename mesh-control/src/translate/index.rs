//! Sets of values by key, and resources by what their labels or selectors say.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use crate::model::{Labels, Selector};

/// A set, in order, that mostly has one member: it has no tree then, the smallest of which has room for eleven.
#[derive(Debug)]
pub(super) enum Few<V> {
    One(V),
    Many(BTreeSet<V>),
}

impl<V> Default for Few<V> {
    fn default() -> Self {
        // Takes no memory.
        Self::Many(BTreeSet::new())
    }
}

impl<V: Ord> Few<V> {
    pub(super) fn insert(&mut self, value: V) {
        *self = match std::mem::take(self) {
            Self::One(known) if known == value => Self::One(known),
            Self::One(known) => Self::Many(BTreeSet::from([known, value])),
            Self::Many(known) if known.is_empty() => Self::One(value),
            Self::Many(mut known) => {
                known.insert(value);
                Self::Many(known)
            }
        };
    }

    pub(super) fn remove(&mut self, value: &V) {
        *self = match std::mem::take(self) {
            Self::One(known) if known == *value => Self::default(),
            Self::One(known) => Self::One(known),
            Self::Many(mut known) => {
                known.remove(value);
                match known.len() {
                    1 => known.pop_first().map_or_else(Self::default, Self::One),
                    _ => Self::Many(known),
                }
            }
        };
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &V> {
        let (one, many) = match self {
            Self::One(value) => (Some(value), None),
            Self::Many(values) => (None, Some(values)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(values) => values.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Any number of values for a key, in order.
#[derive(Debug)]
pub(super) struct Index<K, V> {
    values: HashMap<K, Few<V>>,
}

impl<K, V> Default for Index<K, V> {
    fn default() -> Self {
        Self { values: HashMap::new() }
    }
}

impl<K: Eq + Hash, V: Ord> Index<K, V> {
    pub(super) fn insert(&mut self, key: K, value: V) {
        self.values.entry(key).or_default().insert(value);
    }

    pub(super) fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q, value: &V)
    where
        K: Borrow<Q>,
    {
        if let Some(values) = self.values.get_mut(key) {
            values.remove(value);
            if values.is_empty() {
                self.values.remove(key);
            }
        }
    }

    pub(super) fn of<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> impl Iterator<Item = &V>
    where
        K: Borrow<Q>,
    {
        self.values.get(key).into_iter().flat_map(Few::iter)
    }

    pub(super) fn len_of<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        self.values.get(key).map_or(0, Few::len)
    }
}

/// A label of a namespace's resources.
type Label = (Arc<str>, String, String);

fn label(namespace: &Arc<str>, (key, value): (&String, &String)) -> Label {
    (Arc::clone(namespace), key.clone(), value.clone())
}

/// Resources by each of their labels, to find what a selector may select.
#[derive(Debug)]
pub(crate) struct Labelled<V>(Index<Label, V>);

impl<V> Default for Labelled<V> {
    fn default() -> Self {
        Self(Index::default())
    }
}

impl<V: Ord + Clone> Labelled<V> {
    pub(crate) fn insert(&mut self, namespace: &Arc<str>, labels: &Labels, value: &V) {
        for pair in labels {
            self.0.insert(label(namespace, pair), value.clone());
        }
    }

    pub(crate) fn remove(&mut self, namespace: &Arc<str>, labels: &Labels, value: &V) {
        for pair in labels {
            self.0.remove(&label(namespace, pair), value);
        }
    }

    /// Resources that have the rarest of the selector's labels; the others are for the caller to check.
    pub(crate) fn candidates(&self, namespace: &Arc<str>, selector: &Selector) -> Vec<V> {
        let rarest =
            selector.labels().map(|pair| label(namespace, pair)).min_by_key(|label| self.0.len_of(label));
        rarest.map(|label| self.0.of(&label).cloned().collect()).unwrap_or_default()
    }
}

/// Selecting resources by the first label of their selector, to find who may select something.
#[derive(Debug)]
pub(super) struct Selecting<V>(Index<Label, V>);

impl<V> Default for Selecting<V> {
    fn default() -> Self {
        Self(Index::default())
    }
}

impl<V: Ord> Selecting<V> {
    pub(super) fn insert(&mut self, namespace: &Arc<str>, selector: &Selector, value: V) {
        if let Some(first) = selector.labels().next() {
            self.0.insert(label(namespace, first), value);
        }
    }

    pub(super) fn remove(&mut self, namespace: &Arc<str>, selector: &Selector, value: &V) {
        if let Some(first) = selector.labels().next() {
            self.0.remove(&label(namespace, first), value);
        }
    }

    /// Whoever selects at least one of the labels; the others are for the caller to check.
    pub(super) fn candidates(&self, namespace: &Arc<str>, labels: &Labels) -> impl Iterator<Item = &V> {
        labels.iter().flat_map(move |pair| self.0.of(&label(namespace, pair)).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_the_same_whether_it_has_a_tree_or_not() {
        let (mut few, mut set) = (Few::default(), BTreeSet::new());
        for (insert, value) in [
            (true, 5),
            (true, 5),
            (true, 2),
            (true, 9),
            (false, 7),
            (false, 2),
            (false, 9),
            (false, 4),
            (false, 5),
        ] {
            if insert {
                few.insert(value);
                set.insert(value);
            } else {
                few.remove(&value);
                set.remove(&value);
            }
            assert!(few.iter().eq(&set), "{few:?} {set:?}");
            assert_eq!((few.len(), few.is_empty()), (set.len(), set.is_empty()));
            assert_eq!(matches!(few, Few::One(_)), set.len() == 1);
        }
    }
}
