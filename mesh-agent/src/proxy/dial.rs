//! Opens the connection to an upstream, trying other endpoints of a service when one does not answer.
//!
//! Only connecting is tried again, never anything after it: no byte of the client was passed on yet, so nothing can
//! happen twice.
//!
//! Where nothing listens at the port of tunnels, the same endpoints are tried again for a moment (`joining_time` in
//! [`TunnelSettings`](super::tunnel::TunnelSettings)): everybody knows a pod that joins the mesh by its label, and its own
//! agent may still be about to steer it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use mesh_xds::identity::Identity;
use thiserror::Error;
use tokio::time::{sleep, timeout_at};

use super::authorize::{NotAllowed, authorize};
use super::balance::{self, Tried};
use super::connection::{Identified, Origin, ServerStream};
use super::decision::{Target, TunnelPath, Upstream};
use super::guards::Guard;
use super::limits::{LimitReached, Permit};
use super::socket::{self, Source, Stream};
use super::tunnel::{TunnelError, TunnelFailure, TunnelRoute, TunnelStream, baggage};
use super::worker::Worker;
use crate::config::{ActiveConnection, Endpoint, ServiceEntry};
use crate::identity::NoCredentials;
use crate::telemetry::{ConnectFailure, ConnectionEnd, Incident, ResponseFlag};

/// Time before endpoints whose agents do not listen yet are tried again; doubles from then on.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// An open connection to an upstream.
pub(super) struct Dialled {
    pub(super) stream: ServerStream,
    pub(super) upstream: Upstream,
    /// Who it has proved to be.
    pub(super) peer: Option<Arc<Identity>>,
    pub(super) attempts: u32,
    /// Counts it as load of the endpoint.
    pub(super) active: Option<ActiveConnection>,
    /// One of the connections of the pod it leads to, where this agent answers for that.
    pub(super) permit: Option<Permit>,
    /// Ends the connection when policy no longer allows it, where this agent answers for the server.
    pub(super) guard: Option<Guard>,
}

/// No upstream could be connected to.
pub(super) struct DialError {
    /// How many were tried.
    pub(super) attempts: u32,
    /// The last one and what happened; nothing where time was over before the first.
    pub(super) last: Option<(Upstream, AttemptError)>,
}

/// Why one upstream was not connected to.
#[derive(Debug, Error)]
pub(super) enum AttemptError {
    #[error(transparent)]
    Limit(#[from] LimitReached),
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    #[error("no identity to open a tunnel with: {0}")]
    NoIdentity(Box<str>),
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    #[error("{0}{advice}", advice = advice(.0))]
    Connect(#[from] io::Error),
}

impl AttemptError {
    /// The kind of refusal, for reports.
    fn flag(&self) -> ResponseFlag {
        match self {
            Self::Limit(_) => ResponseFlag::Overflow,
            Self::NotAllowed(reason) => reason.flag(),
            Self::NoIdentity(_) => ResponseFlag::NoIdentity,
            Self::Tunnel(error) => error.flag(),
            Self::Connect(error) if ConnectFailure::from(error) == ConnectFailure::Exhausted => {
                ResponseFlag::Overflow
            }
            Self::Connect(_) => ResponseFlag::UpstreamConnectionFailure,
        }
    }

    /// What it says about whether another endpoint might do.
    fn lesson(&self) -> Lesson {
        let failure = match self {
            // One on this node takes no tunnel.
            Self::Limit(_) | Self::NoIdentity(_) => return Lesson::TryAnother,
            // They would all be asked in the same name, for the same service.
            Self::NotAllowed(_) => return Lesson::GiveUp,
            Self::Tunnel(error) if error.flag().is_policy() => return Lesson::GiveUp,
            Self::Tunnel(error) => match error.cause.connect_failure() {
                Some(failure) => Some(failure),
                None => return Lesson::TryAnother,
            },
            Self::Connect(error) => Some(ConnectFailure::from(error)),
        };
        match failure {
            // The client has no port left towards this one.
            Some(ConnectFailure::AddressInUse) => Lesson::TryAnother,
            Some(ConnectFailure::Exhausted) => Lesson::GiveUp,
            Some(_) | None => Lesson::Avoid,
        }
    }
}

impl DialError {
    /// Whether the last endpoint takes tunnels, but nothing listened for them.
    fn is_without_agent(&self) -> bool {
        let Some((_, AttemptError::Tunnel(error))) = &self.last else { return false };
        error.cause.connect_failure() == Some(ConnectFailure::Refused)
    }
}

impl From<NoCredentials> for AttemptError {
    fn from(reason: NoCredentials) -> Self {
        Self::NoIdentity(reason.to_string().into())
    }
}

/// What a failed attempt teaches.
enum Lesson {
    /// Another endpoint may do; this one is as good as before.
    TryAnother,
    /// Another endpoint may do, and this one had better be left alone for a while.
    Avoid,
    /// No other would do.
    GiveUp,
}

fn advice(error: &io::Error) -> &'static str {
    match ConnectFailure::from(error) {
        ConnectFailure::Refused => " (nobody listens there)",
        ConnectFailure::Unreachable => " (no route; see `ip route get`)",
        ConnectFailure::TimedOut => " (is a network policy or firewall in the way?)",
        ConnectFailure::AddressInUse => {
            " (the client has no port left towards it; widen net.ipv4.ip_local_port_range)"
        }
        ConnectFailure::Exhausted => " (this node is out of descriptors or memory)",
        ConnectFailure::Other => "",
    }
}

impl From<&DialError> for ConnectionEnd {
    fn from(error: &DialError) -> Self {
        let Some((upstream, cause)) = &error.last else {
            return Self {
                flag: ResponseFlag::NoHealthyUpstream,
                detail: Some("no endpoint was left to try".into()),
            };
        };
        let tried = if error.attempts > 1 { format!(", attempt {}", error.attempts) } else { String::new() };
        Self { flag: cause.flag(), detail: Some(format!("{}{tried}: {cause}", upstream.address)) }
    }
}

/// Connects to where the decision leads.
pub(super) async fn dial(
    worker: &Worker,
    origin: &Origin,
    identified: &Identified,
    target: &Target,
) -> Result<Dialled, DialError> {
    let started = Instant::now();
    let dialling =
        Dialling { worker, origin, identified, deadline: started + worker.settings.connect_timeout };
    let patience = dialling.deadline.min(started + worker.settings.tunnel.joining_time);
    let (mut attempts, mut pause) = (0_u32, FIRST_PAUSE);
    loop {
        let outcome = match target {
            Target::Single(upstream) => dialling
                .attempt(upstream.clone(), dialling.deadline, 1)
                .await
                .map_err(|last| DialError { attempts: 1, last: Some(last) }),
            Target::Service { entry, .. } | Target::Waypoint { entry, .. } => {
                dialling.dial_service(entry).await
            }
        };
        match outcome {
            Ok(dialled) => {
                return Ok(Dialled { attempts: attempts.saturating_add(dialled.attempts), ..dialled });
            }
            Err(failed) => {
                attempts = attempts.saturating_add(failed.attempts);
                if !failed.is_without_agent() || Instant::now() + pause >= patience {
                    return Err(DialError { attempts, ..failed });
                }
            }
        }
        sleep(pause).await;
        pause *= 2;
    }
}

/// The attempts to connect one connection.
struct Dialling<'a> {
    worker: &'a Worker,
    origin: &'a Origin,
    identified: &'a Identified,
    deadline: Instant,
}

impl Dialling<'_> {
    async fn dial_service(&self, entry: &ServiceEntry) -> Result<Dialled, DialError> {
        let Self { worker, origin, identified, deadline } = *self;
        let settings = &worker.settings;
        let max_attempts = u32::try_from(settings.max_attempts).unwrap_or(u32::MAX);
        // What this client's kernel sends there straight is not sent there by the agent as well
        let left = identified.left_to_kernel(worker, origin);
        let reserved = |endpoint: &Endpoint| {
            !left.is_empty()
                && identified
                    .endpoint_address(origin, endpoint)
                    .is_some_and(|address| left.contains(&address))
        };
        let affinity = entry.service.load_balancing.session_affinity;
        let mut rng = Rng::new();
        let mut tried = Tried::default();
        let mut failed = DialError { attempts: 0, last: None };
        while failed.attempts < max_attempts && Instant::now() < deadline {
            // Choose; the endpoint it had, where the service wants that
            let usable = |endpoint: &Endpoint| identified.is_usable(origin, endpoint);
            let (now, client) = (Instant::now(), origin.client.ip());
            let chosen = match affinity {
                Some(_) => {
                    let last = worker.affinity.last(client, &entry.service.id, now);
                    balance::choose_sticky(entry, &tried, now, client, last.as_deref(), usable)
                }
                None => balance::choose(entry, &tried, now, &mut rng, usable, reserved),
            };
            let Some((position, endpoint)) = chosen else {
                break;
            };
            let Ok(upstream) = identified.endpoint_upstream(origin, endpoint) else {
                break;
            };
            tried.add(position);
            failed.attempts += 1;

            // Connect; the last attempt may use all the time that is left
            let is_last = failed.attempts == max_attempts || entry.endpoints.len() == 1;
            let attempt_deadline =
                if is_last { deadline } else { deadline.min(Instant::now() + settings.attempt_timeout) };
            let (upstream, error) = match self.attempt(upstream, attempt_deadline, failed.attempts).await {
                Ok(dialled) => {
                    if let Some(time) = affinity {
                        let (service, uid) = (&entry.service.id, &endpoint.workload.uid);
                        worker.affinity.remember(client, service, uid, time, Instant::now());
                    }
                    return Ok(dialled);
                }
                Err(failure) => failure,
            };

            // Learn
            let lesson = error.lesson();
            failed.last = Some((upstream, error));
            match lesson {
                Lesson::TryAnother => {}
                Lesson::Avoid => balance::note_failure(entry, endpoint, Instant::now()),
                Lesson::GiveUp => break,
            }
        }
        Err(failed)
    }

    async fn attempt(
        &self,
        upstream: Upstream,
        deadline: Instant,
        attempts: u32,
    ) -> Result<Dialled, (Upstream, AttemptError)> {
        match self.open(&upstream, deadline).await {
            Ok(opened) => {
                let Opened { stream, peer, active, permit, guard } = opened;
                Ok(Dialled { stream, upstream, peer, attempts, active, permit, guard })
            }
            Err(error) => Err((upstream, error)),
        }
    }

    async fn open(&self, upstream: &Upstream, deadline: Instant) -> Result<Opened, AttemptError> {
        let Self { worker, origin, identified, .. } = *self;
        // Authorize, as the server's side, where the connection will not be steered through it
        let (mut permit, mut guard, mut peer) = (None, None, None);
        if let Some(pod) = &upstream.server_side {
            permit = Some(worker.limits.admit_pod(&pod.uid)?);
            let subject = identified.subject(origin, pod, upstream.address);
            guard = Some(authorize(worker, subject).await?);
            peer = Some(Arc::new(pod.identity(identified.trust_domain())));
        }

        // Counted from here on: a burst of connections must see those of it that are still connecting.
        let active = upstream.load.as_ref().map(|load| load.enter());
        let stream = match &upstream.tunnel {
            Some(path) => {
                let tunnel = self.open_tunnel(upstream, path, deadline).await?;
                peer = tunnel.peer().cloned();
                ServerStream::Tunnel(Box::new(tunnel))
            }
            None => ServerStream::Tcp(self.connect(upstream, deadline).await?),
        };
        if let Some(load) = &upstream.load {
            load.succeeded();
        }
        Ok(Opened { stream, peer, active, permit, guard })
    }

    async fn connect(&self, upstream: &Upstream, deadline: Instant) -> Result<Stream, AttemptError> {
        let Self { worker, .. } = *self;
        // The client may have a connection of its own there, from any port: one that passes in the kernel. With the same
        // port the two could not be told apart, and the answers would go to the client.
        let as_client = upstream.source.preserved().is_some();
        let taken = |local: SocketAddr| as_client && worker.passage.passes(local, upstream.address);
        let source = Source::of(upstream.source.preserved(), self.origin.arrival);
        let reach = worker.reach(upstream.address.ip());
        let (settings, node) = (&worker.settings, &worker.node_sockets);
        let connecting = socket::connect_clear_of(upstream.address, source, reach, settings, node, taken);
        let outcome = timeout_at(deadline.into(), connecting)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        outcome.map(Stream::new).map_err(|error| {
            self.worker.observer.incident(Incident::ConnectFailure(ConnectFailure::from(&error)));
            error.into()
        })
    }

    async fn open_tunnel(
        &self,
        upstream: &Upstream,
        path: &Arc<TunnelPath>,
        deadline: Instant,
    ) -> Result<TunnelStream, AttemptError> {
        let Self { worker, origin, identified, .. } = *self;
        // Only a pod whose device is known can have an identity: nobody else sends with its address.
        let Some(identity) = &identified.decision.identity else {
            return Err(AttemptError::NoIdentity("the client's device on this node is not known yet".into()));
        };
        let credentials = worker.credentials(identity, deadline).await?;
        let decision = &identified.decision;
        let route = TunnelRoute {
            credentials,
            source: upstream.source.preserved(),
            path: Arc::clone(path),
            client: origin.client,
            service: decision.service.as_ref().map(|service| Arc::clone(&service.id.hostname)),
            baggage: decision.source.as_deref().map(baggage),
            trace_parent: None,
        };
        let outcome = worker.tunnels.open(&route, deadline).await;
        if let Err(TunnelError { cause: TunnelFailure::Connect(error), .. }) = &outcome {
            worker.observer.incident(Incident::ConnectFailure(ConnectFailure::from(&**error)));
        }
        Ok(outcome?)
    }
}

/// What one attempt came to.
struct Opened {
    stream: ServerStream,
    peer: Option<Arc<Identity>>,
    active: Option<ActiveConnection>,
    permit: Option<Permit>,
    guard: Option<Guard>,
}
