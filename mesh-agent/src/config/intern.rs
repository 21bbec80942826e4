//! One copy of every value that many workloads have in common.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use super::model::{Locality, Template};
use crate::policy::Strings;

/// Not worth a sweep below this.
const SMALL: usize = 1024;

/// Values in use, each once.
#[derive(Debug)]
pub(super) struct Interned<T> {
    known: HashSet<Arc<T>>,
    /// Size at which values that nobody else holds any more are thrown out.
    limit: usize,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), limit: SMALL }
    }
}

impl<T: Eq + Hash> Interned<T> {
    /// The shared copy of `value`.
    pub(super) fn share(&mut self, value: T) -> Arc<T> {
        if let Some(known) = self.known.get(&value) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.limit {
            self.known.retain(|value| Arc::strong_count(value) > 1);
            // Sweeps are paid for by as many insertions.
            self.limit = SMALL.max(self.known.len() * 2);
        }
        let value = Arc::new(value);
        self.known.insert(Arc::clone(&value));
        value
    }
}

/// What the resources of a mesh have in common.
#[derive(Debug, Default)]
pub(super) struct Pools {
    pub(super) strings: Strings,
    pub(super) templates: Interned<Template>,
    pub(super) localities: Interned<Locality>,
}
