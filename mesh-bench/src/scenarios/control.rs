//! `mesh-control` with many agents: its memory, what the first synchronisation of all costs it, and how long one change
//! takes to reach all of them.
//!
//! The real program, with a mesh of 10,000 synthetic workloads as manifests. The agents are streams of this process, each over a
//! TCP connection of its own as agents have it, that answer every response and keep nothing. Server and agents share the
//! machine's cores: `push_all` is an upper bound. The time of a push begins when the file is renamed into place.

mod fleet;
mod process;

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_lab::{Lab, Mesh, Topology};

use crate::bench::Bench;
use crate::metric::Metric;
use crate::quantile::quantile;
use crate::resident::{Resident, megabytes};
use crate::synthetic::SyntheticMesh;
use fleet::Fleet;
use process::cpu_seconds;

const SCENARIO: &str = "control";
const CONTROL: &str = "mesh-control";
/// It runs with the agent's scenarios: without agents it serves nobody.
const AGENT: &str = "mesh-agent";
const WORKLOADS: usize = 10_000;
const CONTROL_PORT: u16 = 15010;
const PATIENCE: Duration = Duration::from_secs(60);

const TOPOLOGY: &str = "
name: control
nodes:
  - {name: node1, pods: []}
hosts:
  - {name: control}
  - {name: fleet}
";

/// The names of what is measured with a number of agents.
struct Scale {
    agents: usize,
    pushes: usize,
    sync_cpu: Metric,
    sync_all: Metric,
    rss: Metric,
    push_p50: Metric,
    push_p99: Metric,
    push_all: Metric,
    push_cpu: Metric,
}

const FULL: Scale = Scale {
    agents: 1_000,
    pushes: 20,
    sync_cpu: Metric::lower("control_cpu_s", "s"),
    sync_all: Metric::lower("control_sync_all_s", "s"),
    rss: Metric::lower("control_rss_mb_at_1000_agents", "MB"),
    push_p50: Metric::lower("push_p50_ms", "ms"),
    push_p99: Metric::lower("push_p99_ms", "ms"),
    push_all: Metric::lower("push_all_ms", "ms"),
    push_cpu: Metric::lower("control_cpu_ms_per_push", "ms"),
};

const QUICK: Scale = Scale {
    agents: 200,
    pushes: 10,
    sync_cpu: Metric::lower("control_cpu_s_at_200_agents", "s"),
    sync_all: Metric::lower("control_sync_all_s_at_200_agents", "s"),
    rss: Metric::lower("control_rss_mb_at_200_agents", "MB"),
    push_p50: Metric::lower("push_p50_ms_at_200_agents", "ms"),
    push_p99: Metric::lower("push_p99_ms_at_200_agents", "ms"),
    push_all: Metric::lower("push_all_ms_at_200_agents", "ms"),
    push_cpu: Metric::lower("control_cpu_ms_per_push_at_200_agents", "ms"),
};

pub(super) fn run(bench: &mut Bench) -> Result<()> {
    if !bench.wants_contender(AGENT) {
        return Ok(());
    }
    bench.turn(CONTROL, 0)?;
    let scale = if bench.is_quick() { &QUICK } else { &FULL };
    let mut mesh = Mesh::new(Lab::up(Topology::parse(SCENARIO, TOPOLOGY)?.unique())?, "control")?;
    // Nothing to serve is not served: agents would forget what they know.
    mesh.apply("namespace.yaml", mesh_lab::Manifests::new().namespace("shop", true).text())?;
    mesh.start_control()?;
    let fresh = Resident::at_rest(pid(&mut mesh)?)?;
    bench.record(SCENARIO, CONTROL, Metric::lower("control_rss_fresh_mb", "MB"), 0, megabytes(fresh.rss));
    mesh.kill_control();

    for (file, text) in SyntheticMesh::new(WORKLOADS).manifests() {
        mesh.apply(&file, &text)?;
    }
    let began = Instant::now();
    mesh.start_control()?;
    let pid = pid(&mut mesh)?;
    let start = Metric::lower("control_start_s_at_10k_workloads", "s");
    bench.record(SCENARIO, CONTROL, start, 0, began.elapsed().as_secs_f64());
    let loaded = Resident::at_rest(pid)?;
    let metric = Metric::lower("control_rss_mb_at_10k_workloads", "MB");
    bench.record(SCENARIO, CONTROL, metric, 0, megabytes(loaded.rss));

    let address = mesh.lab().host("control")?.ipv4().context("the lab has IPv4")?;
    let address = SocketAddr::new(address.into(), CONTROL_PORT);
    let (began, used) = (Instant::now(), cpu_seconds(pid)?);
    let fleet = Fleet::start(mesh.lab().host("fleet")?, address, scale.agents)?;
    fleet.wait_until_synchronised(PATIENCE)?;
    bench.record(SCENARIO, CONTROL, scale.sync_all, 0, began.elapsed().as_secs_f64());
    bench.record(SCENARIO, CONTROL, scale.sync_cpu, 0, cpu_seconds(pid)? - used);
    let busy = Resident::at_rest(pid)?;
    bench.record(SCENARIO, CONTROL, scale.rss, 0, megabytes(busy.rss));

    let used = cpu_seconds(pid)?;
    for round in 0..scale.pushes {
        bench.turn(CONTROL, round)?;
        thread::sleep(Duration::from_millis(100 + (round as u64 * 37) % 100));
        let began = Instant::now();
        mesh.apply("policy.yaml", &policy(round))?;
        let arrivals = fleet.wait_for_push(PATIENCE).with_context(|| format!("push {round}"))?;
        let mut times: Vec<f64> =
            arrivals.into_iter().map(|at| at.saturating_duration_since(began).as_secs_f64() * 1e3).collect();
        for (metric, share) in [(scale.push_p50, 0.5), (scale.push_p99, 0.99), (scale.push_all, 1.0)] {
            bench.record(SCENARIO, CONTROL, metric, round, quantile(&mut times, share));
        }
    }
    let per_push = (cpu_seconds(pid)? - used) * 1e3 / scale.pushes as f64;
    bench.record(SCENARIO, CONTROL, scale.push_cpu, 0, per_push);
    Ok(())
}

fn pid(mesh: &mut Mesh) -> Result<u32> {
    Ok(mesh.control().context("no control server runs")?.pid())
}

/// A policy that is different each time.
fn policy(number: usize) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: pushed, namespace: shop}}\nspec:\n  \
         rules: [{{from: [{{source: {{principals: [cluster.local/ns/shop/sa/client-{number}]}}}}]}}]\n"
    )
}
