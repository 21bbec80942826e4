//! The way of a connection that somebody opened to a local pod, and that reached the node as plain TCP.

use std::rc::Rc;

use super::connection::{Accepted, Identified, Refused, while_client_waits};
use super::dial::{Dialled, dial};
use super::limits::Permit;
use super::relay::relay;
use super::report::Report;
use super::worker::Worker;

/// Takes the connection from its decision to its end. Whatever ends it early drops its sockets, and that resets
/// them: the client sees a refusal at once.
pub(super) async fn serve(worker: Rc<Worker>, accepted: Accepted, identified: Identified) {
    let mut report = Report::new(&worker, &accepted, &identified.decision);

    // Authorize, connect. Boxed: it takes room that is given back before the relay, which may last for days.
    let (server, _permits) = match Box::pin(open(&worker, &accepted, identified)).await {
        Ok(open) => open,
        Err(refused) => return report.refused(&refused),
    };

    // Relay
    let traffic = report.opened(&server.upstream, server.attempts);
    let Dialled { stream, hold: _hold, .. } = server;
    let settings = &worker.settings;
    let end = relay(accepted.stream, stream, &traffic, &worker.buffers, settings.idle_timeout).await;

    // Report
    report.closed(&end.into());
}

async fn open(
    worker: &Worker,
    accepted: &Accepted,
    identified: Identified,
) -> Result<(Dialled, (Permit, Option<Permit>)), Refused> {
    // Authorize: what may be open to a pod, for policy has no say yet in who comes
    let of_node = worker.limits.admit()?;
    let pod = identified.decision.pod.as_ref();
    let of_pod = pod.map(|pod| worker.limits.admit_pod(&pod.uid)).transpose()?;

    // Connect, with the client's own address
    let target = identified.decision.outcome.as_ref()?;
    let dialling = dial(worker, accepted, &identified, target);
    let server = while_client_waits(&accepted.stream, dialling).await?;
    Ok((server, (of_node, of_pod)))
}
