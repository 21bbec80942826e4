//! The identities in numbers, for metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::identities::IdentityState;

/// Why a request for a certificate failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureReason {
    /// The authority is not there, or works for nobody.
    Unreachable,
    /// It works, but not for this identity.
    Refused,
    /// It gave something that must not be used.
    WrongAnswer,
    /// There was nothing to ask it with: no key could be made.
    NoKey,
}

impl FailureReason {
    const ALL: [Self; 4] = [Self::Unreachable, Self::Refused, Self::WrongAnswer, Self::NoKey];

    /// The value of a metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::WrongAnswer => "wrong_answer",
            Self::NoKey => "no_key",
        }
    }
}

/// The identities of the moment, and what has happened since the agent started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct IdentitySummary {
    /// Identities by state; a state that none has is left out.
    pub states: BTreeMap<IdentityState, usize>,
    /// Time until the first of the good certificates ends.
    pub soonest_expiry: Option<Duration>,
    /// Certificates received.
    pub issued: u64,
    /// Requests that failed, for every reason there is.
    pub failures: BTreeMap<FailureReason, u64>,
}

impl IdentitySummary {
    pub(super) fn count(&mut self, state: IdentityState, expires: Option<SystemTime>, now: SystemTime) {
        *self.states.entry(state).or_default() += 1;
        let left = expires.and_then(|expires| expires.duration_since(now).ok());
        if state == IdentityState::Valid {
            self.soonest_expiry = self.soonest_expiry.into_iter().chain(left).min();
        }
    }
}

/// What is only ever added to.
#[derive(Default)]
pub(super) struct Counters {
    issued: AtomicU64,
    unreachable: AtomicU64,
    refused: AtomicU64,
    wrong_answer: AtomicU64,
    no_key: AtomicU64,
}

impl Counters {
    pub(super) fn issued(&self) {
        self.issued.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, reason: FailureReason) {
        self.failures(reason).fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn summary(&self) -> IdentitySummary {
        let failures =
            FailureReason::ALL.map(|reason| (reason, self.failures(reason).load(Ordering::Relaxed)));
        IdentitySummary {
            issued: self.issued.load(Ordering::Relaxed),
            failures: failures.into(),
            ..IdentitySummary::default()
        }
    }

    fn failures(&self, reason: FailureReason) -> &AtomicU64 {
        match reason {
            FailureReason::Unreachable => &self.unreachable,
            FailureReason::Refused => &self.refused,
            FailureReason::WrongAnswer => &self.wrong_answer,
            FailureReason::NoKey => &self.no_key,
        }
    }
}
