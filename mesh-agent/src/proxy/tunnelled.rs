//! The way of connections that reach a local pod through tunnels of other agents, gateways or waypoints.
//!
//! A tunnel ends at one pod and proves to its client that it does, by the certificate of the pod's identity. What is
//! asked for in it is an inbound connection like any other, only that the client is known.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;

use super::connection::{Accepted, Identified, Origin, Refused, ServerStream, watched};
use super::decision::{decide, decide_tunnelled};
use super::inbound;
use super::report::Report;
use super::socket::Stream;
use super::tunnel::{self, ConnectRequest, ServerError};
use super::worker::Worker;
use crate::identity::Credentials;
use crate::pods::LocalPod;
use crate::telemetry::{ConnectionEnd, ResponseFlag};

/// Takes a tunnel to its end, and every connection in it on its own way.
pub(super) async fn serve(worker: Rc<Worker>, accepted: Box<Accepted>, pod: Arc<LocalPod>) {
    let Accepted { stream, origin } = *accepted;
    // A tunnel counts for the node only; its connections count for the pod.
    let served = match worker.limits.admit() {
        Ok(_permit) => serve_tunnel(&worker, stream, origin, &pod).await,
        Err(limit) => Err(limit.into()),
    };
    if let Err(refused) = served {
        // Nobody's connection, so it is told in the name of the tunnel; but its pod's address may be another's by now.
        let (snapshot, pods) = (worker.snapshot.load(), worker.pods.load_full());
        if pods.by_uid(&pod.uid).is_none() {
            let end = refused.end.detail;
            tracing::debug!(client = %origin.client, pod = %pod.uid, ?end, "the tunnel of a pod that is gone has ended");
            return;
        }
        let decision = decide(&snapshot, &pods, origin.client, origin.destination);
        Report::new(&worker, &origin, &Identified { decision, snapshot, pods }).refused(&refused);
    }
}

async fn serve_tunnel(
    worker: &Rc<Worker>,
    stream: Stream,
    origin: Origin,
    pod: &Arc<LocalPod>,
) -> Result<(), Refused> {
    let credentials = credentials(worker, pod).await?;
    let connect = |request| {
        let asked = Box::new(Asked { pod: Arc::clone(pod), origin, request });
        worker.spawn(serve_connection(Rc::clone(worker), asked));
    };
    let ended = worker.tunnel_server.serve(stream, &credentials, worker.draining(), connect).await;
    match ended {
        Ok(()) => Ok(()),
        // The connections that were open in it tell of it themselves.
        Err(ServerError::Broken(error)) => {
            tracing::debug!(client = %origin.client, pod = %pod.uid, %error, "a tunnel broke");
            Ok(())
        }
        Err(error) => {
            Err(Refused::early(ConnectionEnd { flag: error.flag(), detail: Some(error.to_string()) }))
        }
    }
}

/// The pod's certificate.
async fn credentials(worker: &Worker, pod: &LocalPod) -> Result<Arc<Credentials>, Refused> {
    let identity = pod.identity(&worker.snapshot.load().node().trust_domain);
    let deadline = Instant::now() + worker.settings.connect_timeout;
    worker.credentials(&identity, deadline).await.map_err(|reason| {
        let detail = format!("no certificate to answer the tunnel with: {reason}");
        Refused::early(ConnectionEnd { flag: ResponseFlag::NoIdentity, detail: Some(detail) })
    })
}

/// A connection that is asked for. In one place, which is given back before the relay.
struct Asked {
    /// The pod that the tunnel leads to.
    pod: Arc<LocalPod>,
    /// The ends of the tunnel, then those of the connection.
    origin: Origin,
    request: ConnectRequest,
}

/// Takes one connection of a tunnel to its end.
async fn serve_connection(worker: Rc<Worker>, mut asked: Box<Asked>) {
    // Identify. The address may have been given to another pod since the tunnel was opened.
    let (snapshot, pods) = (worker.snapshot.load(), worker.pods.load_full());
    let Some(pod) = pods.by_uid(&asked.pod.uid).filter(|known| known.enrolled) else {
        return asked.request.reject(StatusCode::SERVICE_UNAVAILABLE, "the pod of this tunnel left");
    };
    let peer = Arc::clone(&asked.request.peer);
    let (tunnel, authority) = (&asked.origin, &asked.request.authority);
    let (decision, destination) =
        decide_tunnelled(&snapshot, pod, peer, tunnel.client, tunnel.destination, authority);
    asked.origin = Origin::now(tunnel.client, destination, tunnel.arrival);
    let identified = Box::new(Identified { decision, snapshot, pods });
    let mut report = Report::new(&worker, &asked.origin, &identified);

    // Authorize, connect. Boxed: it takes room that is given back before the relay, which may last for days.
    let opening = Box::pin(inbound::open(&worker, &asked.origin, identified, &mut report));
    let mut server = match opening.await {
        Ok(server) => server,
        Err(refused) => {
            let reason = refused.end.detail.as_deref().unwrap_or_default();
            asked.request.reject(status(refused.end.flag), reason);
            return report.refused(&refused);
        }
    };
    let Asked { request, .. } = *asked;
    // A local pod is reached by a socket, never by another tunnel.
    let ServerStream::Tcp(stream) = &mut server.stream else {
        return request.reject(StatusCode::SERVICE_UNAVAILABLE, "the pod is reached by tunnel only");
    };
    let mut client = match request.accept() {
        Ok(client) => client,
        Err(error) => {
            return report.closed(&ConnectionEnd {
                flag: ResponseFlag::DownstreamConnectionTermination,
                detail: Some(format!("the client gave up before the pod answered: {error}")),
            });
        }
    };

    // Relay
    let (buffers, lifetime) = (&worker.buffers, &worker.lifetime);
    let relaying = pin!(tunnel::relay(stream, &mut client, &server.traffic, buffers, lifetime));
    let end = watched(server.guard.as_ref(), relaying).await;

    // Report
    report.closed(&end);
}

/// What the client is told, as ztunnel tells it.
fn status(flag: ResponseFlag) -> StatusCode {
    match flag {
        ResponseFlag::Denied | ResponseFlag::PlaintextRefused => StatusCode::UNAUTHORIZED,
        ResponseFlag::NoRoute => StatusCode::BAD_REQUEST,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}
