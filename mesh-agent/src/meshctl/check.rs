//! `meshctl check`: what is wrong on this node, and how to mend it. Also where no agent runs.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;

use crate::admin::api::{Check, CheckStatus, path};
use crate::settings::NodeArgs;
use crate::steering::host::{HostSettings, kernel};

use super::client::ClientError;
use super::screen::{Screen, bad, dubious, emphasis, faint, good};
use super::text::{plural, wrap};
use super::{Context, MeshctlError};

/// What the checks say, taken together.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether nothing failed.
    healthy: bool,
    /// Whether an agent answered.
    agent_running: bool,
    checks: Vec<Check>,
}

pub(super) async fn run(context: &Context) -> Result<ExitCode, MeshctlError> {
    let (agent_running, checks) = match context.client.get::<Vec<Check>>(path::CHECK).await {
        Ok(checks) => (true, checks),
        Err(ClientError::NotRunning { socket, source }) => (false, without_agent(&socket, &source).await),
        Err(error) => return Err(error.into()),
    };
    let healthy = checks.iter().all(|check| check.status != CheckStatus::Fail);
    context.print(&Report { healthy, agent_running, checks }, print)?;
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The settings an agent would have that is given none but by the environment.
#[derive(Debug, Parser)]
struct Defaults {
    #[command(flatten)]
    node: NodeArgs,
}

/// Looks at the node itself.
async fn without_agent(socket: &str, error: &io::Error) -> Vec<Check> {
    let mut checks = vec![Check::fail(
        "agent",
        format!("not running here: {socket}: {error}"),
        "start it; its log says why it stopped: `journalctl -u mesh-agent`, or `kubectl -n mesh-system logs`",
    )];
    match Defaults::try_parse_from(["meshctl", "--node-name", "this-node"]) {
        Ok(defaults) => {
            let settings = HostSettings::from_args(&defaults.node);
            let found = kernel::check(&settings, &defaults.node.bpffs).await;
            checks.extend(found.into_iter().map(Check::from));
        }
        Err(error) => checks.push(Check::warn(
            "settings",
            format!("the environment's settings cannot be read: {error}"),
            "correct the MESH_ variables",
        )),
    }
    checks
}

impl From<kernel::Check> for Check {
    fn from(check: kernel::Check) -> Self {
        let status = match check.status {
            kernel::Status::Ok => CheckStatus::Ok,
            kernel::Status::Warn => CheckStatus::Warn,
            kernel::Status::Fail => CheckStatus::Fail,
        };
        Self { name: check.name.into(), status, detail: check.detail, mend: check.mend.into() }
    }
}

fn print(screen: &mut Screen, report: &Report) -> io::Result<()> {
    let width = report.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or_default();
    // Mark, blank, name, two blanks.
    let indent = width + 4;
    let room = screen.width().map_or(100, |columns| columns.saturating_sub(indent)).max(30);
    // What is wrong comes last, where the eye is when the command ends.
    let mut checks: Vec<_> = report.checks.iter().collect();
    checks.sort_by_key(|check| check.status);
    for check in checks {
        let mark = match check.status {
            CheckStatus::Ok => good("✔"),
            CheckStatus::Warn => dubious("!"),
            CheckStatus::Fail => bad("✘"),
        };
        let name = format!("{:<width$}", check.name);
        let name = if check.status == CheckStatus::Ok { name } else { emphasis(&name) };
        let mut lines = wrap(&check.detail, room).into_iter();
        screen.line(&format!("{mark} {name}  {}", lines.next().unwrap_or_default()))?;
        for line in lines {
            screen.line(&format!("{:indent$}{line}", ""))?;
        }
        if !check.mend.is_empty() {
            for (index, line) in wrap(&check.mend, room.saturating_sub(2)).into_iter().enumerate() {
                let arrow = if index == 0 { "→" } else { " " };
                screen.line(&format!("{:indent$}{}", "", faint(&format!("{arrow} {line}"))))?;
            }
        }
    }
    screen.blank()?;
    screen.line(&summary(&report.checks))
}

fn summary(checks: &[Check]) -> String {
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let (failed, warned) = (count(CheckStatus::Fail), count(CheckStatus::Warn));
    let all = plural(checks.len(), "check");
    match (failed, warned) {
        (0, 0) => format!("{all}: {}", good("all well")),
        (0, warned) => format!("{all}: {}", dubious(&plural(warned, "warning"))),
        (failed, 0) => format!("{all}: {}", bad(&plural(failed, "problem"))),
        (failed, warned) => {
            format!("{all}: {}, {}", bad(&plural(failed, "problem")), dubious(&plural(warned, "warning")))
        }
    }
}
