//! What the data plane and operators see: the credentials of the moment, and how each identity is doing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};
use mesh_xds::identity::Identity;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::credentials::Credentials;
use super::summary::{Counters, IdentitySummary};
use super::trust::Trust;

/// The identities of this node's pods. Clones are the same; reading takes no lock.
#[derive(Clone)]
pub struct Identities {
    slots: Arc<ArcSwap<Slots>>,
    trust: Arc<Trust>,
    counters: Arc<Counters>,
}

pub(super) type Slots = BTreeMap<Arc<Identity>, Arc<Slot>>;

/// The place of one identity, kept over renewals.
#[derive(Default)]
pub(super) struct Slot {
    credentials: ArcSwapOption<Credentials>,
    report: ArcSwap<Report>,
    /// Tells those who wait for the first credentials, and that there will be none.
    changed: watch::Sender<()>,
}

/// How the work on an identity goes.
#[derive(Debug, Clone, Default)]
pub(super) struct Report {
    /// Uids of the pods that have it.
    pub(super) pods: Arc<[Arc<str>]>,
    /// Requests since the last certificate.
    pub(super) failures: u32,
    pub(super) last_error: Option<Arc<str>>,
    /// When the authority is asked the next time.
    pub(super) next_request: Option<SystemTime>,
}

/// Why there are no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoCredentials {
    /// No pod that is enrolled here has it.
    #[error("{0} is not the identity of a pod of this node")]
    NotWanted(Identity),
    /// The authority has not given any yet.
    #[error("{identity} has no certificate yet{}", because(.last_error.as_deref()))]
    Pending {
        /// Who it is for.
        identity: Identity,
        /// What the authority said last.
        last_error: Option<Arc<str>>,
    },
    /// They were not renewed in time.
    #[error("the certificate of {identity} expired at {}{}", timestamp(*.at), because(.last_error.as_deref()))]
    Expired {
        /// Who it is for.
        identity: Identity,
        /// When.
        at: SystemTime,
        /// What the authority said last.
        last_error: Option<Arc<str>>,
    },
}

/// One identity, for people and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityStatus {
    /// The SPIFFE identity.
    pub identity: String,
    /// Whether it can be used.
    pub state: IdentityState,
    /// Serial number of the certificate, hexadecimal.
    pub serial: Option<String>,
    /// Common name of the certificate's issuer.
    pub issuer: Option<String>,
    /// When the certificate begins, in seconds since 1970.
    pub not_before: Option<u64>,
    /// When it ends, in seconds since 1970.
    pub expires: Option<u64>,
    /// When the authority is asked the next time, in seconds since 1970; none while it is being asked.
    pub next_request: Option<u64>,
    /// Requests that failed since the last certificate.
    pub failures: u32,
    /// Why the last of them failed.
    pub last_error: Option<String>,
    /// Uids of the pods that have this identity.
    pub pods: Vec<String>,
}

/// Whether an identity can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityState {
    /// It waits for its first certificate.
    Pending,
    /// Its certificate is good.
    Valid,
    /// Its certificate is over.
    Expired,
}

impl Identities {
    /// Nobody's, yet.
    pub(super) fn new(trust: Arc<Trust>) -> Self {
        Self { slots: Arc::default(), trust, counters: Arc::default() }
    }

    /// Identities with credentials that nobody renews, for endpoints without an authority.
    pub fn fixed(trust: Arc<Trust>, credentials: impl IntoIterator<Item = Arc<Credentials>>) -> Self {
        let identities = Self::new(trust);
        let slot = |credentials: Arc<Credentials>| {
            let identity = Arc::clone(credentials.identity());
            let slot = Slot::default();
            slot.set_credentials(credentials);
            (identity, Arc::new(slot))
        };
        identities.publish(credentials.into_iter().map(slot).collect());
        identities
    }

    /// The credentials of a local pod's identity, if they are good now.
    ///
    /// # Errors
    /// When there are none, or they have expired.
    pub fn current(&self, identity: &Identity) -> Result<Arc<Credentials>, NoCredentials> {
        self.slot(identity)?.current(identity, self.trust.clock().now())
    }

    /// The same, but waits for the first credentials of an identity. How long is for the caller to bound.
    ///
    /// # Errors
    /// When no local pod has the identity (any longer), or its credentials have expired.
    pub async fn ready(&self, identity: &Identity) -> Result<Arc<Credentials>, NoCredentials> {
        loop {
            let slot = self.slot(identity)?;
            let mut changed = slot.changed.subscribe();
            match slot.current(identity, self.trust.clock().now()) {
                // It may have been dropped before the subscription, and then nothing would ever tell.
                Err(NoCredentials::Pending { .. }) if self.slot(identity).is_ok() => {}
                result => return result,
            }
            if changed.changed().await.is_err() {
                return Err(NoCredentials::NotWanted(identity.clone()));
            }
        }
    }

    /// How every identity is doing, in their order.
    pub fn list(&self) -> Vec<IdentityStatus> {
        let now = self.trust.clock().now();
        self.slots.load().iter().map(|(identity, slot)| slot.status(identity, now)).collect()
    }

    /// The same in numbers.
    pub fn summary(&self) -> IdentitySummary {
        let now = self.trust.clock().now();
        let mut summary = self.counters.summary();
        for slot in self.slots.load().values() {
            let expires = slot.credentials.load().as_ref().map(|credentials| credentials.expires());
            summary.count(state(expires, now), expires, now);
        }
        summary
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What peers are verified with.
    pub fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    pub(super) fn slot(&self, identity: &Identity) -> Result<Arc<Slot>, NoCredentials> {
        self.slots.load().get(identity).cloned().ok_or_else(|| NoCredentials::NotWanted(identity.clone()))
    }

    pub(super) fn slots(&self) -> Arc<Slots> {
        self.slots.load_full()
    }

    /// Replaces the set of identities; those who wait for one that is gone are told.
    pub(super) fn publish(&self, slots: Slots) {
        for slot in self.slots.swap(Arc::new(slots)).values() {
            slot.changed.send_replace(());
        }
    }
}

impl Slot {
    fn current(&self, identity: &Identity, now: SystemTime) -> Result<Arc<Credentials>, NoCredentials> {
        let last_error = || self.report.load().last_error.clone();
        match self.credentials.load_full() {
            None => Err(NoCredentials::Pending { identity: identity.clone(), last_error: last_error() }),
            Some(credentials) if credentials.expires() <= now => Err(NoCredentials::Expired {
                identity: identity.clone(),
                at: credentials.expires(),
                last_error: last_error(),
            }),
            Some(credentials) => Ok(credentials),
        }
    }

    pub(super) fn set_credentials(&self, credentials: Arc<Credentials>) {
        self.credentials.store(Some(credentials));
        self.changed.send_replace(());
    }

    /// There is one writer, the manager.
    pub(super) fn update_report(&self, update: impl FnOnce(&mut Report)) {
        let mut report = Report::clone(&self.report.load());
        update(&mut report);
        self.report.store(Arc::new(report));
    }

    fn status(&self, identity: &Identity, now: SystemTime) -> IdentityStatus {
        let credentials = self.credentials.load();
        let facts = credentials.as_ref().map(|credentials| credentials.facts());
        let report = self.report.load();
        IdentityStatus {
            identity: identity.to_string(),
            state: state(facts.map(|facts| facts.not_after), now),
            serial: facts.map(|facts| facts.serial.clone()),
            issuer: facts.map(|facts| facts.issuer.clone()),
            not_before: facts.map(|facts| unix_seconds(facts.not_before)),
            expires: facts.map(|facts| unix_seconds(facts.not_after)),
            next_request: report.next_request.map(unix_seconds),
            failures: report.failures,
            last_error: report.last_error.as_deref().map(str::to_owned),
            pods: report.pods.iter().map(ToString::to_string).collect(),
        }
    }
}

fn state(expires: Option<SystemTime>, now: SystemTime) -> IdentityState {
    match expires {
        None => IdentityState::Pending,
        Some(expires) if expires <= now => IdentityState::Expired,
        Some(_) => IdentityState::Valid,
    }
}

fn because(last_error: Option<&str>) -> String {
    last_error.map_or_else(String::new, |error| format!(" ({error})"))
}

pub(super) fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "an unknown time".to_owned(), |time| time.to_string())
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
