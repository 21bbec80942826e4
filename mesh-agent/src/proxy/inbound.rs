//! The way of a connection that somebody opened to a local pod, and that reached the node as plain TCP.

use std::rc::Rc;

use mesh_common::Arrival;

use super::authorize::authorize;
use super::connection::{Accepted, Identified, Origin, Refused, Server, relay_to, while_client_waits};
use super::dial::dial;
use super::report::Report;
use super::worker::Worker;

/// Takes the connection from its decision to its end. Whatever ends it early drops its sockets, and that resets
/// them: the client sees a refusal at once.
pub(super) async fn serve(worker: Rc<Worker>, accepted: Box<Accepted>, identified: Box<Identified>) {
    let mut report = Report::new(&worker, &accepted.origin, &identified);
    let may_pass = may_pass(&accepted.origin, &identified);

    // Authorize, connect. Boxed: it takes room that is given back before the relay, which may last for days.
    let opening = Box::pin(open(&worker, &accepted.origin, identified, &mut report));
    let mut server = match while_client_waits(&accepted.stream, opening).await {
        Ok(server) => server,
        Err(refused) => return report.refused(&refused),
    };

    // Later ones like it may do without the agent, if it adds nothing to them
    if may_pass {
        worker.passage.propose(accepted.origin.client.ip(), accepted.origin.destination);
    }

    // Relay, with no more than that takes
    let Accepted { mut stream, .. } = *accepted;
    let end = relay_to(&worker, &mut stream, &mut server).await;

    // Report
    report.closed(&end);
}

/// Opens the server's side of a connection to a local pod, however it reached the node.
pub(super) async fn open(
    worker: &Worker,
    origin: &Origin,
    identified: Box<Identified>,
    report: &mut Report,
) -> Result<Server, Refused> {
    let decision = &identified.decision;
    let target = decision.outcome.as_ref()?;

    // Authorize: by what may be open to a pod, and by policy
    let of_node = worker.limits.admit()?;
    let (mut of_pod, mut guard) = (None, None);
    if let Some(pod) = &decision.pod {
        of_pod = Some(worker.limits.admit_pod(&pod.uid)?);
        let subject = identified.subject(origin, pod, origin.destination);
        let refused = |reason| Refused::from(reason).on_the_way_to(&decision.outcome);
        guard = Some(authorize(worker, subject).await.map_err(refused)?);
    }

    // Connect, with the client's own address
    let dialled = dial(worker, origin, &identified, target).await?;

    // Report that it is open
    let traffic = report.opened(&dialled.upstream, dialled.peer.as_ref(), dialled.attempts);
    let _hold = (dialled.active, [Some(of_node), of_pod, dialled.permit]);
    Ok(Server { stream: dialled.stream, traffic, guard, _hold })
}

/// Whether connections like this one may be worth a proposal: from elsewhere, in plain text, and to the very address that
/// their packets come in with. Passage itself decides.
fn may_pass(origin: &Origin, identified: &Identified) -> bool {
    origin.arrival == Arrival::Steered && identified.pods.by_address(origin.client.ip()).is_none()
}
