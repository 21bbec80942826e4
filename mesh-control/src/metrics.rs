//! What the control server counts, for Prometheus.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use mesh_xds::server::{ClientStatus, Observer, SentResponse};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::authority::{AuthorityMetrics, unix};
use crate::model::findings::Severity;
use crate::source::Report;
use crate::source::kubernetes::WatchMetrics;

/// Changes whose way to the agents is being timed. Older ones are forgotten: an agent that is so far behind has
/// other troubles.
const TIMED_CHANGES: usize = 1024;

/// A label for the kind of a resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByKind {
    kind: String,
}

/// Labels of what became of an object of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    kind: &'static str,
    outcome: &'static str,
}

/// The metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    inputs: Family<ByKind, Gauge>,
    outputs: Family<ByKind, Gauge>,
    problems: Family<ByKind, Gauge>,
    agents: Gauge,
    changes: Counter,
    translation: Histogram,
    pushes: Counter,
    pushed_resources: Counter,
    push_bytes: Counter,
    nacks: Counter,
    change_to_push: Histogram,
    /// Version of the store after each of the last changes, and when the source learned of it.
    timed: Mutex<VecDeque<(u64, Instant)>>,
    last_read: Gauge<f64, AtomicU64>,
    pub(crate) authority: AuthorityMetrics,
    leader: Gauge,
    verdicts: Family<ByOutcome, Counter>,
    webhook_expiry: Gauge<f64, AtomicU64>,
    webhook_registered: Gauge,
    statuses: Family<ByOutcome, Counter>,
    pub(crate) watches: WatchMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        // 100 us to 26 s.
        let translation = Histogram::new(exponential_buckets(0.000_1, 4.0, 10));
        // 1 ms to 16 s.
        let change_to_push = Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let mut metrics = Self {
            registry: Registry::with_prefix("mesh_control"),
            inputs: Family::default(),
            outputs: Family::default(),
            problems: Family::default(),
            agents: Gauge::default(),
            changes: Counter::default(),
            translation,
            pushes: Counter::default(),
            pushed_resources: Counter::default(),
            push_bytes: Counter::default(),
            nacks: Counter::default(),
            change_to_push,
            timed: Mutex::default(),
            last_read: Gauge::default(),
            authority: AuthorityMetrics::default(),
            leader: Gauge::default(),
            verdicts: Family::default(),
            webhook_expiry: Gauge::default(),
            webhook_registered: Gauge::default(),
            statuses: Family::default(),
            watches: WatchMetrics::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("resources", "Resources read, by kind", self.inputs.clone());
        registry.register("served_resources", "Resources served to agents, by kind", self.outputs.clone());
        registry.register(
            "problems",
            "Refused resources and warnings in the source now",
            self.problems.clone(),
        );
        registry.register("connected_agents", "Agents connected now", self.agents.clone());
        registry.register("changes", "Changes of resources read", self.changes.clone());
        registry.register_with_unit(
            "translate",
            "Time to translate changes that were read together",
            Unit::Seconds,
            self.translation.clone(),
        );
        registry.register("pushes", "Responses sent to agents", self.pushes.clone());
        registry.register("pushed_resources", "Resources sent to agents", self.pushed_resources.clone());
        registry.register_with_unit(
            "push",
            "Bytes of resources sent to agents",
            Unit::Bytes,
            self.push_bytes.clone(),
        );
        registry.register("nacks", "Responses that agents refused, at least in part", self.nacks.clone());
        registry.register_with_unit(
            "change_to_push",
            "Time from the notice of a change to its sending, per agent",
            Unit::Seconds,
            self.change_to_push.clone(),
        );
        registry.register_with_unit(
            "last_change_timestamp",
            "When the source was last seen to change, since 1970",
            Unit::Seconds,
            self.last_read.clone(),
        );
        registry.register(
            "leader",
            "1 on the one of several servers that writes to the Kubernetes API",
            self.leader.clone(),
        );
        registry.register(
            "admission_verdicts",
            "Objects that the API server asked about, by kind and whether they were allowed, denied, or as bad as before \
             and tolerated",
            self.verdicts.clone(),
        );
        registry.register_with_unit(
            "admission_certificate_expiry_timestamp",
            "When the certificate of the webhook expires, since 1970; 0 without one",
            Unit::Seconds,
            self.webhook_expiry.clone(),
        );
        registry.register(
            "admission_registered",
            "1 on the leader if the API server verifies the webhook by the roots of now",
            self.webhook_registered.clone(),
        );
        registry.register(
            "status_writes",
            "Statuses of policies and entries written, by kind and outcome",
            self.statuses.clone(),
        );
        self.authority.register(registry);
        self.watches.register(registry);
    }

    /// The text that Prometheus reads.
    pub fn encode(&self, clients: &[ClientStatus]) -> Result<String, std::fmt::Error> {
        self.agents.set(count(clients.len()));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    pub(crate) fn translated(&self, changes: usize, took: Duration) {
        self.changes.inc_by(changes as u64);
        self.translation.observe(took.as_secs_f64());
    }

    /// The store is about to have a new version that agents are to be sent.
    pub(crate) fn published(&self, version: u64, noticed: Instant) {
        let mut timed = self.timed.lock().unwrap_or_else(PoisonError::into_inner);
        if timed.len() == TIMED_CHANGES {
            timed.pop_front();
        }
        timed.push_back((version, noticed));
    }

    pub(crate) fn reported(&self, report: &Report) {
        for (kind, severity) in [("refused", Severity::Refused), ("warning", Severity::Warning)] {
            self.problems.get_or_create(&by_kind(kind)).set(count(report.count(severity)));
        }
        let now = SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        self.last_read.set(now.as_secs_f64());
    }

    pub(crate) fn set_leading(&self, leading: bool) {
        self.leader.set(leading.into());
    }

    /// An object was judged for the API server.
    pub(crate) fn judged(&self, kind: &'static str, outcome: &'static str) {
        self.verdicts.get_or_create(&ByOutcome { kind, outcome }).inc();
    }

    pub(crate) fn set_webhook_expiry(&self, at: Option<SystemTime>) {
        #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 stay far below 2^53")]
        self.webhook_expiry.set(at.map_or(0.0, |at| unix(at) as f64));
    }

    pub(crate) fn set_registered(&self, registered: bool) {
        self.webhook_registered.set(registered.into());
    }

    /// The status of an object was written, or was to be.
    pub(crate) fn status_written(&self, kind: &'static str, outcome: &'static str) {
        self.statuses.get_or_create(&ByOutcome { kind, outcome }).inc();
    }

    pub(crate) fn set_input(&self, kind: &str, number: usize) {
        self.inputs.get_or_create(&by_kind(kind)).set(count(number));
    }

    pub(crate) fn set_output(&self, kind: &str, number: usize) {
        self.outputs.get_or_create(&by_kind(kind)).set(count(number));
    }
}

impl Observer for Metrics {
    fn sent(&self, response: &SentResponse<'_>) {
        self.pushes.inc();
        self.pushed_resources.inc_by(response.resources as u64);
        self.push_bytes.inc_by(response.bytes as u64);
        // What a new client is sent first happened long ago.
        if response.after == 0 {
            return;
        }
        let timed = self.timed.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = timed.iter().find(|(version, _)| *version > response.after && *version <= response.upto);
        if let Some((_, noticed)) = oldest {
            self.change_to_push.observe(noticed.elapsed().as_secs_f64());
        }
    }

    fn refused(&self, _type_url: &str) {
        self.nacks.inc();
    }
}

fn by_kind(kind: &str) -> ByKind {
    ByKind { kind: kind.to_owned() }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
