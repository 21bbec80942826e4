//! Points in time as they are shown.

use std::time::SystemTime;

/// Milliseconds since 1970; 0 for a clock before that.
pub(crate) fn unix_millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
