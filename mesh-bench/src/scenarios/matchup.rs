//! The same work for several contenders, in turn.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::Lab;

use crate::bench::Bench;
use crate::contenders::Contender;
use crate::load::Measured;
use crate::metric::Metric;

/// One measurement: what the client is told to do, and what is noted of it.
struct Step {
    work: &'static str,
    connections: usize,
    note: fn(&Measured, &mut Vec<(Metric, f64)>),
}

const STEPS: [Step; 6] = [
    Step {
        work: "throughput",
        connections: 1,
        note: |measured, noted| {
            noted.push((Metric::higher("throughput_1", "Gbit/s"), measured.throughput()));
            noted.push((
                Metric::lower("cpu_s_per_gb", "s/GB"),
                measured.cpu_seconds * 1e9 / measured.bytes as f64,
            ));
        },
    },
    Step {
        work: "throughput",
        connections: 4,
        note: |measured, noted| {
            noted.push((Metric::higher("throughput_4", "Gbit/s"), measured.throughput()));
        },
    },
    Step {
        work: "rate",
        connections: 1,
        note: |measured, noted| {
            noted.push((Metric::higher("rate_1", "requests/s"), measured.rate()));
            noted.push((Metric::lower("p50_us_1", "µs"), measured.p50_us));
            noted.push((Metric::lower("p99_us_1", "µs"), measured.p99_us));
        },
    },
    Step {
        work: "rate",
        connections: 16,
        note: |measured, noted| {
            noted.push((Metric::higher("rate_16", "requests/s"), measured.rate()));
        },
    },
    Step {
        work: "rate",
        connections: 64,
        note: |measured, noted| {
            noted.push((Metric::higher("rate_64", "requests/s"), measured.rate()));
            noted.push((Metric::lower("p50_us_64", "µs"), measured.p50_us));
            noted.push((Metric::lower("p99_us_64", "µs"), measured.p99_us));
            noted.push((
                Metric::lower("cpu_ms_per_1k", "ms"),
                measured.cpu_seconds * 1e6 / measured.count as f64,
            ));
        },
    },
    Step {
        work: "connects",
        connections: 16,
        note: |measured, noted| {
            noted.push((Metric::higher("connects", "connections/s"), measured.rate()));
            noted.push((Metric::lower("connect_p99_us", "µs"), measured.p99_us));
        },
    },
];

/// Has every contender do everything in every round, in an order that rotates.
pub(super) fn play(bench: &mut Bench, scenario: &'static str, contenders: &[Contender]) -> Result<()> {
    for round in 0..bench.rounds() {
        for step in &STEPS {
            for turn in 0..contenders.len() {
                let Some(contender) = contenders.get((turn + round) % contenders.len()) else { continue };
                bench.turn(&contender.name, round)?;
                let measured = drive(bench, contender.lab(), contender.target, step)
                    .with_context(|| format!("{}: {} {}", contender.name, step.work, step.connections))?;
                ensure!(
                    measured.errors == 0 && measured.count + measured.bytes > 0,
                    "{}: {} of {} failed, first: {}",
                    contender.name,
                    measured.errors,
                    measured.errors + measured.count,
                    measured.error.unwrap_or_default()
                );
                let mut noted = Vec::new();
                (step.note)(&measured, &mut noted);
                for (metric, value) in noted {
                    bench.record(scenario, contender.name.clone(), metric, round, value);
                }
            }
        }
    }
    for contender in contenders {
        contender.check().with_context(|| format!("{}: the work went another way", contender.name))?;
    }
    Ok(())
}

fn drive(bench: &Bench, lab: &Lab, target: SocketAddr, step: &Step) -> Result<Measured> {
    let own = std::env::current_exe().context("the path of this program")?;
    let (warm_up, milliseconds) = if bench.is_quick() { (100, 400) } else { (300, 1500) };
    let output = lab
        .pod("client")?
        .program(own)?
        .args(["drive", "--to", &target.to_string(), "--work", step.work])
        .args(["--connections", &step.connections.to_string()])
        .args(["--milliseconds", &milliseconds.to_string(), "--warm-up", &warm_up.to_string()])
        .timeout(Duration::from_secs(60))
        .output()?;
    ensure!(output.status.success(), "the client failed: {}", output.stderr);
    serde_json::from_str(&output.stdout).with_context(|| format!("the client said {:?}", output.stdout))
}
