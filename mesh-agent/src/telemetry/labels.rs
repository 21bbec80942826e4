//! Istio's standard labels of TCP metrics
//! (<https://istio.io/latest/docs/reference/config/metrics/#labels>), so that its dashboards work unchanged.

use std::fmt::{self, Write};
use std::sync::Arc;

use prometheus_client::encoding::{
    EncodeLabel, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder,
};

use mesh_xds::identity::Identity;

use super::record::{ConnectionRecord, ConnectionSecurity, Peer, Reporter, ResponseFlag, Transport};
use crate::config::Workload;

/// What a label says where nothing is known.
const UNKNOWN: &str = "unknown";

/// What every label says in the series that takes the connections for which there was no room.
const OVERFLOW: &str = "overflow";

/// `destination_service_name` of connections that leave the mesh, as Istio's sidecars have it.
const PASSTHROUGH: &str = "PassthroughCluster";

/// Everything that tells one set of counters from another, the response flag excepted: no more than is written, or two of
/// them would be written alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TrafficLabels {
    reporter: Reporter,
    /// It leaves the mesh.
    passthrough: bool,
    security: ConnectionSecurity,
    source: Party,
    destination: Party,
    service: Option<ServiceLabels>,
}

/// One end of the connection, as far as metrics are concerned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Party {
    /// Who has that address, where the mesh knows.
    workload: Option<WorkloadLabels>,
    /// Who it has proved to be. Never taken from the workload: an address proves nothing.
    principal: Option<Arc<Identity>>,
}

/// A workload (a Deployment, say), not a single pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct WorkloadLabels {
    name: Arc<str>,
    namespace: Arc<str>,
    canonical_service: Arc<str>,
    canonical_revision: Arc<str>,
    cluster: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ServiceLabels {
    host: Arc<str>,
    name: Arc<str>,
    namespace: Arc<str>,
}

impl TrafficLabels {
    /// The labels of a connection.
    pub(super) fn of(record: &ConnectionRecord) -> Self {
        let reporter = record.direction.reporter();
        let is_known = record.destination.as_ref().is_some_and(|peer| peer.workload.is_some());
        let passthrough = match record.transport {
            Transport::Passthrough => true,
            Transport::Kernel => reporter == Reporter::Source && !is_known,
            Transport::Plain | Transport::Hbone => false,
        };
        Self {
            reporter,
            passthrough,
            security: record.security,
            source: Party::of(&record.source),
            destination: record.destination.as_ref().map(Party::of).unwrap_or_default(),
            service: record.service.as_ref().map(|service| ServiceLabels {
                host: Arc::clone(&service.id.hostname),
                name: Arc::clone(&service.name),
                namespace: Arc::clone(&service.id.namespace),
            }),
        }
    }

    /// `connection_security_policy`: without a tunnel of its own the client's side cannot tell, says Istio.
    fn security_policy(&self) -> &'static str {
        match (self.reporter, self.security) {
            (Reporter::Source, ConnectionSecurity::None) => UNKNOWN,
            (_, security) => security.as_str(),
        }
    }
}

impl Party {
    fn of(peer: &Peer) -> Self {
        Self { workload: peer.workload.as_deref().map(WorkloadLabels::of), principal: peer.identity.clone() }
    }
}

impl WorkloadLabels {
    fn of(workload: &Workload) -> Self {
        Self {
            name: Arc::clone(&workload.workload_name),
            namespace: Arc::clone(&workload.namespace),
            canonical_service: Arc::clone(&workload.canonical_name),
            canonical_revision: Arc::clone(&workload.canonical_revision),
            cluster: Arc::clone(&workload.cluster),
        }
    }
}

/// A SPIFFE identity, written without an allocation.
struct Principal<'a>(&'a Identity);

impl EncodeLabelValue for Principal<'_> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        write!(encoder, "{}", self.0)
    }
}

/// The label names of one end.
struct PartyKeys {
    workload: &'static str,
    namespace: &'static str,
    principal: &'static str,
    app: &'static str,
    version: &'static str,
    cluster: &'static str,
    canonical_service: &'static str,
    canonical_revision: &'static str,
}

const SOURCE: PartyKeys = PartyKeys {
    workload: "source_workload",
    namespace: "source_workload_namespace",
    principal: "source_principal",
    app: "source_app",
    version: "source_version",
    cluster: "source_cluster",
    canonical_service: "source_canonical_service",
    canonical_revision: "source_canonical_revision",
};

const DESTINATION: PartyKeys = PartyKeys {
    workload: "destination_workload",
    namespace: "destination_workload_namespace",
    principal: "destination_principal",
    app: "destination_app",
    version: "destination_version",
    cluster: "destination_cluster",
    canonical_service: "destination_canonical_service",
    canonical_revision: "destination_canonical_revision",
};

/// The labels of one line of `/metrics`.
#[derive(Debug)]
pub(super) struct SeriesLabels<'a> {
    /// The series; `None` is the one that takes the overflow.
    pub(super) labels: Option<&'a TrafficLabels>,
    /// How the connections counted in the line ended.
    pub(super) flag: ResponseFlag,
}

impl EncodeLabelSet for SeriesLabels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let labels = self.labels;
        let mut writer = Writer { encoder, overflow: labels.is_none() };
        let reporter = match labels.map(|labels| labels.reporter) {
            Some(Reporter::Source) => "source",
            Some(Reporter::Destination) => "destination",
            None => OVERFLOW,
        };
        writer.label("reporter", reporter)?;
        writer.party(&SOURCE, labels.map(|labels| &labels.source))?;
        writer.party(&DESTINATION, labels.map(|labels| &labels.destination))?;
        match labels.map(|labels| (&labels.service, labels.passthrough)) {
            Some((Some(service), _)) => writer.service(&service.host, &service.name, &service.namespace)?,
            Some((None, true)) => writer.service(UNKNOWN, PASSTHROUGH, UNKNOWN)?,
            Some((None, false)) | None => writer.service(UNKNOWN, UNKNOWN, UNKNOWN)?,
        }
        writer.label("request_protocol", "tcp")?;
        let policy = labels.map_or(UNKNOWN, TrafficLabels::security_policy);
        writer.label("connection_security_policy", policy)?;
        // How connections end is told of the overflow too: there are only so many ways.
        ("response_flags", self.flag.as_str()).encode(writer.encoder.encode_label())
    }
}

struct Writer<'a, 'b> {
    encoder: &'a mut LabelSetEncoder<'b>,
    overflow: bool,
}

impl Writer<'_, '_> {
    fn label(&mut self, key: &'static str, value: &str) -> fmt::Result {
        let value = match value {
            _ if self.overflow => OVERFLOW,
            "" => UNKNOWN,
            value => value,
        };
        (key, value).encode(self.encoder.encode_label())
    }

    fn party(&mut self, keys: &PartyKeys, party: Option<&Party>) -> fmt::Result {
        let workload = party.and_then(|party| party.workload.as_ref());
        let text = |part: fn(&WorkloadLabels) -> &Arc<str>| workload.map_or(UNKNOWN, |known| part(known));
        self.label(keys.workload, text(|known| &known.name))?;
        self.label(keys.canonical_service, text(|known| &known.canonical_service))?;
        self.label(keys.canonical_revision, text(|known| &known.canonical_revision))?;
        self.label(keys.namespace, text(|known| &known.namespace))?;
        match party.and_then(|party| party.principal.as_deref()) {
            Some(principal) => (keys.principal, Principal(principal)).encode(self.encoder.encode_label())?,
            None => self.label(keys.principal, UNKNOWN)?,
        }
        self.label(keys.app, text(|known| &known.canonical_service))?;
        self.label(keys.version, text(|known| &known.canonical_revision))?;
        self.label(keys.cluster, text(|known| &known.cluster))
    }

    fn service(&mut self, host: &str, name: &str, namespace: &str) -> fmt::Result {
        self.label("destination_service", host)?;
        self.label("destination_service_name", name)?;
        self.label("destination_service_namespace", namespace)
    }
}
