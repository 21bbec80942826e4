//! What became of the packets, by number.

use mesh_common::{Effect, Outcome};
use serde::Serialize;

use super::SteeringError;
use super::maps::Maps;

/// How many packets met one end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Count {
    /// The end: stable names, the first word says what it does to the packet.
    pub outcome: &'static str,
    /// What it does to the packet: `pass`, `capture`, `drop` or `reset`; `lookup` counts look-ups for a listener
    /// instead, `passage` what happens to passed connections besides, `connect` what becomes of sockets at connect time.
    pub effect: &'static str,
    /// Packets, look-ups or sockets.
    pub packets: u64,
}

/// All counters, in the order of the outcomes.
pub(super) fn read(maps: &Maps) -> Result<Vec<Count>, SteeringError> {
    (0..)
        .zip(Outcome::ALL)
        .map(|(index, outcome)| {
            Ok(Count {
                outcome: outcome.name(),
                effect: match outcome.effect() {
                    Effect::Pass => "pass",
                    Effect::Capture => "capture",
                    Effect::Drop => "drop",
                    Effect::Reset => "reset",
                    Effect::Lookup => "lookup",
                    Effect::Deliver => "deliver",
                    Effect::Passage => "passage",
                    Effect::Connect => "connect",
                },
                packets: maps.count(index)?,
            })
        })
        .collect()
}
