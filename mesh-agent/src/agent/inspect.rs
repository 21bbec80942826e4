//! What the admin API shows of the parts that do not know it.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::admin::api::{
    Attachment, Check, ConfigOrigin, ConfigStatus, IdentityReport, KubeletInfo, PodState, ProgramInfo,
    RejectedResource, RootInfo, SteeringReport,
};
use crate::admin::{
    BoxFuture, ConfigInspector, EnrolmentInspector, IdentityInspector, KernelAnswer, NodeInspector,
    SteeringInspector,
};
use crate::config::client::{ConfigState, Origin};
use crate::enrolment::PodStatuses;
use crate::identity::Identities;
use crate::kubelet::{Kubelet, KubeletState};
use crate::kubernetes::{self, Cluster};
use crate::steering::host::namespace::DEVICES;
use crate::steering::host::{HostSettings, installed, kernel};
use crate::steering::{AttachMode, Explanation, RunTimeStatistics, Steering, SteeringSettings};
use crate::telemetry::Direction;

/// The kernel's side.
pub(super) struct Kernel {
    steering: Steering,
    pins: PathBuf,
    kubelet: KubeletState,
    /// Listeners that connections are sent to.
    listening: Arc<AtomicUsize>,
    /// Run times are measured for as long as this is there.
    statistics: Mutex<Option<RunTimeStatistics>>,
}

impl Kernel {
    pub(super) fn new(
        steering: Steering,
        settings: &SteeringSettings,
        kubelet: KubeletState,
        listening: Arc<AtomicUsize>,
    ) -> Self {
        let pins = settings.directory.clone();
        Self { steering, pins, kubelet, listening, statistics: Mutex::default() }
    }
}

impl SteeringInspector for Kernel {
    fn is_attached(&self) -> bool {
        let attached = |to_agent: bool| {
            let all = self.steering.attachments();
            all.iter().filter(|one| one.to_agent == to_agent && one.error.is_none()).count()
        };
        attached(false) > 0 && attached(true) == DEVICES && self.listening.load(Ordering::Relaxed) > 0
    }

    fn report(&self) -> Result<SteeringReport, String> {
        let said = |error: crate::steering::SteeringError| error.to_string();
        let programs = self.steering.programs().map_err(said)?;
        Ok(SteeringReport {
            pin_path: self.pins.display().to_string(),
            programs: programs
                .into_iter()
                .map(|program| ProgramInfo {
                    name: program.name.to_owned(),
                    id: program.id,
                    kind: program.kind.to_owned(),
                    tag: program.tag,
                    memory_bytes: program.memory,
                    verified_instructions: program.verified_instructions,
                    run_count: program.run_count,
                    run_nanoseconds: program.run_time_ns,
                    loaded_seconds: program
                        .loaded_at
                        .map(|moment| moment.elapsed().unwrap_or_default().as_secs()),
                })
                .collect(),
            attachments: self
                .steering
                .attachments()
                .into_iter()
                .map(|attachment| Attachment {
                    device: attachment.device,
                    index: attachment.index,
                    hook: hook(attachment.mode).to_owned(),
                    bridge: attachment.bridge,
                    guarded: attachment.guarded,
                    pod: attachment.pod,
                    error: attachment.error,
                })
                .collect(),
            listeners: self.listening.load(Ordering::Relaxed),
            kubelet: match &*self.kubelet.current() {
                Kubelet::Unknown => KubeletInfo::Unknown,
                Kubelet::Gone => KubeletInfo::Gone,
                Kubelet::In(groups) => {
                    KubeletInfo::Found(groups.iter().map(|group| group.display().to_string()).collect())
                }
            },
            counters: self.counters().into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
            maps: BTreeMap::new(),
            stats_enabled: self.statistics.lock().unwrap_or_else(PoisonError::into_inner).is_some(),
        })
    }

    fn map_entries(&self) -> Result<BTreeMap<String, usize>, String> {
        let entries = self.steering.map_entries().map_err(|error| error.to_string())?;
        Ok(entries.into_iter().map(|(name, entries)| (name.to_owned(), entries)).collect())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let counts = self.steering.counters().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the counters");
            Vec::new()
        });
        counts.into_iter().map(|count| (count.outcome, count.packets)).collect()
    }

    fn knows_kubelet(&self) -> bool {
        *self.kubelet.current() != Kubelet::Unknown
    }

    fn explain(&self, source: IpAddr, destination: SocketAddr) -> KernelAnswer {
        match self.steering.explain(source, destination) {
            Explanation::Passed { outcome } => KernelAnswer::Pass(outcome),
            Explanation::Dropped { outcome } => KernelAnswer::Drop(outcome),
            Explanation::Captured { outbound, fail_closed } => KernelAnswer::Capture {
                direction: if outbound { Direction::Outbound } else { Direction::Inbound },
                fail_closed,
            },
            Explanation::TurnedAround { fail_closed } => KernelAnswer::TurnAround { fail_closed },
        }
    }

    fn measure_run_times(&self, enabled: bool) -> Result<(), String> {
        let statistics =
            enabled.then(RunTimeStatistics::enable).transpose().map_err(|error| error.to_string())?;
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner) = statistics;
        Ok(())
    }
}

fn hook(mode: AttachMode) -> &'static str {
    match mode {
        AttachMode::Auto | AttachMode::Tcx => "tcx",
        AttachMode::Clsact => "clsact",
    }
}

/// The control server's side.
pub(super) struct Config {
    state: watch::Receiver<ConfigState>,
    servers: Vec<String>,
}

impl Config {
    pub(super) fn new(state: watch::Receiver<ConfigState>, servers: Vec<String>) -> Self {
        Self { state, servers }
    }
}

impl ConfigInspector for Config {
    fn status(&self) -> ConfigStatus {
        let state = self.state.borrow().clone();
        let client = state.client().unwrap_or_default();
        let rejected = client.types.values().flat_map(|status| &status.rejected);
        ConfigStatus {
            origin: match state.origin {
                Origin::Nothing => ConfigOrigin::None,
                Origin::LastGood => ConfigOrigin::Cache,
                Origin::Server => ConfigOrigin::Server,
            },
            servers: self.servers.clone(),
            connected: client.server.clone().filter(|_| client.connected),
            identifier: client.identifier.clone().filter(|_| client.connected),
            since_seconds: (client.since != 0).then(|| seconds_since(client.since)),
            last_change_seconds: client.last_response_at.map(seconds_since),
            error: client
                .last_error
                .filter(|_| !client.connected)
                .map(|failure| format!("{}: {}", failure.server, failure.message)),
            rejected: rejected
                .map(|(name, reason)| RejectedResource { name: name.clone(), reason: reason.clone() })
                .collect(),
            cache_error: state.cache_problem,
        }
    }
}

/// Seconds since a moment in milliseconds since 1970.
fn seconds_since(milliseconds: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs().saturating_sub(milliseconds / 1000)
}

/// The pods' certificates.
pub(super) struct Certificates {
    identities: Identities,
}

impl Certificates {
    pub(super) fn new(identities: Identities) -> Self {
        Self { identities }
    }
}

impl IdentityInspector for Certificates {
    fn report(&self) -> IdentityReport {
        let roots = self.identities.trust().roots();
        let mut roots: Vec<_> = roots.iter().filter_map(root).collect();
        roots.sort_by_key(|root| root.expires);
        let summary = self.identities.summary();
        let failures = summary.failures.into_iter();
        IdentityReport {
            identities: self.identities.list(),
            roots,
            issued: summary.issued,
            failures: failures.map(|(reason, count)| (reason.label().to_owned(), count)).collect(),
        }
    }
}

fn root(certificate: &CertificateDer<'_>) -> Option<RootInfo> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(RootInfo {
        subject: parsed.subject().to_string(),
        serial: format!("{:x}", parsed.serial),
        expires: u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default(),
    })
}

/// The node.
pub(super) struct Node {
    settings: HostSettings,
    bpffs: PathBuf,
    cluster: Option<Cluster>,
}

impl Node {
    pub(super) fn new(settings: HostSettings, bpffs: PathBuf, cluster: Option<Cluster>) -> Self {
        Self { settings, bpffs, cluster }
    }
}

impl NodeInspector for Node {
    fn check(&self) -> BoxFuture<'_, Vec<Check>> {
        Box::pin(async {
            let mut checks = kernel::check(&self.settings, &self.bpffs).await;
            checks.extend(installed::check(&self.settings).await);
            let mut checks: Vec<_> = checks.into_iter().map(Check::from).collect();
            if let Some(cluster) = &self.cluster {
                checks.extend(kubernetes::checks::check(cluster).await);
            }
            checks
        })
    }
}

/// Pods on their way into the mesh.
pub(super) struct Pods {
    statuses: watch::Receiver<PodStatuses>,
}

impl Pods {
    pub(super) fn new(statuses: watch::Receiver<PodStatuses>) -> Self {
        Self { statuses }
    }
}

impl EnrolmentInspector for Pods {
    fn progress(&self) -> HashMap<Arc<str>, (PodState, String)> {
        let statuses = Arc::clone(&self.statuses.borrow());
        let unsettled = statuses.iter().filter_map(|(uid, status)| {
            let (state, detail) = match &status.error {
                Some(error) if status.pod.enrolled && status.steered_since.is_none() => {
                    (PodState::Failed, error.clone())
                }
                Some(error) if status.pod.enrolled => (PodState::Enrolled, error.clone()),
                Some(error) => (PodState::Outside, error.clone()),
                None if status.pod.enrolled && status.steered_since.is_none() => {
                    (PodState::Pending, "the kernel does not know it yet".to_owned())
                }
                None => return None,
            };
            Some((Arc::clone(uid), (state, detail)))
        });
        unsettled.collect()
    }
}
