//! What a process keeps in memory.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Memory at rest changes by no more than this, in a hundred.
const STEADY_PERCENT: u64 = 1;
/// For how long.
const STEADY: Duration = Duration::from_millis(600);
/// A process that is never at rest is measured all the same.
const PATIENCE: Duration = Duration::from_secs(10);

/// User memory of a process, in bytes, as `/proc/PID/smaps_rollup` has it. Kernel memory (socket buffers, eBPF maps) is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resident {
    /// All pages, those of shared libraries and files too.
    pub(crate) rss: u64,
    /// The same, with shared pages divided by those who share them.
    pub(crate) pss: u64,
    /// What nobody else has.
    pub(crate) private: u64,
    /// What is not the content of a file: heap, stacks, relocated data. All else the system can read again.
    pub(crate) anonymous: u64,
}

impl Resident {
    /// What a process has now.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        Self::parse(&text).with_context(|| format!("{path} has not the fields that are looked for"))
    }

    fn parse(rollup: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
        };
        let private = field("Private_Clean")? + field("Private_Dirty")?;
        Some(Self { rss: field("Rss")?, pss: field("Pss")?, private, anonymous: field("Anonymous")? })
    }

    /// What a process has once it is at rest.
    pub(crate) fn at_rest(pid: u32) -> Result<Self> {
        let end = Instant::now() + PATIENCE;
        let mut last = Self::of(pid)?;
        let mut since = Instant::now();
        while since.elapsed() < STEADY && Instant::now() < end {
            thread::sleep(Duration::from_millis(50));
            let now = Self::of(pid)?;
            if now.rss.abs_diff(last.rss) * 100 > last.rss * STEADY_PERCENT {
                since = Instant::now();
                last = now;
            }
        }
        Self::of(pid)
    }

    /// The most a process ever had, in bytes.
    pub(crate) fn peak(pid: u32) -> Result<u64> {
        let path = format!("/proc/{pid}/status");
        let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(kib.with_context(|| format!("{path} has no VmHWM"))? * 1024)
    }
}

/// Bytes as megabytes of a million bytes.
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rollup_is_read() {
        let text = "55d0-7ffd ---p 00000000 00:00 0    [rollup]\nRss:                1000 kB\nPss:                 600 kB\n\
            Pss_Dirty:   1 kB\nPrivate_Clean:        20 kB\nPrivate_Dirty:       300 kB\n\
            Anonymous:           250 kB\n";
        let expected = Resident { rss: 1_024_000, pss: 614_400, private: 327_680, anonymous: 256_000 };
        assert_eq!(Resident::parse(text), Some(expected));
        assert_eq!(Resident::parse("Rss: 1 kB\n"), None);
    }

    #[test]
    fn a_process_has_memory() {
        let own = Resident::of(std::process::id()).unwrap();
        assert!(own.private > 0 && own.private <= own.rss && own.pss <= own.rss, "{own:?}");
        assert!(own.anonymous > 0 && own.anonymous <= own.rss, "{own:?}");
        assert!(Resident::peak(std::process::id()).unwrap() > 0);
    }
}
