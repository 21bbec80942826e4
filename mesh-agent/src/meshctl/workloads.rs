//! `meshctl workloads`: what the agent knows of the mesh's workloads.

use std::io;

use clap::Args;

use crate::admin::api::{WorkloadInfo, path};

use super::client::query_value;
use super::screen::{BAD, DUBIOUS, EMPHASIS, FAINT, GOOD, PLAIN, Screen, faint};
use super::table::{Cell, Table, numbers, words};
use super::text::short_service;
use super::{Context, MeshctlError};

#[derive(Debug, Args)]
pub(super) struct WorkloadsArgs {
    /// Only workloads of this namespace.
    #[arg(short, long)]
    namespace: Option<String>,
}

pub(super) async fn run(context: &Context, args: &WorkloadsArgs) -> Result<(), MeshctlError> {
    let path = match &args.namespace {
        Some(namespace) => format!("{}?namespace={}", path::WORKLOADS, query_value(namespace)),
        None => path::WORKLOADS.into(),
    };
    context.show(&path, |screen, workloads: &Vec<WorkloadInfo>| print(screen, workloads)).await
}

fn print(screen: &mut Screen, workloads: &[WorkloadInfo]) -> io::Result<()> {
    if workloads.is_empty() {
        return screen.line(&faint("no workloads"));
    }
    let mut table = Table::new(&[
        words("WORKLOAD").shrinks(),
        words("ADDRESSES").shrinks(),
        words("NODE").expendable(1),
        words("STATE"),
        words("VIA").expendable(2),
        numbers("OPEN").expendable(3),
        words("SERVICES").shrinks().expendable(4),
    ]);
    for workload in workloads {
        let services: Vec<_> = workload.services.iter().map(|service| short_service(service)).collect();
        let (state, style) = match workload {
            WorkloadInfo { ejected: true, .. } => ("avoided", BAD),
            WorkloadInfo { healthy: false, .. } => ("not ready", DUBIOUS),
            _ => ("ready", GOOD),
        };
        table.row([
            format!("{}/{}", workload.namespace, workload.name).into(),
            workload.addresses.join(" ").into(),
            Cell::styled(if workload.local { EMPHASIS } else { PLAIN }, workload.node.as_str()),
            Cell::styled(style, state),
            workload.protocol.as_str().into(),
            Cell::styled(if workload.active == 0 { FAINT } else { PLAIN }, workload.active.to_string()),
            services.join(" ").into(),
        ]);
    }
    table.print(screen)
}
