//! Pods on their way out of the mesh.
//!
//! The agents of other nodes open tunnels to a pod for as long as a control server says that it takes them; once its traffic is steered
//! no longer nobody does, and these connections would be refused. So a pod leaves in three steps: the annotation goes by
//! which control servers tell who takes tunnels; the others are given [`HEARD`] to hear of it; then steering ends. While the API
//! takes no annotation this is waited for, but not longer than [`LONGEST`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// Time for the control server to hear from the API, and for all agents to hear from it.
const HEARD: Duration = Duration::from_secs(3);
/// However hard it is to take the annotation away.
const LONGEST: Duration = Duration::from_secs(20);

/// The pods that are leaving.
#[derive(Debug, Default)]
pub(super) struct Departures(HashMap<Arc<str>, Departure>);

#[derive(Debug, Clone, Copy)]
struct Departure {
    /// When the pod was to be enrolled no longer.
    since: Instant,
    /// Since when it has been seen without the annotation.
    unmarked: Option<Instant>,
}

impl Departure {
    fn end(&self) -> Instant {
        let latest = self.since + LONGEST;
        self.unmarked.map_or(latest, |unmarked| latest.min(unmarked + HEARD))
    }
}

impl Departures {
    /// Whether a pod that was enrolled and shall be no longer is to be steered still, given whether it has the annotation.
    pub(super) fn holds(&mut self, uid: &Arc<str>, marked: bool, now: Instant) -> bool {
        let departure = self.0.entry(Arc::clone(uid)).or_insert(Departure { since: now, unmarked: None });
        departure.unmarked = if marked { None } else { departure.unmarked.or(Some(now)) };
        now < departure.end()
    }

    /// Forgets all but these.
    pub(super) fn retain(&mut self, leaving: &HashSet<Arc<str>>) {
        self.0.retain(|uid, _| leaving.contains(uid));
    }

    /// When the next is over, whatever happens.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().map(Departure::end).min()
    }
}
