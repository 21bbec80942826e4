//! `meshctl policies`: what applies to the pods of this node, in the order it is evaluated in.

use std::io;

use clap::Args;

use crate::admin::api::{PodPolicies, PolicyInfo, path};

use super::client::query_value;
use super::screen::{BAD, DUBIOUS, FAINT, GOOD, PLAIN, Screen, emphasis, faint};
use super::table::{Cell, Table, numbers, words};
use super::{Context, MeshctlError};

#[derive(Debug, Args)]
pub(super) struct PoliciesArgs {
    /// Only those of this pod (`name` or `namespace/name`).
    #[arg(value_name = "POD")]
    pod: Option<String>,
}

pub(super) async fn run(context: &Context, args: &PoliciesArgs) -> Result<(), MeshctlError> {
    let selection = args.pod.as_deref().map(|pod| format!("?pod={}", query_value(pod))).unwrap_or_default();
    let pods: Vec<PodPolicies> = context.client.get(&format!("{}{selection}", path::POLICIES)).await?;
    context.print(&pods, |screen, pods| print(screen, pods))
}

fn print(screen: &mut Screen, pods: &[PodPolicies]) -> io::Result<()> {
    if pods.is_empty() {
        return screen.line(&faint("no enrolled pods on this node"));
    }
    for (position, pod) in pods.iter().enumerate() {
        if position > 0 {
            screen.blank()?;
        }
        let name = emphasis(&format!("{}/{}", pod.namespace, pod.name));
        screen.line(&format!("{name}  {}", faint(&format!("mutual TLS: {}", pod.mutual_tls))))?;
        if pod.policies.is_empty() {
            screen.line(&faint("  no policy: everything is allowed"))?;
            continue;
        }
        table(&pod.policies).print(screen)?;
    }
    Ok(())
}

fn table(policies: &[PolicyInfo]) -> Table {
    let mut table = Table::new(&[
        words("ACTION"),
        words("POLICY").shrinks(),
        words("SCOPE").expendable(2),
        numbers("RULES").expendable(1),
        words("NOTES").shrinks(),
    ])
    .indented(2);
    for known in policies {
        let (style, note) = match (&known.unusable, known.dry_run) {
            (Some(reason), _) => (BAD, format!("denies everything: {reason}")),
            (None, true) => (FAINT, "on trial: reported, not enforced".into()),
            (None, false) if known.action == "ALLOW" => (GOOD, String::new()),
            (None, false) => (DUBIOUS, String::new()),
        };
        table.row([
            Cell::styled(style, known.action.as_str()),
            known.policy.as_str().into(),
            known.scope.as_str().into(),
            known.rules.to_string().into(),
            Cell::styled(if known.unusable.is_some() { BAD } else { PLAIN }, note),
        ]);
    }
    table
}
