//! Verdicts that nothing lives on. Pods elsewhere come and go, and so do their addresses: without an end to them,
//! verdicts about them would fill the table.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::steering::PassageKey;

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(60);
/// How long a verdict is kept that no connection is seen to live on. Its next connection goes through the agent, and has it
/// written again.
const KEPT: Duration = Duration::from_secs(600);

/// Since when which verdicts are unused, as far as has been looked.
#[derive(Default)]
pub(super) struct Unused {
    since: HashMap<PassageKey, Instant>,
    looked: Option<Instant>,
}

impl Unused {
    /// Whether it is time to look.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK)
    }

    /// Takes in which of the verdicts have connections, and says which have had none for long enough to be given up.
    pub(super) fn look(
        &mut self,
        verdicts: impl Iterator<Item = PassageKey>,
        used: &HashSet<PassageKey>,
        now: Instant,
    ) -> HashSet<PassageKey> {
        self.looked = Some(now);
        let before = std::mem::take(&mut self.since);
        self.since = verdicts
            .filter(|verdict| !used.contains(verdict))
            .map(|verdict| (verdict, before.get(&verdict).copied().unwrap_or(now)))
            .collect();
        let unused = self.since.iter().filter(|(_, since)| now.duration_since(**since) >= KEPT);
        unused.map(|(verdict, _)| *verdict).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(source: u8) -> PassageKey {
        PassageKey { source: [10, 0, 0, source].into(), destination: ([10, 0, 1, 1], 80).into() }
    }

    #[test]
    fn what_has_no_connection_for_long_is_given_up() {
        let start = Instant::now();
        let verdicts = || [1, 2].map(verdict).into_iter();
        let (nobody, second) = (HashSet::new(), HashSet::from([verdict(2)]));
        let mut unused = Unused::default();
        assert!(unused.is_due(start));
        assert!(unused.look(verdicts(), &nobody, start).is_empty());
        assert!(!unused.is_due(start + LOOK / 2) && unused.is_due(start + LOOK));
        assert!(unused.look(verdicts(), &second, start + KEPT / 2).is_empty());
        assert_eq!(unused.look(verdicts(), &nobody, start + KEPT), HashSet::from([verdict(1)]));
        assert_eq!(
            unused.look(verdicts().skip(1), &nobody, start + KEPT * 2),
            HashSet::from([verdict(2)]),
            "its time began anew when it was used"
        );
        assert_eq!(unused.since.len(), 1, "verdicts that are gone are forgotten");
    }
}
