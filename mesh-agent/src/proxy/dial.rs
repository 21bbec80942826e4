//! Opens the connection to an upstream, trying other endpoints of a service when one does not answer.
//!
//! Only connecting is tried again, never anything after it: no byte of the client was passed on yet, so nothing can
//! happen twice.

use std::io;
use std::time::Instant;

use fastrand::Rng;
use thiserror::Error;
use tokio::time::timeout;

use super::balance::{self, Tried};
use super::connection::{Accepted, Identified};
use super::decision::{Target, Upstream};
use super::limits::{LimitReached, Permit};
use super::socket::{self, Stream};
use super::worker::Worker;
use crate::config::{ActiveConnection, Endpoint, ServiceEntry};
use crate::telemetry::{ConnectFailure, ConnectionEnd, Incident, ResponseFlag};

/// An open connection to an upstream.
pub(super) struct Dialled {
    pub(super) stream: Stream,
    pub(super) upstream: Upstream,
    pub(super) attempts: u32,
    /// Counts it as load of the endpoint.
    pub(super) active: Option<ActiveConnection>,
    /// One of the connections of the pod it leads to, where this agent answers for that.
    pub(super) permit: Option<Permit>,
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
    #[error("{0}{advice}", advice = advice(.0))]
    Connect(#[from] io::Error),
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
        let flag = match cause {
            AttemptError::Limit(_) => ResponseFlag::Overflow,
            AttemptError::Connect(error) if ConnectFailure::from(error) == ConnectFailure::Exhausted => {
                ResponseFlag::Overflow
            }
            AttemptError::Connect(_) => ResponseFlag::UpstreamConnectionFailure,
        };
        let tried = if error.attempts > 1 { format!(", attempt {}", error.attempts) } else { String::new() };
        Self { flag, detail: Some(format!("{}{tried}: {cause}", upstream.address)) }
    }
}

/// Connects to where the decision leads.
pub(super) async fn dial(
    worker: &Worker,
    accepted: &Accepted,
    identified: &Identified,
    target: &Target,
) -> Result<Dialled, DialError> {
    let deadline = Instant::now() + worker.settings.connect_timeout;
    match target {
        Target::Single(upstream) => attempt(worker, upstream.clone(), deadline, 1)
            .await
            .map_err(|last| DialError { attempts: 1, last: Some(last) }),
        Target::Service { entry, .. } | Target::Waypoint { entry, .. } => {
            dial_service(worker, accepted, identified, entry, deadline).await
        }
    }
}

async fn dial_service(
    worker: &Worker,
    accepted: &Accepted,
    identified: &Identified,
    entry: &ServiceEntry,
    deadline: Instant,
) -> Result<Dialled, DialError> {
    let settings = &worker.settings;
    let max_attempts = u32::try_from(settings.max_attempts).unwrap_or(u32::MAX);
    let upstream_of = |endpoint: &Endpoint| identified.endpoint_upstream(accepted, endpoint);
    // What this client's kernel sends there straight is not sent there by the agent as well
    let left = identified.left_to_kernel(worker, accepted);
    let reserved = |endpoint: &Endpoint| {
        !left.is_empty() && upstream_of(endpoint).is_ok_and(|upstream| left.contains(&upstream.address))
    };
    let mut rng = Rng::new();
    let mut tried = Tried::default();
    let mut failed = DialError { attempts: 0, last: None };
    while failed.attempts < max_attempts && Instant::now() < deadline {
        // Choose
        let usable = |endpoint: &Endpoint| identified.is_usable(accepted, endpoint);
        let Some((position, endpoint)) =
            balance::choose(entry, &tried, Instant::now(), &mut rng, usable, reserved)
        else {
            break;
        };
        let Ok(upstream) = upstream_of(endpoint) else {
            break;
        };
        tried.add(position);
        failed.attempts += 1;

        // Connect; the last attempt may use all the time that is left
        let is_last = failed.attempts == max_attempts || entry.endpoints.len() == 1;
        let attempt_deadline =
            if is_last { deadline } else { deadline.min(Instant::now() + settings.attempt_timeout) };
        let (upstream, error) = match attempt(worker, upstream, attempt_deadline, failed.attempts).await {
            Ok(dialled) => return Ok(dialled),
            Err(failure) => failure,
        };

        // Learn
        let failure = match &error {
            AttemptError::Connect(error) => Some(ConnectFailure::from(error)),
            AttemptError::Limit(_) => None,
        };
        failed.last = Some((upstream, error));
        match failure {
            // The endpoint is full, or the client has no port left towards it: another may do.
            None | Some(ConnectFailure::AddressInUse) => {}
            // No other would do.
            Some(ConnectFailure::Exhausted) => break,
            Some(
                ConnectFailure::Refused
                | ConnectFailure::Unreachable
                | ConnectFailure::TimedOut
                | ConnectFailure::Other,
            ) => balance::note_failure(entry, endpoint, Instant::now()),
        }
    }
    Err(failed)
}

async fn attempt(
    worker: &Worker,
    upstream: Upstream,
    deadline: Instant,
    attempts: u32,
) -> Result<Dialled, (Upstream, AttemptError)> {
    // Authorize, as the server's side, where the connection will not be steered through it
    let permit = match &upstream.server_side {
        Some(pod) => match worker.limits.admit_pod(&pod.uid) {
            Ok(permit) => Some(permit),
            Err(limit) => return Err((upstream, limit.into())),
        },
        None => None,
    };
    // Counted from here on: a burst of connections must see those of it that are still connecting.
    let active = upstream.load.as_ref().map(|load| load.enter());
    let connecting = socket::connect(upstream.address, upstream.source.preserved(), &worker.settings);
    let remaining = deadline.saturating_duration_since(Instant::now());
    let outcome =
        timeout(remaining, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match outcome {
        Ok(tcp) => {
            if let Some(load) = &upstream.load {
                load.succeeded();
            }
            Ok(Dialled { stream: Stream::new(tcp), upstream, attempts, active, permit })
        }
        Err(error) => {
            worker.observer.incident(Incident::ConnectFailure(ConnectFailure::from(&error)));
            Err((upstream, error.into()))
        }
    }
}
