//! How long to wait before trying again.

use std::time::Duration;

/// Exponential backoff with full jitter: every delay is a random part of a bound that doubles, so that the agents
/// of a whole cluster that lost their server do not come back in step.
#[derive(Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
    random: fastrand::Rng,
}

impl Backoff {
    /// A row of delays whose bound grows from `base` to `cap`.
    pub fn new((base, cap): (Duration, Duration), random: fastrand::Rng) -> Self {
        Self { base, cap, failures: 0, random }
    }

    /// The next delay, longer on average than the one before.
    pub fn delay(&mut self) -> Duration {
        let bound = self.base.saturating_mul(2u32.saturating_pow(self.failures)).min(self.cap);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(self.random.f64())
    }

    /// A short delay that is not part of the row.
    pub fn pause(&mut self) -> Duration {
        self.base.min(self.cap).mul_f64(self.random.f64())
    }

    /// Begins anew, after something worked.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(100);
    const CAP: Duration = Duration::from_secs(10);

    #[test]
    fn delays_grow_to_a_bound_and_begin_anew() {
        let mut largest = [Duration::ZERO; 50];
        for seed in 0..200 {
            let mut backoff = Backoff::new((BASE, CAP), fastrand::Rng::with_seed(seed));
            for (failures, largest) in largest.iter_mut().enumerate() {
                let delay = backoff.delay();
                let bound = BASE.saturating_mul(1 << failures.min(20)).min(CAP);
                assert!(delay <= bound, "{delay:?} after {failures} failures");
                *largest = delay.max(*largest);
            }
            backoff.reset();
            assert!(backoff.delay() <= BASE);
            assert!(backoff.pause() <= BASE);
        }
        assert!(largest[49] > CAP / 2, "the whole bound is used");
        assert!(largest[0] > BASE / 2);
    }
}
