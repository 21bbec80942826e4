//! Counts what became of every packet.

use mesh_common::Outcome;

use crate::maps::COUNTERS;

/// Counts `outcome` on this CPU.
#[inline(always)]
pub(crate) fn count(outcome: Outcome) {
    if let Some(counter) = COUNTERS.get_ptr_mut(outcome as u32) {
        // SAFETY: the element belongs to this CPU, and programs do not move between CPUs while they run.
        unsafe { *counter += 1 };
    }
}
