//! Keeps every identity of the node certified.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mesh_xds::identity::Identity;
use mesh_xds::transport::{AddressError, Transport};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::authority::{Authority, AuthorityClient, AuthorityError};
use super::clock::Clock;
use super::files::TrustFiles;
use super::identities::{Identities, Report, Slot, Slots, timestamp};
use super::request::{Certified, KeyError, SigningRequest, WrongAnswer};
use super::schedule::{Next, Outcome, Schedule, Ticket};
use super::summary::FailureReason;
use super::trust::{RootSource, Trust};
use super::wanted::Wanted;

#[cfg(test)]
mod tests;

/// The clock is looked at this often at least: it may be set while the manager sleeps.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);

/// How an agent certifies its identities.
#[derive(Debug, Clone)]
pub struct IdentitySettings {
    /// Servers of the authority, `http://host:port` or `https://host:port`; tried in turn.
    pub servers: Vec<String>,
    /// How they are reached.
    pub transport: Transport,
    /// Trust domain of the node's pods.
    pub trust_domain: Arc<str>,
    /// Other trust domains whose clients are let in.
    pub trust_domain_aliases: Vec<Arc<str>>,
    /// PEM file with roots, besides those that the authority names.
    pub root_file: Option<PathBuf>,
    /// PEM file with revocation lists.
    pub crl_file: Option<PathBuf>,
    /// Lifetime that certificates are asked for with. A day by default.
    pub lifetime: Duration,
    /// Requests under way at the same time. 8 by default.
    pub concurrency: usize,
    /// Bounds of the random delay before a request is repeated. 250 ms and 30 s by default.
    pub backoff: (Duration, Duration),
    /// Time for the authority's answer. 10 s by default.
    pub answer_timeout: Duration,
    /// Time between two looks at the files. 2 s by default.
    pub reload_interval: Duration,
}

impl IdentitySettings {
    /// Settings with default times and limits, without files.
    pub fn new(servers: Vec<String>, transport: Transport, trust_domain: Arc<str>) -> Self {
        Self {
            servers,
            transport,
            trust_domain,
            trust_domain_aliases: Vec::new(),
            root_file: None,
            crl_file: None,
            lifetime: Duration::from_secs(24 * 60 * 60),
            concurrency: 8,
            backoff: (Duration::from_millis(250), Duration::from_secs(30)),
            answer_timeout: Duration::from_secs(10),
            reload_interval: Duration::from_secs(2),
        }
    }
}

/// Has the authority certify the identities that are wanted, and renews them. It is the only writer of
/// [`Identities`].
pub struct IdentityManager<A = AuthorityClient> {
    certifying: Certifying<A>,
    files: TrustFiles,
    reload_interval: Duration,
    wanted: watch::Receiver<Wanted>,
}

impl IdentityManager {
    /// A manager that does nothing yet, and what it is going to keep up to date.
    ///
    /// # Errors
    /// When the servers cannot be used as they are given.
    pub fn new(
        settings: &IdentitySettings,
        wanted: watch::Receiver<Wanted>,
        clock: Arc<dyn Clock>,
    ) -> Result<(Identities, Self), AddressError> {
        let IdentitySettings { servers, transport, lifetime, answer_timeout, .. } = settings;
        let authority = AuthorityClient::new(servers, transport.clone(), *lifetime, *answer_timeout)?;
        Ok(Self::with_authority(settings, authority, wanted, clock))
    }
}

impl<A: Authority> IdentityManager<A> {
    /// The same with an authority of the caller's.
    pub fn with_authority(
        settings: &IdentitySettings,
        authority: A,
        mut wanted: watch::Receiver<Wanted>,
        clock: Arc<dyn Clock>,
    ) -> (Identities, Self) {
        let domains = [&settings.trust_domain].into_iter().chain(&settings.trust_domain_aliases);
        let trust = Trust::new(domains.cloned(), Arc::clone(&clock));
        let files =
            TrustFiles::new(settings.root_file.clone(), settings.crl_file.clone(), Arc::clone(&trust));
        let identities = Identities::new(trust);
        let mut certifying = Certifying {
            authority: Arc::new(authority),
            identities: identities.clone(),
            schedule: Schedule::new(settings.concurrency, settings.backoff, fastrand::Rng::new()),
            clock,
        };
        let first = wanted.borrow_and_update().clone();
        certifying.set_wanted(&first);
        (identities, Self { certifying, files, reload_interval: settings.reload_interval, wanted })
    }

    /// Keeps the identities certified until `stop` resolves, or nobody says any more which are wanted.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = self.certifying.follow(self.wanted) => {}
            () = self.files.follow(self.reload_interval) => {}
            () = stop => {}
        }
    }
}

/// The manager's work apart from files.
struct Certifying<A> {
    authority: Arc<A>,
    identities: Identities,
    schedule: Schedule,
    clock: Arc<dyn Clock>,
}

/// One request and its end.
struct Ended {
    identity: Arc<Identity>,
    ticket: Ticket,
    result: Result<Certified, RequestError>,
}

#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Answer(#[from] WrongAnswer),
}

impl<A: Authority> Certifying<A> {
    async fn follow(mut self, mut wanted: watch::Receiver<Wanted>) {
        let mut requests = FuturesUnordered::new();
        loop {
            let wake = loop {
                match self.schedule.next(self.clock.now(), requests.len()) {
                    Next::Ask(identity, ticket) => requests.push(self.ask(identity, ticket)),
                    Next::Wait(until) => break until,
                }
            };
            tokio::select! {
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = wanted.borrow_and_update().clone();
                    self.set_wanted(&now);
                }
                Some(ended) = requests.next() => self.take(ended),
                () = self.sleep_until(wake) => {}
            }
        }
    }

    async fn sleep_until(&self, wake: Option<SystemTime>) {
        let left = wake.map(|wake| wake.duration_since(self.clock.now()).unwrap_or_default());
        self.clock.sleep(left.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP)).await;
    }

    /// Gives new identities a place, and takes it from those that no pod has any more.
    fn set_wanted(&mut self, wanted: &Wanted) {
        let before = self.identities.slots();
        let mut slots = Slots::new();
        for (identity, pods) in &**wanted {
            let slot = before.get(identity).cloned().unwrap_or_default();
            slot.update_report(|report| report.pods = pods.as_slice().into());
            slots.insert(Arc::clone(identity), slot);
        }
        self.schedule.set(wanted.keys(), self.clock.now());
        self.identities.publish(slots);
        for identity in before.keys().filter(|identity| !wanted.contains_key(*identity)) {
            debug!(%identity, "no longer needed");
            self.set_roots(RootSource::Authority(Arc::clone(identity)), Vec::new());
        }
    }

    /// Makes a key and has it certified.
    fn ask(&self, identity: Arc<Identity>, ticket: Ticket) -> impl Future<Output = Ended> + use<A> {
        if let Ok(slot) = self.identities.slot(&identity) {
            slot.update_report(|report| report.next_request = None);
        }
        let (authority, trust) = (Arc::clone(&self.authority), Arc::clone(self.identities.trust()));
        async move {
            let result = certify(&*authority, &identity, &trust).await;
            Ended { identity, ticket, result }
        }
    }

    fn take(&mut self, ended: Ended) {
        let Ended { identity, ticket, result } = ended;
        let outcome = match &result {
            Ok(Certified { credentials, .. }) => Outcome::Certified(credentials.expires()),
            Err(RequestError::Authority(error)) if !error.is_about_identity() => Outcome::Unreachable,
            Err(_) => Outcome::Refused,
        };
        match &result {
            Ok(_) => self.identities.counters().issued(),
            Err(error) => self.identities.counters().failed(error.reason()),
        }
        let Some(next_request) = self.schedule.ended(&identity, ticket, outcome, self.clock.now()) else {
            return;
        };
        let Ok(slot) = self.identities.slot(&identity) else { return };
        match result {
            Ok(certified) => self.put_in_place(&identity, &slot, certified),
            Err(error) => {
                warn!(%identity, %error, "no certificate; asking again later");
                slot.update_report(|report| {
                    report.failures = report.failures.saturating_add(1);
                    report.last_error = Some(error.to_string().into());
                });
            }
        }
        slot.update_report(|report| report.next_request = Some(next_request));
    }

    fn put_in_place(&self, identity: &Arc<Identity>, slot: &Slot, certified: Certified) {
        let Certified { credentials, roots } = certified;
        let facts = credentials.facts();
        let expires = timestamp(facts.not_after);
        info!(%identity, serial = facts.serial, issuer = facts.issuer, %expires, "certified");
        // Peers under a new root may come as soon as we have a certificate of it: the roots go first.
        self.set_roots(RootSource::Authority(Arc::clone(identity)), roots.clone());
        self.set_roots(RootSource::Latest, roots);
        slot.update_report(|report| *report = Report { pods: Arc::clone(&report.pods), ..Report::default() });
        slot.set_credentials(Arc::new(credentials));
    }

    fn set_roots(&self, source: RootSource, roots: Vec<CertificateDer<'static>>) {
        if let Err(error) = self.identities.trust().set_roots(source, roots) {
            warn!(%error, "the authority's roots cannot be used");
        }
    }
}

async fn certify<A: Authority>(
    authority: &A,
    identity: &Arc<Identity>,
    trust: &Arc<Trust>,
) -> Result<Certified, RequestError> {
    let request = SigningRequest::new(Arc::clone(identity))?;
    let answer = authority.sign(identity, request.csr()).await?;
    Ok(request.accept(&answer, trust)?)
}

impl RequestError {
    fn reason(&self) -> FailureReason {
        match self {
            Self::Key(_) => FailureReason::NoKey,
            Self::Authority(error) if error.is_about_identity() => FailureReason::Refused,
            Self::Authority(_) => FailureReason::Unreachable,
            Self::Answer(_) => FailureReason::WrongAnswer,
        }
    }
}
