//! What is counted of the watches, by kind.

use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::model::Kind;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: &'static str,
}

/// The metrics.
#[derive(Debug, Default, Clone)]
pub(crate) struct WatchMetrics {
    up: Family<ByKind, Gauge>,
    last_contact: Family<ByKind, Gauge<f64, AtomicU64>>,
    lists: Family<ByKind, Counter>,
    failures: Family<ByKind, Counter>,
}

impl WatchMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("watch");
        registry.register(
            "up",
            "Whether changes of the kind are followed in the Kubernetes API; 1 too where the API does not have the kind",
            self.up.clone(),
        );
        registry.register_with_unit(
            "last_contact_timestamp",
            "When the Kubernetes API last said anything about the kind, since 1970",
            Unit::Seconds,
            self.last_contact.clone(),
        );
        registry.register("lists", "Times all objects of the kind were listed", self.lists.clone());
        registry.register("failures", "Requests about the kind that failed", self.failures.clone());
    }

    pub(super) fn set_up(&self, kind: Kind, up: bool) {
        self.up.get_or_create(&of(kind)).set(up.into());
    }

    pub(super) fn contact(&self, kind: Kind) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_contact.get_or_create(&of(kind)).set(now.as_secs_f64());
    }

    pub(super) fn lists(&self, kind: Kind) {
        self.lists.get_or_create(&of(kind)).inc();
    }

    pub(super) fn failures(&self, kind: Kind) {
        self.failures.get_or_create(&of(kind)).inc();
    }
}

fn of(kind: Kind) -> ByKind {
    ByKind { kind: kind.name() }
}
