//! What an idle connection costs: the growth of an agent's memory by as many connections as its descriptors allow, each of
//! which has carried one small exchange.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::{Lab, Manifests, Mesh, Process, Topology};
use serde_json::Value;

use super::{AGENT, SCENARIO, pid};
use crate::bench::Bench;
use crate::hold;
use crate::metric::Metric;
use crate::resident::Resident;

/// The hard limit of open files on the machines this was made for is 20,000, and a proxied connection takes two.
const CONNECTIONS: usize = 9_600;
const CONNECTIONS_QUICK: usize = 4_000;
const PATIENCE: Duration = Duration::from_secs(60);
const PORT: u16 = 8080;

/// Two pods on one node, and one more on another.
const TOPOLOGY: &str = "
name: idle
nodes:
  - name: node1
    pods:
      - {name: client, namespace: shop}
      - {name: near, namespace: shop}
  - name: node2
    pods:
      - {name: far, namespace: shop}
hosts:
  - {name: control}
";

/// Connections between pods of one node that the agent relays.
pub(super) fn plain(bench: &mut Bench, round: usize) -> Result<()> {
    let [first, _] = measure(bench, "near")?;
    bench.record(SCENARIO, AGENT, Metric::lower("kb_per_idle_connection", "kB"), round, first);
    Ok(())
}

/// Connections between pods of two nodes, in tunnels: the client's agent, then the server's.
pub(super) fn tunnelled(bench: &mut Bench, round: usize) -> Result<()> {
    let [first, second] = measure(bench, "far")?;
    let metric = Metric::lower("kb_per_idle_tunnelled_connection_client", "kB");
    bench.record(SCENARIO, AGENT, metric, round, first);
    let metric = Metric::lower("kb_per_idle_tunnelled_connection_server", "kB");
    bench.record(SCENARIO, AGENT, metric, round, second);
    Ok(())
}

/// The growth of both agents for a connection from `client` to a pod, in kilobytes.
fn measure(bench: &Bench, to: &str) -> Result<[f64; 2]> {
    let connections = if bench.is_quick() { CONNECTIONS_QUICK } else { CONNECTIONS };
    let limit = CONNECTIONS + 400;
    let lab = Lab::up(Topology::parse(SCENARIO, TOPOLOGY)?.unique())?;
    let mut mesh = Mesh::new(lab, "control")?.agent_arguments([
        "--in-kernel-passage".to_owned(),
        "off".to_owned(),
        format!("--max-connections={limit}"),
        format!("--max-connections-per-pod={limit}"),
    ]);
    mesh.apply("mesh.yaml", manifests(mesh.lab())?.text())?;
    mesh.start()?;

    let address = mesh.lab().pod(to)?.ipv4().context("the lab has IPv4")?;
    let address = SocketAddr::new(address.into(), PORT);
    let mut server = worker(&mesh, to, &["accept", "--listen", &format!("0.0.0.0:{PORT}")])?;
    server.wait_for_log(hold::LISTENING, PATIENCE)?;
    // One connection first: what is there once for all, such as a tunnel, is not counted.
    let mut first = worker(&mesh, "client", &["hold", "--to", &address.to_string(), "--connections", "16"])?;
    first.wait_for_log(hold::HOLDING, PATIENCE)?;
    let pids = [pid(&mut mesh, "node1")?, pid(&mut mesh, "node2")?];
    let before = [Resident::at_rest(pids[0])?, Resident::at_rest(pids[1])?];
    let number = connections.to_string();
    let mut client =
        worker(&mesh, "client", &["hold", "--to", &address.to_string(), "--connections", &number])?;
    client.wait_for_log(hold::HOLDING, PATIENCE)?;
    let after = [Resident::at_rest(pids[0])?, Resident::at_rest(pids[1])?];
    ensure!(client.try_wait()?.is_none(), "the client ended: {}", client.log());
    let status = mesh.meshctl("node1", &["status"])?;
    let carried = status.pointer("/connections/outbound").and_then(Value::as_u64).unwrap_or_default();
    ensure!(carried >= connections as u64, "the agent carries {carried} of {connections} connections");
    let growth = |of: usize| -> f64 {
        let [before, after] = [&before, &after].map(|both| both.get(of).map_or(0, |resident| resident.rss));
        (after as f64 - before as f64) / 1000.0 / connections as f64
    };
    Ok([growth(0), growth(1)])
}

fn manifests(lab: &Lab) -> Result<Manifests> {
    let mut manifests = Manifests::new().namespace("shop", true);
    for pod in ["client", "near", "far"] {
        manifests = manifests.pod(lab.pod(pod)?, pod);
    }
    Ok(manifests)
}

/// Runs a worker of this program in a pod.
fn worker(mesh: &Mesh, pod: &str, arguments: &[&str]) -> Result<Process> {
    let own = std::env::current_exe().context("the path of this program")?;
    Ok(mesh.lab().pod(pod)?.program(own)?.args(arguments).spawn()?)
}
