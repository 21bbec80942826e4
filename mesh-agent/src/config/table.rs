//! A persistent table of values that are found by a part of themselves.
//!
//! What a hash map holds twice, key and value, is here one pointer: a mesh of 100,000 workloads is looked up by uid and by
//! address, and a hash array mapped trie of such keys takes hundreds of bytes for each. The table is a persistent vector of
//! small buckets; a change copies one bucket and the path to it, all else is shared with the version before.

use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

use imbl::Vector;

/// Values of a bucket, on average, at which the number of buckets is doubled. Few, because each that is looked at is a
/// pointer followed.
const FULL: usize = 8;

/// A value that carries its key, which never changes.
pub(super) trait Keyed: Clone {
    /// What it is found by.
    type Key: Hash + ?Sized;

    /// Whether this is its key.
    fn has_key(&self, key: &Self::Key) -> bool;

    /// Calls `read` with its key.
    fn with_key<T>(&self, read: impl FnOnce(&Self::Key) -> T) -> T;
}

/// A set of values with different keys.
#[derive(Clone)]
pub(super) struct Table<V> {
    /// A power of two, or none.
    buckets: Vector<Arc<[V]>>,
    length: usize,
    hasher: RandomState,
}

impl<V: Clone> Default for Table<V> {
    fn default() -> Self {
        Self { buckets: Vector::new(), length: 0, hasher: RandomState::new() }
    }
}

impl<V> fmt::Debug for Table<V> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Table").field("length", &self.length).finish_non_exhaustive()
    }
}

impl<V: Keyed> Table<V> {
    /// Number of values.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// All values, in no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &V> {
        self.buckets.iter().flat_map(|bucket| bucket.iter())
    }

    /// The value with this key.
    pub(super) fn get(&self, key: &V::Key) -> Option<&V> {
        self.buckets.get(self.place(key))?.iter().find(|value| value.has_key(key))
    }

    /// Puts a value in, in the place of the one with its key.
    pub(super) fn insert(&mut self, value: V) {
        if self.length >= self.buckets.len() * FULL {
            self.grow();
        }
        let place = value.with_key(|key| self.place(key));
        let Some(bucket) = self.buckets.get_mut(place) else { return };
        let old = bucket.len();
        let mut fresh: Vec<V> = Vec::with_capacity(old + 1);
        value.with_key(|key| fresh.extend(bucket.iter().filter(|known| !known.has_key(key)).cloned()));
        fresh.push(value);
        self.length += fresh.len() - old;
        *bucket = fresh.into();
    }

    /// Takes out and returns the value with this key.
    pub(super) fn remove(&mut self, key: &V::Key) -> Option<V> {
        let place = self.place(key);
        let found = self.buckets.get(place)?.iter().find(|value| value.has_key(key))?.clone();
        let bucket = self.buckets.get_mut(place)?;
        let rest: Vec<V> = bucket.iter().filter(|value| !value.has_key(key)).cloned().collect();
        *bucket = rest.into();
        self.length -= 1;
        Some(found)
    }

    fn place(&self, key: &V::Key) -> usize {
        let hash = self.hasher.hash_one(key);
        let mask = self.buckets.len().wrapping_sub(1);
        usize::try_from(hash & u64::try_from(mask).unwrap_or(u64::MAX)).unwrap_or_default()
    }

    /// Doubles the buckets.
    #[cold]
    fn grow(&mut self) {
        let count = (self.buckets.len() * 2).max(1);
        let empty: Arc<[V]> = Arc::new([]);
        let values: Vec<V> = self.iter().cloned().collect();
        self.buckets = std::iter::repeat_n(empty, count).collect();
        let mut placed: Vec<Vec<V>> = vec![Vec::new(); count];
        for value in values {
            let place = value.with_key(|key| self.place(key));
            if let Some(bucket) = placed.get_mut(place) {
                bucket.push(value);
            }
        }
        self.buckets = placed.into_iter().map(Arc::from).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Keyed for Arc<(u32, u32)> {
        type Key = u32;

        fn has_key(&self, key: &u32) -> bool {
            self.0 == *key
        }

        fn with_key<T>(&self, read: impl FnOnce(&u32) -> T) -> T {
            read(&self.0)
        }
    }

    #[test]
    fn it_finds_what_was_put_in_last_and_nothing_that_was_taken_out() {
        let mut table = Table::default();
        assert!(table.get(&1).is_none() && table.remove(&1).is_none());
        for number in 0..10_000 {
            table.insert(Arc::new((number, 0)));
        }
        let before = table.clone();
        for number in 0..5_000 {
            table.insert(Arc::new((number, 1)));
            assert_eq!(table.remove(&(number + 5_000)).map(|value| value.0), Some(number + 5_000));
        }
        assert_eq!((table.len(), table.iter().count()), (5_000, 5_000));
        assert_eq!((before.len(), before.iter().count()), (10_000, 10_000));
        for number in 0..10_000 {
            assert_eq!(table.get(&number).map(|value| value.1), (number < 5_000).then_some(1));
            assert_eq!(before.get(&number).map(|value| value.1), Some(0));
        }
    }
}
