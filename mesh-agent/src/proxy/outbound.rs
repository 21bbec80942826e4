//! The way of a connection that a local pod opened.

use std::rc::Rc;

use super::connection::{Accepted, Identified, Origin, Refused, Server, relay_to, while_client_waits};
use super::decision::{Decision, Path, Upstream};
use super::dial::dial;
use super::report::Report;
use super::worker::Worker;

/// Takes the connection from its decision to its end. Whatever ends it early drops its sockets, and that resets
/// them: the client sees a refusal at once.
pub(super) async fn serve(worker: Rc<Worker>, accepted: Box<Accepted>, identified: Box<Identified>) {
    let mut report = Report::new(&worker, &accepted.origin, &identified);

    // Route, authorize, connect. Boxed: it takes room that is given back before the relay, which may last for days.
    let opening = Box::pin(open(&worker, &accepted.origin, identified, &mut report));
    let mut server = match while_client_waits(&accepted.stream, opening).await {
        Ok(server) => server,
        Err(refused) => return report.refused(&refused),
    };

    // Relay, with no more than that takes
    let Accepted { mut stream, .. } = *accepted;
    let end = relay_to(&worker, &mut stream, &mut server).await;

    // Report
    report.closed(&end);
}

async fn open(
    worker: &Worker,
    origin: &Origin,
    identified: Box<Identified>,
    report: &mut Report,
) -> Result<Server, Refused> {
    // What a pod may have open
    let of_node = worker.limits.admit()?;
    let pod = identified.decision.pod.as_ref();
    let of_pod = pod.map(|pod| worker.limits.admit_pod(&pod.uid)).transpose()?;

    // Route
    let target = identified.decision.outcome.as_ref()?;

    // Authorize where the server is a pod of this node, and connect, to another endpoint where one does not answer
    let dialled = dial(worker, origin, &identified, target).await?;

    // Later ones like it may do without the agent, if it adds nothing to them
    if may_pass(origin, &identified.decision, &dialled.upstream) {
        worker.passage.propose(origin.client.ip(), dialled.upstream.address);
    }

    // Report that it is open
    let traffic = report.opened(&dialled.upstream, dialled.peer.as_ref(), dialled.attempts);
    let _hold = (dialled.active, [Some(of_node), of_pod, dialled.permit]);
    Ok(Server { stream: dialled.stream, traffic, guard: dialled.guard, _hold })
}

/// Whether connections to where this one came to may be worth a proposal. Passage itself decides.
fn may_pass(origin: &Origin, decision: &Decision, upstream: &Upstream) -> bool {
    match upstream.path {
        // The kernel may have chosen the endpoint.
        Path::SameNode => {
            upstream.server_side.is_some() && upstream.source.preserved() == Some(origin.client.ip())
        }
        Path::Remote | Path::Passthrough => {
            decision.service.is_none() && upstream.address == origin.destination
        }
        Path::Tunnel | Path::Waypoint | Path::NetworkGateway => false,
    }
}
