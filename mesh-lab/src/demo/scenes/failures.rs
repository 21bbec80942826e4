//! Agents that are killed: who may do without them, and who must not.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_lab::traffic::{Load, Report};

use super::super::{Stage, journey};

/// How soon a restarted agent has to be back.
const BACK: Duration = Duration::from_secs(1);

pub(super) fn agents_killed(stage: &mut Stage) -> Result<()> {
    let Stage { show, mesh, .. } = stage;
    show.scene("An agent dies", "kill -9 on node2: each pod's failure mode decides");
    let port = |pod: &str, port: u16| -> Result<SocketAddr> {
        let address = mesh.lab().pod(pod)?.ipv4().with_context(|| format!("{pod} has no IPv4 address"))?;
        Ok(SocketAddr::from((address, port)))
    };
    let (web, vault) = (port("web-2", 8080)?, port("vault-1", 8200)?);

    let before = call(mesh, vault)?;
    show.expect(before.succeeded == 3, "with an agent, vault-1 answers")?;
    show.command("node2", "kill -9 mesh-agent");
    mesh.kill_agent("node2");

    let mark = journey::mark(mesh);
    let open = call(mesh, web)?;
    let closed = call(mesh, vault)?;
    show.table(
        ["from", "to", "failure mode", "result"],
        [row("billing-1", "web-2", "open", &open), row("billing-1", "vault-1", "closed", &closed)],
    );
    show.expect(open.failed == 0, "a pod that fails open is reached directly")?;
    show.expect(closed.succeeded == 0, "a pod that fails closed is not reached at all")?;
    show.expect(journey::since(mesh, &mark).is_empty(), "and no agent was involved")?;

    let begin = Instant::now();
    mesh.start_agent("node2")?;
    let took = begin.elapsed();
    show.timing("restarted and ready", took);
    let again = call(mesh, vault)?;
    show.expect(again.succeeded == 3 && took < BACK, "within a second of its start the agent steers again")
}

fn call(mesh: &mesh_lab::Mesh, to: SocketAddr) -> Result<Report> {
    let load = Load::http(&format!("http://{to}/"))?
        .requests(3)
        .connections(3)
        .new_connection_per_request()
        .timeout(Duration::from_secs(1));
    Ok(mesh.lab().pod("billing-1")?.traffic(load)?.finish())
}

fn row(from: &str, to: &str, mode: &str, report: &Report) -> [String; 4] {
    let result = match report.errors.iter().next() {
        Some((error, count)) => format!("{count} of {} failed: {error}", report.requests),
        None => format!("{} of {} answered", report.succeeded, report.requests),
    };
    [from.to_owned(), to.to_owned(), mode.to_owned(), result]
}
