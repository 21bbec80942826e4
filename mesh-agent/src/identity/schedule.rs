//! Whose certificate is asked for next, and when. No clock and no sockets: the caller brings the time.
//!
//! First certificates, and those to replace an expired one, come before renewals; among renewals the one that
//! expires first does. A failed request is repeated after a delay of its own that grows, so that one identity that
//! the authority refuses does not keep the others waiting. When the authority itself seems to be away, all requests
//! pause, and then one at a time finds out whether it is back: each identity in turn, so that all of them come to tell
//! why they are not certified.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_xds::backoff::Backoff;
use mesh_xds::identity::Identity;

#[cfg(test)]
mod tests;

/// Part of a certificate's remaining life after which it is renewed: half, less a random part, so that agents that
/// were started together do not renew together.
const RENEW_AFTER: std::ops::Range<f64> = 0.4..0.5;

pub(super) struct Schedule {
    jobs: BTreeMap<Arc<Identity>, Job>,
    concurrency: usize,
    backoff: (Duration, Duration),
    /// Of the authority as a whole; none while it works.
    trouble: Option<Trouble>,
    random: fastrand::Rng,
    tickets: u64,
}

struct Job {
    /// When to ask.
    at: SystemTime,
    /// End of the certificate at hand.
    expires: Option<SystemTime>,
    backoff: Backoff,
    /// The request under way.
    ticket: Option<Ticket>,
}

struct Trouble {
    until: SystemTime,
    backoff: Backoff,
}

/// A request that was started. One whose identity was dropped meanwhile is no longer valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Ask(Arc<Identity>, Ticket),
    /// Nothing before this time, unless a request ends or the set of identities changes.
    Wait(Option<SystemTime>),
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With a certificate that ends then.
    Certified(SystemTime),
    /// The authority works, but not for this identity.
    Refused,
    /// The authority does not work.
    Unreachable,
}

impl Schedule {
    pub(super) fn new(concurrency: usize, backoff: (Duration, Duration), random: fastrand::Rng) -> Self {
        Self { jobs: BTreeMap::new(), concurrency, backoff, trouble: None, random, tickets: 0 }
    }

    /// Replaces the set of identities; new ones are asked for at once.
    pub(super) fn set<'a>(&mut self, wanted: impl Iterator<Item = &'a Arc<Identity>>, now: SystemTime) {
        let mut old = std::mem::take(&mut self.jobs);
        self.jobs = wanted
            .map(|identity| {
                let job = old.remove(identity).unwrap_or_else(|| Job {
                    at: now,
                    expires: None,
                    backoff: Backoff::new(self.backoff, self.random.fork()),
                    ticket: None,
                });
                (Arc::clone(identity), job)
            })
            .collect();
    }

    /// Starts the most urgent request that may be started now. A node has a few hundred identities: looking at all is
    /// cheaper than an index that has to be kept right.
    pub(super) fn next(&mut self, now: SystemTime, under_way: usize) -> Next {
        let limit = if self.trouble.is_some() { 1 } else { self.concurrency };
        if under_way >= limit {
            return Next::Wait(None);
        }
        let idle = || self.jobs.iter().filter(|(_, job)| job.ticket.is_none());
        let Some(soonest) = idle().map(|(_, job)| job.at).min() else { return Next::Wait(None) };
        let resume = self.trouble.as_ref().map_or(soonest, |trouble| trouble.until.max(soonest));
        if resume > now {
            return Next::Wait(Some(resume));
        }
        let due = idle().filter(|(_, job)| job.at <= now);
        let first = if self.trouble.is_some() {
            due.min_by_key(|(_, job)| job.at)
        } else {
            due.min_by_key(|(_, job)| job.urgency(now))
        };
        let Some(identity) = first.map(|(identity, _)| Arc::clone(identity)) else { return Next::Wait(None) };
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        if let Some(job) = self.jobs.get_mut(&identity) {
            job.ticket = Some(ticket);
        }
        Next::Ask(identity, ticket)
    }

    /// Takes in how a request ended and says when the identity is asked for again; `None` if it is no longer wanted.
    pub(super) fn ended(
        &mut self,
        identity: &Identity,
        ticket: Ticket,
        outcome: Outcome,
        now: SystemTime,
    ) -> Option<SystemTime> {
        self.note_health(outcome, now);
        let job = self.jobs.get_mut(identity).filter(|job| job.ticket == Some(ticket))?;
        job.ticket = None;
        job.at = match outcome {
            Outcome::Certified(expires) => {
                job.backoff.reset();
                job.expires = Some(expires);
                let left = expires.duration_since(now).unwrap_or_default();
                let part = RENEW_AFTER.start + self.random.f64() * (RENEW_AFTER.end - RENEW_AFTER.start);
                now + left.mul_f64(part)
            }
            Outcome::Refused | Outcome::Unreachable => now + job.backoff.delay(),
        };
        Some(job.at)
    }

    fn note_health(&mut self, outcome: Outcome, now: SystemTime) {
        match (outcome, &mut self.trouble) {
            (Outcome::Certified(_) | Outcome::Refused, trouble) => *trouble = None,
            // Requests that were under way when the trouble began fail with it; they say nothing new.
            (Outcome::Unreachable, Some(trouble)) if trouble.until > now => {}
            (Outcome::Unreachable, Some(trouble)) => trouble.until = now + trouble.backoff.delay(),
            (Outcome::Unreachable, trouble) => {
                let mut backoff = Backoff::new(self.backoff, self.random.fork());
                *trouble = Some(Trouble { until: now + backoff.delay(), backoff });
            }
        }
    }
}

impl Job {
    /// The smallest is asked for first: without a good certificate, those that wait longest; then by expiry.
    fn urgency(&self, now: SystemTime) -> (Reverse<bool>, SystemTime) {
        match self.expires.filter(|expires| *expires > now) {
            None => (Reverse(true), self.at),
            Some(expires) => (Reverse(false), expires),
        }
    }
}
