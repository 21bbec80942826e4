//! `meshctl pods`: the pods of this node.

use std::io;

use clap::Args;

use crate::admin::api::{PodInfo, PodState, path};

use super::screen::{BAD, DUBIOUS, FAINT, GOOD, PLAIN, Screen, faint};
use super::table::{Cell, Table, numbers, words};
use super::{Context, MeshctlError};

#[derive(Debug, Args)]
pub(super) struct PodsArgs {
    /// Only pods of this namespace.
    #[arg(short, long)]
    namespace: Option<String>,
}

pub(super) async fn run(context: &Context, args: &PodsArgs) -> Result<(), MeshctlError> {
    let mut pods: Vec<PodInfo> = context.client.get(path::PODS).await?;
    pods.retain(|pod| args.namespace.as_ref().is_none_or(|namespace| pod.namespace == *namespace));
    context.print(&pods, |screen, pods| print(screen, pods))
}

fn print(screen: &mut Screen, pods: &[PodInfo]) -> io::Result<()> {
    if pods.is_empty() {
        return screen.line(&faint("no pods on this node"));
    }
    let mut table = Table::new(&[
        words("POD").shrinks(),
        words("MESH"),
        words("ADDRESSES").shrinks(),
        words("DEVICE").expendable(3),
        words("FAILS").expendable(4),
        numbers("OUT").expendable(2),
        numbers("IN").expendable(2),
        words("NOTES").shrinks().expendable(1),
    ]);
    for pod in pods {
        let (state, style) = match pod.state {
            PodState::Enrolled => ("enrolled", GOOD),
            PodState::Pending => ("pending", DUBIOUS),
            PodState::Failed => ("failed", BAD),
            PodState::Outside => ("no", FAINT),
        };
        let in_the_mesh = pod.state != PodState::Outside;
        let balanced = pod.balanced_at_connect.then(|| "balanced at connect time".to_owned());
        let notes: Vec<_> = pod.detail.iter().chain(&pod.exceptions).cloned().chain(balanced).collect();
        table.row([
            format!("{}/{}", pod.namespace, pod.name).into(),
            Cell::styled(style, state),
            pod.addresses.join(" ").into(),
            match &pod.device {
                Some(device) => device.into(),
                None => Cell::styled(if in_the_mesh { DUBIOUS } else { FAINT }, "unknown"),
            },
            Cell::styled(if in_the_mesh { PLAIN } else { FAINT }, pod.failure_mode.as_str()),
            count(pod.outbound),
            count(pod.inbound),
            notes.join("; ").into(),
        ]);
    }
    table.print(screen)
}

fn count(connections: usize) -> Cell {
    Cell::styled(if connections == 0 { FAINT } else { PLAIN }, connections.to_string())
}
