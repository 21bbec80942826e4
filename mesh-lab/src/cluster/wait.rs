//! Waiting for what happens in its own time.

use std::thread;
use std::time::{Duration, Instant};

use super::ClusterError;

/// The first wait between two looks, and the longest; in between they double. Each look starts a program, often, and a few of those
/// that look without a rest take the whole machine.
const WAITS: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(800)];

/// Waits until `look` has an `Ok` inside; what stood in the way last is in the error. An outer error ends the wait.
pub(super) fn wait_until<T>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> Result<Result<T, String>, ClusterError>,
) -> Result<T, ClusterError> {
    let deadline = Instant::now() + within;
    let [mut wait, longest] = WAITS;
    loop {
        match look()? {
            Ok(found) => return Ok(found),
            Err(last) if Instant::now() > deadline => {
                return Err(ClusterError::NotReached {
                    what: what.to_owned(),
                    after: within,
                    last: if last.is_empty() { last } else { format!("; last: {}", last.trim_end()) },
                });
            }
            Err(_) => {
                thread::sleep(wait);
                wait = longest.min(2 * wait);
            }
        }
    }
}
