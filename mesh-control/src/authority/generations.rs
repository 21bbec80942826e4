//! The self-generated authority as it is kept: its roots, one generation after another.
//!
//! ```text
//! time ──────────▶     announced        signs                 alone
//! old root   ... signs │ signs          │ trusted             │ gone
//! new root             │ trusted        │ signs               │ signs
//!                      │◀── overlap ───▶│◀───── overlap ─────▶│
//! ```
//!
//! A new root is handed out before anything is signed below it, for so long that every agent has asked for a
//! certificate in between and so knows it. An old root stays until what was signed below it has expired. Each step
//! is noted with its time, so that a server that was away, or another one on the same state, goes on where it was.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::certificates::{self, KeyedCertificate, Validity};
use super::clock::{from_unix, unix};
use super::pem::PemCertificate;
use super::signer::Material;

/// The form of the state. A state of another form is left alone.
const FORMAT: u32 = 1;

/// How long things last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Longest life of a leaf.
    pub leaf: Duration,
    /// Life of an issuer that was generated here.
    pub issuer: Duration,
    /// Life of a root that was generated here.
    pub root: Duration,
    /// A root is replaced when this much of its life is left.
    pub renew_root: Duration,
    /// Time a new root is known before it signs, and an old one after it has.
    pub overlap: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self { leaf: DAY, issuer: DAY * 90, root: DAY * 3650, renew_root: DAY * 365, overlap: DAY * 2 }
    }
}

/// All generations that count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Generations {
    format: u32,
    trust_domain: String,
    /// Whether somebody wants a new root.
    #[serde(default)]
    rotation_wanted: bool,
    /// Oldest first; at least one, and only the last may be one that does not sign yet.
    generations: Vec<Generation>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Generation {
    pub(super) root: KeyedCertificate,
    pub(super) issuer: KeyedCertificate,
    /// Since when the root is handed out.
    pub(super) announced: i64,
    /// Since when it signs.
    pub(super) signs: Option<i64>,
}

/// Where a rotation of the root is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// There is one root.
    Steady,
    /// The next root is handed out, and does not sign yet.
    Announced,
    /// The next root signs; the former is still trusted.
    Retiring,
}

impl Phase {
    /// Its name in metrics and status.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Announced => "announced",
            Self::Retiring => "retiring",
        }
    }
}

/// What is wrong with a kept state, or cannot be done with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum StateError {
    #[error(
        "is damaged ({0}): restore it, or remove it to begin with a new root that agents have to be given"
    )]
    Damaged(String),
    #[error("has format {0}, this program reads {FORMAT}: use the program that wrote it")]
    Format(u32),
    #[error("is of trust domain {kept:?}, not {wanted:?}: set --trust-domain, or begin with a new authority")]
    TrustDomain { kept: String, wanted: String },
    #[error("does not exist: start mesh-control on it first")]
    Missing,
    #[error("is in the middle of a rotation: wait for its end, then ask for another")]
    Rotating,
    #[error("a certificate could not be made: {0}")]
    Making(String),
}

impl From<rcgen::Error> for StateError {
    fn from(error: rcgen::Error) -> Self {
        Self::Making(error.to_string())
    }
}

impl Generations {
    /// The first generation of an authority.
    pub(super) fn begin(
        trust_domain: &str,
        lifetimes: &Lifetimes,
        now: SystemTime,
    ) -> Result<Self, StateError> {
        let mut first = Generation::new(trust_domain, lifetimes, now)?;
        first.signs = Some(first.announced);
        Ok(Self {
            format: FORMAT,
            trust_domain: trust_domain.to_owned(),
            rotation_wanted: false,
            generations: vec![first],
        })
    }

    /// Reads what [`Self::write`] wrote.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, StateError> {
        let damaged = |error: &dyn std::fmt::Display| StateError::Damaged(error.to_string());
        let state: Self = serde_json::from_slice(bytes).map_err(|error| damaged(&error))?;
        if state.format != FORMAT {
            return Err(StateError::Format(state.format));
        }
        if state.generations.first().is_none_or(|first| first.signs.is_none()) {
            return Err(damaged(&"no generation signs"));
        }
        Ok(state)
    }

    pub(super) fn check_trust_domain(&self, wanted: &str) -> Result<(), StateError> {
        if self.trust_domain == wanted {
            return Ok(());
        }
        Err(StateError::TrustDomain { kept: self.trust_domain.clone(), wanted: wanted.to_owned() })
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Takes every step whose time has come; whether there was one.
    pub(super) fn advance(&mut self, lifetimes: &Lifetimes, now: SystemTime) -> Result<bool, StateError> {
        let before = self.clone();
        self.switch(lifetimes, now)?;
        self.retire(lifetimes, now);
        let old = now + lifetimes.renew_root >= self.signing()?.root_expiry()?;
        if self.phase() == Phase::Steady && (old || self.rotation_wanted) {
            self.generations.push(Generation::new(&self.trust_domain, lifetimes, now)?);
            self.rotation_wanted = false;
            // A root that has expired already signs nothing worth waiting for.
            self.switch(lifetimes, now)?;
        }
        self.renew_issuer(lifetimes, now)?;
        Ok(*self != before)
    }

    /// Notes that a new root is wanted, whatever the age of the one there is; whether that is news. The server that
    /// keeps the state begins with it, since it knows the times.
    pub(super) fn request_rotation(&mut self) -> Result<bool, StateError> {
        if self.phase() != Phase::Steady {
            return Err(StateError::Rotating);
        }
        Ok(!std::mem::replace(&mut self.rotation_wanted, true))
    }

    fn switch(&mut self, lifetimes: &Lifetimes, now: SystemTime) -> Result<(), StateError> {
        let expired = now >= self.signing()?.root_expiry()?;
        if let Some(next) = self.generations.last_mut()
            && next.signs.is_none()
            && (expired || now >= from_unix(next.announced) + lifetimes.overlap)
        {
            next.signs = Some(unix(now));
        }
        Ok(())
    }

    fn retire(&mut self, lifetimes: &Lifetimes, now: SystemTime) {
        let over = |signs: i64| now >= from_unix(signs) + lifetimes.overlap;
        if self.generations.last().and_then(|last| last.signs).is_some_and(over) {
            self.generations.drain(..self.generations.len() - 1);
        }
    }

    /// Verifiers are sent the issuer with every leaf, so a new one needs no overlap.
    fn renew_issuer(&mut self, lifetimes: &Lifetimes, now: SystemTime) -> Result<(), StateError> {
        let trust_domain = self.trust_domain.clone();
        let signing = self.signing_mut()?;
        let (root_expiry, expiry) = (signing.root_expiry()?, signing.issuer_expiry()?);
        // A third of its life, so that its leaves are not cut short; but none can outlive the root.
        let margin = (lifetimes.issuer / 3).max(lifetimes.leaf);
        if now + margin >= expiry && expiry < root_expiry {
            let validity = Validity::starting(now, lifetimes.issuer).within(root_expiry);
            signing.issuer = certificates::issuer(&trust_domain, &signing.root, validity)?;
        }
        Ok(())
    }

    pub(super) fn phase(&self) -> Phase {
        match self.generations.as_slice() {
            [] | [_] => Phase::Steady,
            [.., last] if last.signs.is_none() => Phase::Announced,
            _ => Phase::Retiring,
        }
    }

    /// When the rotation that is under way ends.
    pub(super) fn until(&self, lifetimes: &Lifetimes) -> Option<SystemTime> {
        let last = self.generations.last().filter(|_| self.phase() != Phase::Steady)?;
        Some(match last.signs {
            None => from_unix(last.announced) + lifetimes.overlap * 2,
            Some(signs) => from_unix(signs) + lifetimes.overlap,
        })
    }

    pub(super) fn rotation_wanted(&self) -> bool {
        self.rotation_wanted
    }

    /// The generations, oldest first.
    pub(super) fn list(&self) -> impl ExactSizeIterator<Item = &Generation> + DoubleEndedIterator {
        self.generations.iter()
    }

    /// What signs now, with all roots.
    pub(super) fn material(&self) -> Result<Material, StateError> {
        let signing = self.signing()?;
        Ok(Material {
            certificate: signing.issuer.certificate.clone(),
            key: signing.issuer.key.clone(),
            chain: String::new(),
            // The signing root first: some programs read only one.
            roots: std::iter::once(signing)
                .chain(self.generations.iter().rev().filter(|generation| *generation != signing))
                .map(|generation| generation.root.certificate.as_str())
                .collect(),
        })
    }

    fn signing(&self) -> Result<&Generation, StateError> {
        self.generations
            .iter()
            .rfind(|generation| generation.signs.is_some())
            .ok_or_else(|| StateError::Damaged("no generation signs".to_owned()))
    }

    fn signing_mut(&mut self) -> Result<&mut Generation, StateError> {
        self.generations
            .iter_mut()
            .rfind(|generation| generation.signs.is_some())
            .ok_or_else(|| StateError::Damaged("no generation signs".to_owned()))
    }
}

impl Generation {
    fn new(trust_domain: &str, lifetimes: &Lifetimes, now: SystemTime) -> Result<Self, StateError> {
        let root = certificates::root(trust_domain, Validity::starting(now, lifetimes.root))?;
        let validity = Validity::starting(now, lifetimes.issuer.min(lifetimes.root));
        let issuer = certificates::issuer(trust_domain, &root, validity)?;
        Ok(Self { root, issuer, announced: unix(now), signs: None })
    }

    fn root_expiry(&self) -> Result<SystemTime, StateError> {
        expiry(&self.root)
    }

    fn issuer_expiry(&self) -> Result<SystemTime, StateError> {
        expiry(&self.issuer)
    }
}

fn expiry(of: &KeyedCertificate) -> Result<SystemTime, StateError> {
    let certificates = PemCertificate::read_all(&of.certificate).map_err(StateError::Damaged)?;
    let first =
        certificates.first().ok_or_else(|| StateError::Damaged("a certificate is missing".to_owned()))?;
    Ok(first.not_after)
}

#[cfg(test)]
mod tests;
