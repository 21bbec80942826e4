//! What a client has measured, as it tells it to who has started it.

use serde::{Deserialize, Serialize};

/// One measurement.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Seconds it took.
    pub(crate) seconds: f64,
    /// Bytes that the server has received.
    pub(crate) bytes: u64,
    /// Requests that were answered, or connections that were opened, used and closed.
    pub(crate) count: u64,
    /// Requests or connections that failed.
    pub(crate) errors: u64,
    /// The first failure, in words.
    pub(crate) error: Option<String>,
    /// Microseconds that half of the requests took at most, and 99 in 100 of them.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Processor time of the whole machine in that time, in seconds: of all programs and of the kernel.
    pub(crate) cpu_seconds: f64,
}

impl Measured {
    /// In Gbit/s.
    pub(crate) fn throughput(&self) -> f64 {
        self.bytes as f64 * 8e-9 / self.seconds
    }

    /// Requests or connections per second.
    pub(crate) fn rate(&self) -> f64 {
        self.count as f64 / self.seconds
    }
}

/// Processor time of the machine that was not idle, in seconds since it started (`/proc/stat`, see proc_stat(5)).
pub(super) fn cpu_seconds() -> std::io::Result<f64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let ticks: Vec<f64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal ...
    let busy = [0, 1, 2, 5, 6].iter().filter_map(|position| ticks.get(*position)).sum::<f64>();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok(busy / per_second as f64)
}
