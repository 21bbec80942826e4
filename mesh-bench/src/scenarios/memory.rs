//! What the agent keeps in memory: fresh, with a mesh of many workloads, and for every idle connection.
//!
//! User memory only, as `/proc/PID/smaps_rollup` has it; `rss` is all of it, `private` what no other process shares,
//! `anonymous` what is not the content of a file, and `peak` the most there was on the way, which decides on a container's limit. Megabytes are millions of bytes.

mod idle;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use mesh_lab::{Lab, Manifests, Mesh, Topology};
use serde_json::Value;

use crate::bench::Bench;
use crate::metric::Metric;
use crate::resident::{Resident, megabytes};
use crate::synthetic::{MeshServer, SyntheticMesh};

const SCENARIO: &str = "memory";
const AGENT: &str = "mesh-agent";
/// Where the lab's agents look for a control server without certificates.
const CONTROL_PORT: u16 = 15010;

/// One node with a pod, and a control server.
const TOPOLOGY: &str = "
name: memory
nodes:
  - {name: node1, pods: [{name: only, namespace: shop}]}
hosts:
  - {name: control}
";

/// The names of what is measured at a size.
struct Size {
    workloads: usize,
    rss: Metric,
    private: Metric,
    peak: Metric,
}

macro_rules! size {
    ($workloads:expr, $name:literal) => {
        Size {
            workloads: $workloads,
            rss: Metric::lower(concat!("rss_mb_at_", $name, "_workloads"), "MB"),
            private: Metric::lower(concat!("private_mb_at_", $name, "_workloads"), "MB"),
            peak: Metric::lower(concat!("peak_mb_at_", $name, "_workloads"), "MB"),
        }
    };
}

const SIZES: [Size; 3] = [size!(1_000, "1k"), size!(10_000, "10k"), size!(100_000, "100k")];

pub(super) fn run(bench: &mut Bench) -> Result<()> {
    if !bench.wants_contender(AGENT) {
        return Ok(());
    }
    for round in 0..rounds(bench) {
        bench.turn(AGENT, round)?;
        fresh(bench, round)?;
        for size in &SIZES {
            bench.turn(AGENT, round)?;
            with_workloads(bench, round, size).with_context(|| format!("{} workloads", size.workloads))?;
        }
        bench.turn(AGENT, round)?;
        idle::plain(bench, round).context("idle connections")?;
        bench.turn(AGENT, round)?;
        idle::tunnelled(bench, round).context("idle tunnelled connections")?;
    }
    Ok(())
}

/// Memory varies little from run to run.
fn rounds(bench: &Bench) -> usize {
    if bench.is_quick() { 1 } else { 3 }
}

/// An agent that has just become ready, as it is deployed: with certificates, in a mesh of a single pod. (An agent that is
/// told of no workload at all waits for one.)
fn fresh(bench: &mut Bench, round: usize) -> Result<()> {
    let mut mesh = Mesh::new(Lab::up(Topology::parse(SCENARIO, TOPOLOGY)?.unique())?, "control")?;
    let manifests = Manifests::new().namespace("shop", true).pod(mesh.lab().pod("only")?, "only");
    mesh.apply("mesh.yaml", manifests.text())?;
    mesh.start()?;
    let resident = Resident::at_rest(pid(&mut mesh, "node1")?)?;
    bench.record(SCENARIO, AGENT, Metric::lower("rss_fresh_mb", "MB"), round, megabytes(resident.rss));
    bench.record(SCENARIO, AGENT, Metric::lower("pss_fresh_mb", "MB"), round, megabytes(resident.pss));
    bench.record(
        SCENARIO,
        AGENT,
        Metric::lower("private_fresh_mb", "MB"),
        round,
        megabytes(resident.private),
    );
    let metric = Metric::lower("anonymous_fresh_mb", "MB");
    bench.record(SCENARIO, AGENT, metric, round, megabytes(resident.anonymous));
    Ok(())
}

/// An agent that knows a large mesh and has written it to its disk.
fn with_workloads(bench: &mut Bench, round: usize, size: &Size) -> Result<()> {
    let lab = Lab::up(Topology::parse(SCENARIO, TOPOLOGY)?.unique())?;
    let mut mesh = Mesh::new(lab, "control")?.without_authority();
    let _server =
        MeshServer::start(mesh.lab().host("control")?, CONTROL_PORT, SyntheticMesh::new(size.workloads))?;
    let began = Instant::now();
    mesh.start_agent("node1")?;
    tracing::info!(workloads = size.workloads, took = ?began.elapsed(), "the agent is ready");
    let known = mesh.meshctl("node1", &["status"])?;
    let workloads = known.pointer("/mesh/workloads").and_then(Value::as_u64);
    ensure!(workloads == Some(size.workloads as u64), "the agent knows another mesh: {known}");
    let pid = pid(&mut mesh, "node1")?;
    let resident = Resident::at_rest(pid)?;
    bench.record(SCENARIO, AGENT, size.rss, round, megabytes(resident.rss));
    bench.record(SCENARIO, AGENT, size.private, round, megabytes(resident.private));
    bench.record(SCENARIO, AGENT, size.peak, round, megabytes(Resident::peak(pid)?));
    Ok(())
}

fn pid(mesh: &mut Mesh, node: &str) -> Result<u32> {
    Ok(mesh.agent(node).with_context(|| format!("no agent runs on {node}"))?.pid())
}
