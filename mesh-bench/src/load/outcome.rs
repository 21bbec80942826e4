//! What a client has measured.

use std::collections::BTreeMap;
use std::io;

use hdrhistogram::{CreationError, Histogram};
use serde::{Deserialize, Serialize};

/// One measurement: a line of JSON on a client's standard output.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Outcome {
    /// Length of the window, in seconds.
    pub(crate) seconds: f64,
    /// Bytes a second that the server received; streams only.
    pub(crate) bytes_per_second: f64,
    /// Exchanges or connections that were completed within the window.
    pub(crate) completed: u64,
    /// Median of the time of one, in microseconds.
    pub(crate) p50_us: f64,
    /// 99 of 100 took no longer than this, in microseconds.
    pub(crate) p99_us: f64,
    /// Time in which the processors of the machine were not idle during the window, in seconds of one processor.
    pub(crate) processor_seconds: f64,
    /// What went wrong, by kind, warm-up included.
    pub(crate) errors: BTreeMap<String, u64>,
}

impl Outcome {
    /// How many went wrong.
    pub(crate) fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Exchanges or connections a second.
    pub(crate) fn rate(&self) -> f64 {
        self.completed as f64 / self.seconds
    }
}

/// Times in nanoseconds, to three digits; none is longer than the patience of whoever measures.
pub(super) fn histogram() -> Result<Histogram<u64>, CreationError> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3)
}

/// Errors by what was done and of what kind; a handful of keys at most.
#[derive(Debug, Default)]
pub(super) struct Errors(BTreeMap<String, u64>);

impl Errors {
    pub(super) fn add(&mut self, doing: &str, error: &io::Error) {
        *self.0.entry(format!("{doing}: {:?}", error.kind())).or_default() += 1;
    }

    pub(super) fn into_inner(self) -> BTreeMap<String, u64> {
        self.0
    }
}
