//! The first synchronisation: an agent without a last good state, and a server that offers a whole mesh.
//!
//! `first_sync` is the time from the start of the agent's process to the moment it says that it is ready: the kernel programs
//! are loaded, too. `stream_sync` is the part of it from the opening of its stream to its answer to the last response.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_lab::{Lab, Mesh, Topology};

use super::{AGENT, CONTROL_PORT, SCENARIO};
use crate::bench::Bench;
use crate::metric::Metric;
use crate::synthetic::{MeshServer, SyntheticMesh};

const PATIENCE: Duration = Duration::from_secs(60);

const TOPOLOGY: &str = "
name: sync
nodes:
  - {name: node1, pods: [{name: only, namespace: shop}]}
hosts:
  - {name: control}
";

struct Size {
    workloads: usize,
    ready: Metric,
    stream: Metric,
}

macro_rules! size {
    ($workloads:expr, $name:literal) => {
        Size {
            workloads: $workloads,
            ready: Metric::lower(concat!("first_sync_", $name, "_s"), "s"),
            stream: Metric::lower(concat!("stream_sync_", $name, "_s"), "s"),
        }
    };
}

const SIZES: [Size; 3] = [size!(1_000, "1k"), size!(10_000, "10k"), size!(100_000, "100k")];

pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let rounds = if bench.is_quick() { 1 } else { 3 };
    for size in &SIZES {
        for round in 0..rounds {
            bench.turn(AGENT, round)?;
            measure(bench, round, size).with_context(|| format!("{} workloads", size.workloads))?;
        }
    }
    Ok(())
}

fn measure(bench: &mut Bench, round: usize, size: &Size) -> Result<()> {
    let lab = Lab::up(Topology::parse(SCENARIO, TOPOLOGY)?.unique())?;
    let mut mesh = Mesh::new(lab, "control")?.without_authority();
    let server =
        MeshServer::start(mesh.lab().host("control")?, CONTROL_PORT, SyntheticMesh::new(size.workloads))?;
    let stream = thread::scope(|scope| {
        let stream = scope.spawn(|| stream_sync(&server));
        let began = Instant::now();
        mesh.launch_agent("node1")?;
        mesh.wait_for_agent("node1")?;
        bench.record(SCENARIO, AGENT, size.ready, round, began.elapsed().as_secs_f64());
        stream.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    bench.record(SCENARIO, AGENT, size.stream, round, stream.as_secs_f64());
    Ok(())
}

/// Time from the opening of the first stream to the answer that acknowledges everything.
fn stream_sync(server: &MeshServer) -> Result<Duration> {
    let end = Instant::now() + PATIENCE;
    let mut opened = None;
    while Instant::now() < end {
        match server.is_acknowledged() {
            Some(true) => return Ok(opened.get_or_insert_with(Instant::now).elapsed()),
            Some(false) => {
                opened.get_or_insert_with(Instant::now);
            }
            None => {}
        }
        thread::sleep(Duration::from_millis(1));
    }
    bail!("no agent has synchronised within {PATIENCE:?}")
}
