//! Processor time of the whole machine: every process and the kernel, interrupts included.

use anyhow::{Context, Result};

/// Time in which the processors were not idle since the machine was started, in seconds of one processor.
///
/// `/proc/stat` counts in ticks of a hundredth of a second on each processor, which is 1 % of a second's window. Time
/// that the hypervisor gave to others (steal) is nobody's work here and is not counted.
pub(super) fn busy() -> Result<f64> {
    const STAT: &str = "/proc/stat";
    let text = std::fs::read_to_string(STAT).context(STAT)?;
    let ticks = parse(&text).with_context(|| format!("{STAT} has no line of all processors"))?;
    let per_second =
        nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("the length of a tick")?;
    Ok(ticks as f64 / per_second as f64)
}

/// user + nice + system + irq + softirq of the line of all processors.
fn parse(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    match fields.as_slice() {
        [user, nice, system, _idle, _iowait, irq, softirq, ..] => Some(user + nice + system + irq + softirq),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_stolen_time_is_not_counted() {
        let stat =
            "cpu  1 20 300 4000000 5000000 6000 70000 8000000 9000000 0\ncpu0 1 1 1 1 1 1 1 1 1 1\nintr 1\n";
        assert_eq!(parse(stat), Some(76_321));
        assert_eq!(parse("cpu0 1 2 3 4 5 6 7\n"), None);
        assert_eq!(parse("cpu  1 2 3\n"), None);
    }

    #[test]
    fn the_machine_has_worked() {
        assert!(busy().unwrap() > 0.0);
    }
}
