//! `meshctl explain`: what would happen to a connection, step by step.

use std::io;

use clap::Args;
use mesh_xds::identity::Identity;

use crate::admin::api::{
    AuthorizationInfo, CandidateInfo, DecisionInfo, Explanation, PeerInfo, SteeringStage, SteeringVerdict,
    path,
};
use crate::telemetry::Direction;

use super::client::query_value;
use super::screen::{BAD, DUBIOUS, FAINT, GOOD, Screen, bad, dubious, emphasis, faint, good, styled};
use super::table::{Cell, Table, numbers, words};
use super::text::{plural, short_service, short_uid};
use super::{Context, MeshctlError};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  meshctl explain shop/client-1 web.shop:80     a pod of this node to a service
  meshctl explain client-1 10.0.2.7:8080        to an address
  meshctl explain 192.0.2.9 10.0.1.5:8080       from somewhere to a pod of this node")]
pub(super) struct ExplainArgs {
    /// Who would connect: a pod of this node (`name` or `namespace/name`), or any address.
    #[arg(value_name = "POD")]
    client: String,

    /// To where: `address:port` or `service:port`.
    #[arg(value_name = "ADDRESS:PORT")]
    destination: String,
}

pub(super) async fn run(context: &Context, args: &ExplainArgs) -> Result<(), MeshctlError> {
    let (client, destination) = (query_value(&args.client), query_value(&args.destination));
    let path = format!("{}?client={client}&destination={destination}", path::EXPLAIN);
    context.show(&path, print).await
}

fn print(screen: &mut Screen, explanation: &Explanation) -> io::Result<()> {
    screen.line(&format!(
        "{}  {}  {}",
        end(&explanation.client, None),
        faint("──▶"),
        end(&explanation.destination, Some(&explanation.requested))
    ))?;
    screen.blank()?;
    steering(screen, &explanation.steering)?;
    if let Some(decision) = &explanation.decision {
        screen.blank()?;
        agent(screen, decision)?;
    }
    for authorization in explanation.decision.iter().flat_map(|decision| &decision.authorizations) {
        screen.blank()?;
        policy(screen, authorization)?;
    }
    screen.blank()?;
    screen.line(&format!("{} {}", emphasis("=>"), conclusion(explanation)))
}

/// A name where there is one, and the address.
fn end(peer: &PeerInfo, requested: Option<&str>) -> String {
    match (&peer.namespace, &peer.name, requested) {
        (Some(namespace), Some(name), _) => {
            format!("{} {}", emphasis(&format!("{namespace}/{name}")), faint(&peer.address))
        }
        (_, _, Some(requested)) if requested != peer.address => {
            format!("{} {}", emphasis(requested), faint(&peer.address))
        }
        _ => emphasis(&peer.address),
    }
}

/// A numbered step, what it came to, and why.
fn step(screen: &mut Screen, name: &str, verdict: &str) -> io::Result<()> {
    screen.line(&format!("{}  {verdict}", emphasis(&format!("{name:<8}"))))
}

fn reason(screen: &mut Screen, text: &str) -> io::Result<()> {
    screen.line(&format!("          {text}"))
}

fn steering(screen: &mut Screen, stage: &SteeringStage) -> io::Result<()> {
    let verdict = match (stage.verdict, stage.direction) {
        (SteeringVerdict::Capture, Some(Direction::Inbound)) => {
            good("steered into the agent, for the server's pod")
        }
        (SteeringVerdict::Capture, _) => good("steered into the agent, for the client's pod"),
        (SteeringVerdict::Pass, _) => dubious("left alone: goes its way without the mesh"),
        (SteeringVerdict::Drop, _) => bad("dropped"),
    };
    step(screen, "kernel", &format!("{verdict} {}", faint(&format!("({})", stage.outcome))))?;
    for line in &stage.because {
        reason(screen, line)?;
    }
    Ok(())
}

fn agent(screen: &mut Screen, decision: &DecisionInfo) -> io::Result<()> {
    let verdict = match (&decision.refusal, &decision.service) {
        (Some(refusal), _) => {
            let flag = decision.response_flag.as_deref().unwrap_or("-");
            format!("{} {}", bad("refused"), faint(&format!("({flag}: {refusal})")))
        }
        (None, Some(service)) => format!("service {}", emphasis(short_service(service))),
        (None, None) => match decision.direction {
            Direction::Outbound => "no service has this address: it is taken as it is".into(),
            Direction::Inbound => "to the pod itself".into(),
        },
    };
    step(screen, "agent", &verdict)?;
    if let Some(balancing) = &decision.balancing {
        reason(screen, &format!("chooses: {balancing}"))?;
    }
    if decision.candidates.is_empty() && decision.set_aside.is_empty() {
        return Ok(());
    }
    screen.blank()?;
    let mut table = Table::new(&[
        words(""),
        words("ENDPOINT").shrinks(),
        words("ADDRESS").shrinks(),
        words("NODE").expendable(3),
        words("PATH"),
        numbers("OPEN").expendable(2),
        words("SEES").shrinks().expendable(1),
        words("NOTES").shrinks(),
    ])
    .indented(10);
    for candidate in &decision.candidates {
        let mark = if candidate.ejected { Cell::styled(BAD, "✘") } else { tier_mark(candidate.tier) };
        table.row([
            mark,
            candidate.workload.as_deref().map_or("not in the mesh", short_uid).into(),
            candidate.address.as_str().into(),
            candidate.node.clone().unwrap_or_default().into(),
            candidate.path.as_str().into(),
            candidate.active.to_string().into(),
            seen(candidate),
            Cell::styled(DUBIOUS, notes(candidate)),
        ]);
    }
    for endpoint in &decision.set_aside {
        table.row([
            Cell::styled(FAINT, "–"),
            Cell::styled(FAINT, short_uid(&endpoint.workload)),
            "".into(),
            "".into(),
            "".into(),
            "".into(),
            "".into(),
            Cell::styled(DUBIOUS, endpoint.because.as_str()),
        ]);
    }
    table.print(screen)
}

/// What policy says of one pod that could be reached.
fn policy(screen: &mut Screen, authorization: &AuthorizationInfo) -> io::Result<()> {
    let server = format!("{} at {}", authorization.server, authorization.address);
    let verdict = if authorization.allowed {
        format!("{} {}", good("allowed"), faint(&format!("to {server}")))
    } else {
        format!("{} {}", bad("denied"), faint(&format!("to {server}")))
    };
    step(screen, "policy", &verdict)?;
    let client = authorization.client.as_deref();
    reason(screen, &format!("the client is {}", client.unwrap_or("nobody: it comes in plain text")))?;
    reason(screen, &authorization.verdict)?;
    if let Some(trial) = &authorization.dry_run_verdict {
        reason(screen, &dubious(&format!("with the policies on trial: {trial}")))?;
    }
    for check in &authorization.policies {
        let mark = if check.matches { good("✔") } else { faint("–") };
        let known = &check.policy;
        let note = if known.dry_run { ", on trial" } else { "" };
        reason(screen, &format!("{mark} {} {}{}", known.action, known.policy, faint(note)))?;
        for rule in &check.outcomes {
            let what = if rule.matches { "matches" } else { "does not match" };
            reason(screen, &faint(&format!("    rules[{}] {what}: {}", rule.rule, rule.because.join("; "))))?;
        }
    }
    Ok(())
}

fn tier_mark(tier: usize) -> Cell {
    if tier == 0 { Cell::styled(GOOD, "●") } else { Cell::styled(FAINT, "○") }
}

/// Which source address the server sees.
fn seen(candidate: &CandidateInfo) -> Cell {
    match &candidate.preserved_source {
        Some(address) => address.as_str().into(),
        None => Cell::styled(FAINT, "the node"),
    }
}

fn notes(candidate: &CandidateInfo) -> String {
    let mut notes = Vec::new();
    if candidate.tier > 0 {
        notes.push("only when nearer ones fail".to_owned());
    }
    if candidate.ejected {
        notes.push(format!("avoided: failed {} times in a row", candidate.failures));
    }
    if candidate.weight != 1 {
        notes.push(format!("weight {}", candidate.weight));
    }
    if !candidate.expects.is_empty() {
        // Namespace and service account; the whole identity is in the JSON.
        let short = |name: &String| match name.parse::<Identity>() {
            Ok(identity) => format!("{}/{}", identity.namespace(), identity.service_account()),
            Err(_) => name.clone(),
        };
        let names = candidate.expects.iter().map(short);
        notes.push(format!("as {}", names.collect::<Vec<_>>().join(" or ")));
    }
    notes.extend(candidate.source_reason.clone());
    notes.join("; ")
}

fn conclusion(explanation: &Explanation) -> String {
    let Some(decision) = &explanation.decision else {
        return match explanation.steering.verdict {
            SteeringVerdict::Drop => bad("the client's attempt times out"),
            SteeringVerdict::Pass | SteeringVerdict::Capture => {
                "an ordinary connection, as without a mesh".into()
            }
        };
    };
    if decision.refusal.is_some() {
        return bad("the connection is closed at once");
    }
    let denied = |candidate: &CandidateInfo| {
        decision.authorizations.iter().any(|known| !known.allowed && known.address == candidate.address)
    };
    if !decision.candidates.is_empty() && decision.candidates.iter().all(denied) {
        return bad("policy denies it: the connection is closed at once");
    }
    let nearest: Vec<_> = decision.candidates.iter().filter(|candidate| candidate.tier == 0).collect();
    match nearest.as_slice() {
        [] => bad("the connection is closed at once"),
        [only] => {
            let name = only.workload.as_deref().map_or(only.address.as_str(), short_uid);
            format!("to {} at {}", styled(GOOD, name), only.address)
        }
        several => format!("to one of {}", styled(GOOD, &plural(several.len(), "endpoint"))),
    }
}
