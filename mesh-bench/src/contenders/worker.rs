//! The load's workers in the pods of a lab.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::{Machine, Process};

use super::PORT;
use crate::load::{DriveOptions, LISTENING, Outcome};

/// How long a worker may take beyond what it measures.
const PATIENCE: Duration = Duration::from_secs(20);

/// Starts the server in a pod.
pub(crate) fn serve(pod: &Machine) -> Result<Process> {
    let own = std::env::current_exe().context("the path of this program")?;
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
    let mut server = pod.program(own)?.args(["serve", "--listen", &address.to_string()]).spawn()?;
    server.wait_for_log(LISTENING, PATIENCE)?;
    Ok(server)
}

/// Runs the client in a pod.
pub(crate) fn drive(pod: &Machine, options: &DriveOptions) -> Result<Outcome> {
    let own = std::env::current_exe().context("the path of this program")?;
    let DriveOptions { work, to, connections, warm_up, window } = options;
    let work = work.name();
    let output = pod
        .program(own)?
        .args(["drive", work, "--to", &to.to_string(), "--connections", &connections.to_string()])
        .args(["--warm-up", &warm_up.as_millis().to_string(), "--window", &window.as_millis().to_string()])
        .timeout(*warm_up + *window + PATIENCE)
        .output()?;
    ensure!(output.status.success(), "the client ({work}) failed ({}): {}", output.status, output.stderr);
    serde_json::from_str(output.stdout.trim()).with_context(|| format!("the client said {:?}", output.stdout))
}
