//! The time, which tests set.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Tells the time.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The machine's.
    pub fn system() -> Self {
        Self::from_fn(SystemTime::now)
    }

    /// Somebody else's.
    pub fn from_fn(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// What time it is.
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Clock")
    }
}

/// Seconds since 1970, as certificates and the kept state count.
pub(crate) fn unix(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
    }
}

/// The time that many seconds after 1970.
pub(super) fn from_unix(seconds: i64) -> SystemTime {
    let offset = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH.checked_sub(offset) } else { UNIX_EPOCH.checked_add(offset) };
    time.unwrap_or(UNIX_EPOCH)
}

/// A time as people and Kubernetes write it.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    jiff::Timestamp::from_second(unix(time)).unwrap_or_default().to_string()
}

/// Reads what [`rfc3339`] writes.
pub(super) fn parse_rfc3339(text: &str) -> Result<SystemTime, String> {
    let timestamp: jiff::Timestamp =
        text.parse().map_err(|_| format!("expected a time such as 2030-01-31T12:00:00Z, found {text:?}"))?;
    Ok(from_unix(timestamp.as_second()))
}
