//! The way of a connection that a local pod opened.

use std::rc::Rc;

use super::connection::{Accepted, Identified, Refused, Server, while_client_waits};
use super::dial::dial;
use super::relay::relay;
use super::report::Report;
use super::worker::Worker;

/// Takes the connection from its decision to its end. Whatever ends it early drops its sockets, and that resets
/// them: the client sees a refusal at once.
pub(super) async fn serve(worker: Rc<Worker>, mut accepted: Box<Accepted>, identified: Box<Identified>) {
    let mut report = Report::new(&worker, &accepted, &identified.decision);

    // Authorize, route, connect. Boxed: it takes room that is given back before the relay, which may last for days.
    let opening = Box::pin(open(&worker, &accepted, identified, &mut report));
    let mut server = match opening.await {
        Ok(server) => server,
        Err(refused) => return report.refused(&refused),
    };

    // Relay
    let idle_timeout = worker.settings.idle_timeout;
    let (client, server_stream) = (&mut accepted.stream, &mut server.stream);
    let end = relay(client, server_stream, &server.traffic, &worker.buffers, idle_timeout).await;

    // Report
    report.closed(&end.into());
}

async fn open(
    worker: &Worker,
    accepted: &Accepted,
    identified: Box<Identified>,
    report: &mut Report,
) -> Result<Server, Refused> {
    // Authorize: what a pod may have open, for policy has no say yet in where it goes
    let of_node = worker.limits.admit()?;
    let pod = identified.decision.pod.as_ref();
    let of_pod = pod.map(|pod| worker.limits.admit_pod(&pod.uid)).transpose()?;

    // Route
    let target = identified.decision.outcome.as_ref()?;

    // Connect, to another endpoint where one does not answer
    let dialling = dial(worker, accepted, &identified, target);
    let dialled = while_client_waits(&accepted.stream, dialling).await?;

    // Report that it is open
    let traffic = report.opened(&dialled.upstream, dialled.attempts);
    let _hold = (dialled.active, [Some(of_node), of_pod, dialled.permit]);
    Ok(Server { stream: dialled.stream, traffic, _hold })
}
