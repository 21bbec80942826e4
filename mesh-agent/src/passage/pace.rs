//! How often all verdicts are decided again: with thousands of them, and a configuration that changes all the time, nothing
//! else would be done.

use std::time::Duration;

use tokio::time::Instant;

/// Of the time at most one part in so many goes into deciding.
const SHARE: u32 = 10;
/// No change of the configuration waits for longer.
const LONGEST: Duration = Duration::from_secs(1);

pub(super) struct Pace {
    /// The policies of the last decisions.
    revision: u64,
    /// When enough time has passed since.
    rested_at: Instant,
    /// Whether the configuration has changed since.
    due: bool,
}

impl Pace {
    /// Before any decision.
    pub(super) fn begin() -> Self {
        Self { revision: 0, rested_at: Instant::now(), due: false }
    }

    /// After decisions that took from `began` to `now`, by these policies.
    pub(super) fn after(began: Instant, now: Instant, revision: u64) -> Self {
        let rest = (now.duration_since(began) * SHARE).min(LONGEST);
        Self { revision, rested_at: now + rest, due: false }
    }

    /// Whether a change of the configuration waits, that has these policies: not if they are others.
    pub(super) fn waits(&mut self, revision: u64, now: Instant) -> bool {
        self.due = revision == self.revision && now < self.rested_at;
        self.due
    }

    /// When to decide again, if that is due.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.due.then_some(self.rested_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_is_carried_out_at_once_and_the_rest_after_a_rest() {
        let (began, took) = (Instant::now(), Duration::from_millis(5));
        let now = began + took;
        let mut pace = Pace::after(began, now, 7);
        assert_eq!(pace.due_at(), None);
        assert!(!pace.waits(8, now), "other policies");
        assert!(pace.waits(7, now));
        assert_eq!(pace.due_at(), Some(now + took * 10));
        assert!(!pace.waits(7, now + took * 10));

        let mut long = Pace::after(began, began + Duration::from_secs(60), 7);
        assert!(long.waits(7, began + Duration::from_secs(60)));
        assert_eq!(long.due_at(), Some(began + Duration::from_secs(61)));
    }
}
