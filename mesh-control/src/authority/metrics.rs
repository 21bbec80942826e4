//! What the authority counts.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::clock::unix;
use super::generations::Phase;
use super::signer::Signer;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPhase {
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySource {
    source: &'static str,
}

/// The metrics.
#[derive(Debug)]
pub(crate) struct AuthorityMetrics {
    issued: Counter,
    refused: Family<ByReason, Counter>,
    duration: Histogram,
    root_expiry: Gauge<f64, AtomicU64>,
    issuer_expiry: Gauge<f64, AtomicU64>,
    roots: Gauge,
    phase: Family<ByPhase, Gauge>,
    tokens: Gauge,
    problems: Family<BySource, Gauge>,
}

impl Default for AuthorityMetrics {
    fn default() -> Self {
        Self {
            issued: Counter::default(),
            refused: Family::default(),
            // 100 us to 1.6 s.
            duration: Histogram::new(exponential_buckets(0.000_1, 4.0, 8)),
            root_expiry: Gauge::default(),
            issuer_expiry: Gauge::default(),
            roots: Gauge::default(),
            phase: Family::default(),
            tokens: Gauge::default(),
            problems: Family::default(),
        }
    }
}

impl AuthorityMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("authority");
        registry.register("certificates", "Certificates issued to agents", self.issued.clone());
        registry.register("refusals", "Requests for certificates refused, by reason", self.refused.clone());
        registry.register_with_unit(
            "request",
            "Time to answer a request for a certificate with one",
            Unit::Seconds,
            self.duration.clone(),
        );
        registry.register_with_unit(
            "root_expiry_timestamp",
            "When the first of the trusted roots expires, since 1970; 0 without one",
            Unit::Seconds,
            self.root_expiry.clone(),
        );
        registry.register_with_unit(
            "issuer_expiry_timestamp",
            "When the signing certificate expires, since 1970; 0 without one",
            Unit::Seconds,
            self.issuer_expiry.clone(),
        );
        registry.register("roots", "Roots that agents are told to trust", self.roots.clone());
        registry.register(
            "rotation_phase",
            "1 for the phase that the rotation of a generated root is in",
            self.phase.clone(),
        );
        registry.register("agent_tokens", "Tokens in the file of agents' tokens", self.tokens.clone());
        registry.register(
            "problems",
            "1 if keys and certificates, or agents' tokens, cannot be read; the last good ones are used",
            self.problems.clone(),
        );
    }

    pub(super) fn issued(&self, took: Duration) {
        self.issued.inc();
        self.duration.observe(took.as_secs_f64());
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ByReason { reason }).inc();
    }

    pub(super) fn set_signer(&self, signer: &Signer, phase: Option<Phase>) {
        #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 stay far below 2^53")]
        let seconds = |time| unix(time) as f64;
        let first = signer.roots().iter().map(|root| root.not_after).min();
        self.root_expiry.set(first.map_or(0.0, seconds));
        self.issuer_expiry.set(seconds(signer.certificate().not_after));
        self.roots.set(i64::try_from(signer.roots().len()).unwrap_or(i64::MAX));
        let Some(current) = phase else { return };
        for phase in [Phase::Steady, Phase::Announced, Phase::Retiring] {
            let now = i64::from(phase == current);
            self.phase.get_or_create(&ByPhase { phase: phase.name() }).set(now);
        }
    }

    pub(super) fn set_tokens(&self, number: usize) {
        self.tokens.set(i64::try_from(number).unwrap_or(i64::MAX));
    }

    pub(super) fn set_problem(&self, source: &'static str, exists: bool) {
        self.problems.get_or_create(&BySource { source }).set(i64::from(exists));
    }
}
