//! From a change to its effect: an authorization policy that allows the client's connections is replaced by one that does
//! not, and back. The time begins when the file is renamed into place, or when the server's store is changed, and ends with
//! the first connection of a real client from which on all were decided otherwise: while agent and kernel change their minds, one
//! after the other, a connection may still be decided as before after one that was not.
//!
//! Both in a mesh of 1,000 other workloads; between two pods of a node, so that the kernel's verdicts must be taken back too.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_lab::{Lab, Machine, Manifests, Mesh, Topology};
use mesh_xds::proto::Name;
use mesh_xds::proto::security::string_match::MatchType;
use mesh_xds::proto::security::{Action, Authorization, Clause, Match, Rule, Scope, StringMatch};
use mesh_xds::proto::workload::Address;
use mesh_xds::server::{StoredResource, Transaction};

use super::probe::{Outcome, Probe};
use super::{AGENT, CONTROL_PORT, SCENARIO};
use crate::bench::Bench;
use crate::metric::Metric;
use crate::quantile::quantile;
use crate::synthetic::{MeshServer, SyntheticMesh, pod_workload};

const WORKLOADS: usize = 1_000;
const CHANGES: usize = 200;
const CHANGES_QUICK: usize = 40;
const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(10);

const TOPOLOGY: &str = "
name: config
nodes:
  - name: node1
    pods:
      - {name: client, namespace: shop}
      - {name: server, namespace: shop}
hosts:
  - {name: control}
";

/// Changes of a file that `mesh-control` watches.
pub(super) fn of_manifests(bench: &mut Bench) -> Result<()> {
    let mut mesh = Mesh::new(Lab::up(Topology::parse(SCENARIO, TOPOLOGY)?.unique())?, "control")?;
    for (file, text) in SyntheticMesh::new(WORKLOADS).manifests() {
        mesh.apply(&file, &text)?;
    }
    let mut manifests = Manifests::new().namespace("shop", true);
    for pod in ["client", "server"] {
        manifests = manifests.pod(mesh.lab().pod(pod)?, pod);
    }
    mesh.apply("pods.yaml", manifests.text())?;
    mesh.start()?;
    let names =
        [Metric::lower("change_to_effect_p50_ms", "ms"), Metric::lower("change_to_effect_p99_ms", "ms")];
    measure(bench, &mesh, names, |outcome| Ok(mesh.apply("policy.yaml", &manifest(outcome))?))
}

/// Changes of what a discovery server offers: without the way from the file to there.
pub(super) fn of_pushes(bench: &mut Bench) -> Result<()> {
    let lab = Lab::up(Topology::parse(SCENARIO, TOPOLOGY)?.unique())?;
    let mut mesh = Mesh::new(lab, "control")?.without_authority();
    let server = MeshServer::start(mesh.lab().host("control")?, CONTROL_PORT, SyntheticMesh::new(WORKLOADS))?;
    let mut pods = Transaction::new();
    for pod in ["client", "server"] {
        pods.upsert(&Address::type_url(), pod_workload(mesh.lab().pod(pod)?));
    }
    server.store().update(pods);
    mesh.start_agent("node1")?;
    let names = [Metric::lower("push_to_effect_p50_ms", "ms"), Metric::lower("push_to_effect_p99_ms", "ms")];
    measure(bench, &mesh, names, |outcome| {
        let mut change = Transaction::new();
        change.upsert(&Authorization::type_url(), StoredResource::new("shop/server", &policy(outcome)));
        server.store().update(change);
        Ok(())
    })
}

/// Changes the policy again and again; records the median and the 99th percentile of the times to effect.
fn measure(
    bench: &mut Bench,
    mesh: &Mesh,
    names: [Metric; 2],
    mut change: impl FnMut(Outcome) -> Result<()>,
) -> Result<()> {
    let server = mesh.lab().pod("server")?;
    let _echo = server.echo(PORT)?;
    let probe = Probe::start(mesh.lab().pod("client")?, address(server)?)?;
    probe.wait_for(Outcome::Allowed, PATIENCE)?;
    let (rounds, changes) = if bench.is_quick() { (1, CHANGES_QUICK) } else { (3, CHANGES) };
    for round in 0..rounds {
        bench.turn(AGENT, round)?;
        let mut times = Vec::with_capacity(changes);
        for number in 0..changes {
            let outcome = if number % 2 == 0 { Outcome::Denied } else { Outcome::Allowed };
            let began = Instant::now();
            change(outcome)?;
            let first = probe.wait_for(outcome, PATIENCE).with_context(|| format!("change {number}"))?;
            // Not in step with anybody's timers: 20 to 59 ms.
            thread::sleep(Duration::from_millis(20 + (number as u64 * 17) % 40));
            let effect = probe.settled(outcome, first).with_context(|| format!("change {number}"))?;
            times.push(effect.saturating_duration_since(began).as_secs_f64() * 1e3);
        }
        for (metric, share) in names.into_iter().zip([0.5, 0.99]) {
            bench.record(SCENARIO, AGENT, metric, round, quantile(&mut times, share));
        }
    }
    Ok(())
}

fn address(machine: &Machine) -> Result<SocketAddr> {
    Ok(SocketAddr::new(machine.ipv4().context("the lab has IPv4")?.into(), PORT))
}

/// Whom the policy allows.
fn principal(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Allowed => "cluster.local/ns/shop/sa/client",
        Outcome::Denied => "cluster.local/ns/shop/sa/nobody",
    }
}

fn manifest(outcome: Outcome) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: server, namespace: shop}}\nspec:\n  \
         rules: [{{from: [{{source: {{principals: [{}]}}}}]}}]\n",
        principal(outcome)
    )
}

fn policy(outcome: Outcome) -> Authorization {
    let principal = StringMatch { match_type: Some(MatchType::Exact(principal(outcome).to_owned())) };
    let matches = vec![Match { principals: vec![principal], ..Match::default() }];
    Authorization {
        name: "server".to_owned(),
        namespace: "shop".to_owned(),
        scope: Scope::Namespace.into(),
        action: Action::Allow.into(),
        rules: vec![Rule { clauses: vec![Clause { matches }] }],
        ..Authorization::default()
    }
}
