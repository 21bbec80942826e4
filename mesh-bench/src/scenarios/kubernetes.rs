//! `mesh-control` on a Kubernetes API with 10,000 pods and 1,000 services: its memory, how long it takes to have read all of it,
//! and how long a change takes to reach an agent.
//!
//! The real program, with its certificate authority, against a stand-in for the API server in this process: real HTTP, lists in
//! pages, watches, objects as large as Kubernetes' own. The agent is a stream that answers every response and keeps nothing. The time
//! of a change begins when the stand-in has it, so what it takes to send is in it. Then the API server is away for a moment and comes
//! back without a past: everything has to be listed again, and nothing of that may be pushed.

mod agent;
mod api;

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_lab::{Lab, Mesh, Topology};

use crate::bench::Bench;
use crate::metric::Metric;
use crate::quantile::quantile;
use crate::resident::{Resident, megabytes};
use crate::synthetic::{SlicedPod, SyntheticMesh};
use agent::Agent;
use api::Api;

const SCENARIO: &str = "kubernetes";
const CONTROL: &str = "mesh-control";
/// It runs with the agent's scenarios: without agents it serves nobody.
const AGENT: &str = "mesh-agent";
const PODS: usize = 10_000;
const SERVICES: usize = 1_000;
const CONTROL_PORT: u16 = 15010;
const PATIENCE: Duration = Duration::from_secs(60);

const TOPOLOGY: &str = "
name: kubernetes
nodes:
  - {name: node1, pods: []}
hosts:
  - {name: control}
  - {name: agent}
";

pub(super) fn run(bench: &mut Bench) -> Result<()> {
    if !bench.wants_contender(AGENT) {
        return Ok(());
    }
    let (rounds, changes) = if bench.is_quick() { (1, 100) } else { (3, 300) };
    for round in 0..rounds {
        bench.turn(CONTROL, round)?;
        measure(bench, round, changes)?;
    }
    Ok(())
}

fn measure(bench: &mut Bench, round: usize, changes: usize) -> Result<()> {
    let lab = Lab::up(Topology::parse(SCENARIO, TOPOLOGY)?.unique())?;
    let synthetic = SyntheticMesh::new(PODS);
    let api = Api::start(lab.host("control")?, synthetic)?;
    let kubeconfig = lab.log_directory().join("kubeconfig");
    std::fs::write(&kubeconfig, api.kubeconfig()).context("the kubeconfig")?;
    let mut mesh = Mesh::new(lab, "control")?.kubernetes(kubeconfig);
    let mut record = |metric, value| bench.record(SCENARIO, CONTROL, metric, round, value);

    let began = Instant::now();
    mesh.start_control()?;
    record(Metric::lower("kubernetes_ready_s", "s"), began.elapsed().as_secs_f64());
    let address = mesh.lab().host("control")?.ipv4().context("the lab has IPv4")?;
    let agent = Agent::start(mesh.lab().host("agent")?, SocketAddr::new(address.into(), CONTROL_PORT))?;
    let known = agent.wait_until_synchronised(PATIENCE)?;
    record(Metric::lower("kubernetes_sync_s", "s"), began.elapsed().as_secs_f64());
    ensure!(known == PODS + SERVICES, "the agent was told of {known} workloads and services");

    let pid = mesh.control().context("no control server runs")?.pid();
    let resident = Resident::at_rest(pid)?;
    record(Metric::lower("kubernetes_rss_mb", "MB"), megabytes(resident.rss));
    record(Metric::lower("kubernetes_private_mb", "MB"), megabytes(resident.private));
    record(Metric::lower("kubernetes_peak_mb", "MB"), megabytes(Resident::peak(pid)?));

    let mut pods = synthetic.sliced_pods();
    let mut times = Vec::with_capacity(changes);
    for number in 0..changes {
        // Out of step with the batches that the server puts changes together in.
        thread::sleep(Duration::from_millis(20 + (number as u64 * 7) % 20));
        let pod = pods.next().context("there are fewer pods than changes")?;
        let began = Instant::now();
        change(&api, &pod, number)?;
        let arrival = agent.wait_for(&pod.uid(), PATIENCE).with_context(|| format!("change {number}"))?;
        times.push(arrival.at.saturating_duration_since(began).as_secs_f64() * 1e3);
    }
    for (name, share) in [("kubernetes_change_p50_ms", 0.5), ("kubernetes_change_p99_ms", 0.99)] {
        record(Metric::lower(name, "ms"), quantile(&mut times, share));
    }

    api.restart(PATIENCE)?;
    // What the lists had led to would come before this change, or with it.
    let pod = pods.next().context("there are fewer pods than changes")?;
    change(&api, &pod, 0)?;
    let arrival = agent.wait_for(&pod.uid(), PATIENCE).context("the change after the restart")?;
    ensure!(
        arrival.others.is_empty(),
        "the restart of the API server changed nothing, but {} resources were pushed: {:?}",
        arrival.others.len(),
        arrival.others.iter().take(3).collect::<Vec<_>>()
    );
    record(Metric::lower("kubernetes_pushed_by_relist", "resources"), arrival.others.len() as f64);
    let resident = Resident::at_rest(pid)?;
    record(Metric::lower("kubernetes_rss_mb_after_relist", "MB"), megabytes(resident.rss));
    record(Metric::lower("kubernetes_peak_mb_after_relist", "MB"), megabytes(Resident::peak(pid)?));
    Ok(())
}

/// Takes a pod out of its service's endpoints, or gives it another revision.
fn change(api: &Api, pod: &SlicedPod, number: usize) -> Result<()> {
    if number.is_multiple_of(2) {
        api.set("EndpointSlice", &pod.namespace, &pod.slice, "/endpoints/0/conditions/ready", false.into())
    } else {
        api.set("Pod", &pod.namespace, &pod.pod, "/metadata/labels/version", "v2".into())
    }
}
