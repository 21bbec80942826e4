//! One of several servers writes to the Kubernetes API: the one that holds a Lease. All of them serve.
//!
//! ```text
//! candidate ──nobody holds it, or its holder has not renewed it for its whole duration──▶ leader
//! leader ──taken by another, or not renewed for RENEW_DEADLINE: what it wrote with is dropped──▶ candidate
//! ```
//!
//! No two clocks are compared: a candidate measures with its own how long the lease has not changed, beginning when it
//! saw the change, which is after the holder made it. The holder stops before that time is over, measured from before
//! it asked. So there is no moment with two leaders, but for a write that is on its way when the time is over.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::metrics::Metrics;
use crate::model::ObjectName;

/// Others may take the lease when they have seen no change of it for so long.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// The leader gives up when it could not renew the lease for so long.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Time between attempts to renew it, and at least between attempts to get it.
const RETRY: Duration = Duration::from_secs(2);
/// Time to give the lease back when the server stops.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP status of what the service account may not do.
const FORBIDDEN: u16 = 403;

/// Who leads, as far as this server knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LeaderStatus {
    /// The lease, as `namespace/name`.
    pub lease: String,
    /// The name of this server in it.
    pub identity: String,
    /// Whether this server leads.
    pub leading: bool,
    /// Who holds the lease; empty if nobody does.
    pub holder: String,
    /// Why the lease cannot be read or written now.
    pub problem: Option<String>,
}

/// A candidate.
#[derive(Debug)]
pub(crate) struct Election {
    leases: Api<Lease>,
    name: ObjectName,
    identity: String,
    seen: Option<Seen>,
    status: watch::Sender<LeaderStatus>,
    metrics: Arc<Metrics>,
}

/// The lease as it was seen to be, and since when.
#[derive(Debug)]
struct Seen {
    lease: Lease,
    since: Instant,
}

/// What came of an attempt to hold the lease.
#[derive(Debug, PartialEq, Eq)]
enum Attempt {
    Held,
    HeldBy(String),
}

/// Why a leader leads no more.
#[derive(Debug)]
enum Loss {
    Taken,
    NotRenewed,
}

impl Election {
    /// A candidate under the name `identity`, which no other server may have.
    pub(crate) fn new(client: Client, name: ObjectName, identity: String, metrics: Arc<Metrics>) -> Self {
        let status =
            LeaderStatus { lease: name.to_string(), identity: identity.clone(), ..LeaderStatus::default() };
        Self {
            leases: Api::namespaced(client, &name.namespace),
            name,
            identity,
            seen: None,
            status: watch::Sender::new(status),
            metrics,
        }
    }

    /// Who leads, now and later.
    pub(crate) fn status(&self) -> watch::Receiver<LeaderStatus> {
        self.status.subscribe()
    }

    /// Runs what `lead` makes whenever this server leads, and drops it when it does not any more, until `stop`.
    pub(crate) async fn run<F: Future<Output = ()>>(mut self, stop: CancellationToken, lead: impl Fn() -> F) {
        loop {
            let Some(acquired) = stop.run_until_cancelled(self.acquire()).await else { return };
            info!(lease = %self.name, identity = self.identity, "this server leads: it writes to the API");
            self.set_leading(true);
            let loss = tokio::select! {
                biased;
                () = stop.cancelled() => None,
                loss = self.keep(acquired) => Some(loss),
                // Whoever has nothing left to write leads on, so that nobody else begins again.
                () = async { lead().await; std::future::pending().await } => None,
            };
            self.set_leading(false);
            match loss {
                Some(Loss::Taken) => warn!(lease = %self.name, "another server leads now"),
                Some(Loss::NotRenewed) => {
                    warn!(lease = %self.name, "the lease could not be renewed for {RENEW_DEADLINE:?}: this server does not lead any more");
                }
                None => return self.release().await,
            }
        }
    }

    /// Tries until the lease is held, and returns a time before which nobody else takes it up to count.
    async fn acquire(&mut self) -> Instant {
        loop {
            let began = Instant::now();
            if self.try_once().await == Some(Attempt::Held) {
                return began;
            }
            // Not all at the same moment.
            sleep(RETRY.mul_f64(1.0 + fastrand::f64())).await;
        }
    }

    /// Renews the lease until that does not succeed any more.
    async fn keep(&mut self, mut renewed: Instant) -> Loss {
        loop {
            match timeout_at(renewed + RENEW_DEADLINE, self.renew()).await {
                Ok(Some(at)) => renewed = at,
                Ok(None) => return Loss::Taken,
                Err(_) => return Loss::NotRenewed,
            }
        }
    }

    /// Tries until the lease is renewed; `None` if it is somebody else's.
    async fn renew(&mut self) -> Option<Instant> {
        loop {
            sleep(RETRY).await;
            let began = Instant::now();
            match self.try_once().await {
                Some(Attempt::Held) => return Some(began),
                Some(Attempt::HeldBy(_)) => return None,
                None => {}
            }
        }
    }

    /// An attempt; `None` if it failed, which may be different the next time.
    async fn try_once(&mut self) -> Option<Attempt> {
        let attempt = timeout(RENEW_DEADLINE, self.attempt()).await;
        let attempt = attempt
            .map_err(|_| format!("the API did not answer within {RENEW_DEADLINE:?}"))
            .and_then(|attempt| attempt.map_err(|error| self.explain(&error)));
        let problem = attempt.as_ref().err().cloned();
        let holder = match &attempt {
            Ok(Attempt::Held) => Some(self.identity.clone()),
            Ok(Attempt::HeldBy(holder)) => Some(holder.clone()),
            Err(_) => None,
        };
        self.status.send_if_modified(|status| {
            let before = status.clone();
            if problem.is_some() && status.problem != problem {
                warn!(lease = status.lease, problem, "who leads cannot be settled");
            }
            status.problem = problem;
            status.holder = holder.unwrap_or_else(|| std::mem::take(&mut status.holder));
            *status != before
        });
        attempt.ok()
    }

    async fn attempt(&mut self) -> Result<Attempt, kube::Error> {
        let parameters = PostParams::default();
        let Some(mut lease) = self.leases.get_opt(&self.name.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.name.name.to_string()), ..ObjectMeta::default() },
                spec: Some(self.claim(None)),
            };
            let created = self.leases.create(&parameters, &lease).await?;
            self.see(created);
            return Ok(Attempt::Held);
        };
        self.see(lease.clone());
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
        if !holder.is_empty() && holder != self.identity && !self.expired() {
            return Ok(Attempt::HeldBy(holder));
        }
        lease.spec = Some(self.claim(lease.spec.take()));
        // Carries the version that was read: of several that try, one succeeds.
        let replaced = self.leases.replace(&self.name.name, &parameters, &lease).await?;
        self.see(replaced);
        Ok(Attempt::Held)
    }

    /// The lease held by this server from now on, or still.
    fn claim(&self, before: Option<LeaseSpec>) -> LeaseSpec {
        let before = before.unwrap_or_default();
        let now = now();
        let held = before.holder_identity.as_ref() == Some(&self.identity);
        let transitions = before.lease_transitions.unwrap_or(0);
        let first = before.holder_identity.is_none();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: before.acquire_time.filter(|_| held).or_else(|| now.clone()),
            renew_time: now,
            lease_transitions: Some(if held || first { transitions } else { transitions.saturating_add(1) }),
            ..before
        }
    }

    fn see(&mut self, lease: Lease) {
        // Labels may change without the holder being alive.
        match &mut self.seen {
            Some(seen) if seen.lease.spec == lease.spec => seen.lease = lease,
            seen => *seen = Some(Seen { lease, since: Instant::now() }),
        }
    }

    fn expired(&self) -> bool {
        let Some(seen) = &self.seen else { return false };
        let duration = seen.lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        let duration = duration.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
        seen.since.elapsed() > duration.unwrap_or(LEASE_DURATION)
    }

    /// Lets others lead at once.
    async fn release(&mut self) {
        let Some(Seen { mut lease, .. }) = self.seen.take() else { return };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.renew_time = now();
        }
        let parameters = PostParams::default();
        match timeout(RELEASE_TIMEOUT, self.leases.replace(&self.name.name, &parameters, &lease)).await {
            Ok(Ok(_)) => info!(lease = %self.name, "the lease is given back"),
            Ok(Err(error)) => debug!(lease = %self.name, %error, "the lease was not given back"),
            Err(_) => debug!(lease = %self.name, "the lease was not given back in time"),
        }
    }

    fn set_leading(&self, leading: bool) {
        self.metrics.set_leading(leading);
        self.status.send_modify(|status| status.leading = leading);
    }

    fn explain(&self, error: &kube::Error) -> String {
        match error {
            kube::Error::Api(status) if status.code == FORBIDDEN => format!(
                "{}: allow the service account of mesh-control to get and update the lease {}, and to create it if it is not there",
                status.message, self.name
            ),
            error => error.to_string(),
        }
    }
}

/// For people and other programs to read; nothing is decided by it.
fn now() -> Option<MicroTime> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let micros = i64::try_from(since.as_micros()).ok()?;
    jiff::Timestamp::from_microsecond(micros).ok().map(MicroTime)
}

#[cfg(test)]
mod tests;
