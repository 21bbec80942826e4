//! What is measured of connections.

use crate::load::{Outcome, Work};
use crate::metric::Metric;

/// One measurement: what the client is told to do, and what is noted of it.
pub(super) struct Step {
    /// The first of its metrics.
    pub(super) name: &'static str,
    pub(super) work: Work,
    pub(super) connections: usize,
    /// Whether the client has fewer ports than it needs.
    pub(super) past_cliff: bool,
    pub(super) note: fn(&Outcome) -> Vec<(Metric, f64)>,
}

/// All of them, in the order in which they are measured.
pub(super) const STEPS: [Step; 7] = [
    Step {
        name: "throughput_1",
        work: Work::Streams,
        connections: 1,
        past_cliff: false,
        note: |outcome| {
            // What the server received in the window, against what the machine worked in it.
            let gigabytes = outcome.bytes_per_second * outcome.seconds / 1e9;
            vec![
                (Metric::higher("throughput_1", "Gbit/s"), gigabits(outcome)),
                (Metric::lower("cpu_s_per_gb", "s/GB"), outcome.processor_seconds / gigabytes),
            ]
        },
    },
    Step {
        name: "throughput_4",
        work: Work::Streams,
        connections: 4,
        past_cliff: false,
        note: |outcome| vec![(Metric::higher("throughput_4", "Gbit/s"), gigabits(outcome))],
    },
    Step {
        name: "rate_1",
        work: Work::Exchanges,
        connections: 1,
        past_cliff: false,
        note: |outcome| {
            vec![
                (Metric::higher("rate_1", "requests/s"), outcome.rate()),
                (Metric::lower("p50_us_1", "µs"), outcome.p50_us),
                (Metric::lower("p99_us_1", "µs"), outcome.p99_us),
            ]
        },
    },
    Step {
        name: "rate_16",
        work: Work::Exchanges,
        connections: 16,
        past_cliff: false,
        note: |outcome| vec![(Metric::higher("rate_16", "requests/s"), outcome.rate())],
    },
    Step {
        name: "rate_64",
        work: Work::Exchanges,
        connections: 64,
        past_cliff: false,
        note: |outcome| {
            let thousands = outcome.completed as f64 / 1e3;
            vec![
                (Metric::higher("rate_64", "requests/s"), outcome.rate()),
                (Metric::lower("p50_us_64", "µs"), outcome.p50_us),
                (Metric::lower("p99_us_64", "µs"), outcome.p99_us),
                (Metric::lower("cpu_ms_per_1k", "ms"), outcome.processor_seconds * 1e3 / thousands),
            ]
        },
    },
    Step {
        name: "connects",
        work: Work::Connects,
        connections: 16,
        past_cliff: false,
        note: |outcome| {
            vec![
                (Metric::higher("connects", "connections/s"), outcome.rate()),
                (Metric::lower("connect_p99_us", "µs"), outcome.p99_us),
            ]
        },
    },
    Step {
        name: "connects_past_cliff",
        work: Work::Connects,
        connections: 16,
        past_cliff: true,
        note: |outcome| {
            vec![
                (Metric::higher("connects_past_cliff", "connections/s"), outcome.rate()),
                (Metric::lower("errors_past_cliff", "errors"), outcome.failed() as f64),
            ]
        },
    },
];

/// Those in which the kernel's part shows best.
pub(super) const FEW: [&str; 3] = ["throughput_1", "rate_64", "connects"];

fn gigabits(outcome: &Outcome) -> f64 {
    outcome.bytes_per_second * 8e-9
}
