//! The agent's state in the words of the API.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::api::{
    ConfigOrigin, ConnectionCounts, ConnectionInfo, EndpointInfo, Health, MeshCounts, PeerInfo, PodCounts,
    PodInfo, PodState, ServiceInfo, ServicePortInfo, Status, Version, WorkloadInfo,
};
use super::state::AdminState;
use crate::config::{
    BalanceMode, HealthPolicy, LoadBalancing, Locality, NetworkAddress, ServiceEntry, Snapshot,
    TunnelProtocol, Workload,
};
use crate::pods::{CidrSelection, FailureMode, LocalPod, PortSelection, Redirection};
use crate::telemetry::{ConnectionRecord, Direction, Peer};

impl AdminState {
    /// Whether the agent does its work, and what is missing where it does not.
    pub fn health(&self) -> Health {
        let mut missing = Vec::new();
        if !self.steering.is_attached() {
            missing.push("steering: the kernel programs are not attached".into());
        }
        let config = self.config.status();
        if config.origin == ConfigOrigin::None {
            let why = config.error.unwrap_or_else(|| "no control server has answered yet".into());
            missing.push(format!("configuration: none received and none on disk ({why})"));
        }
        Health { ready: missing.is_empty(), missing }
    }

    pub(super) fn version() -> Version {
        Version { version: env!("CARGO_PKG_VERSION").into(), kernel_abi: mesh_common::ABI_VERSION }
    }

    pub(super) fn status(&self) -> Status {
        let mesh = self.mesh.load();
        Status {
            version: Self::version(),
            node: self.facts.node.clone(),
            pid: std::process::id(),
            uptime_seconds: self.facts.uptime().as_secs(),
            workers: self.facts.workers,
            health: self.health(),
            config: self.config.status(),
            mesh: MeshCounts {
                revision: mesh.revision(),
                workloads: mesh.workload_count(),
                services: mesh.service_count(),
            },
            pods: self.pod_counts(),
            connections: ConnectionCounts {
                outbound: self.telemetry.open(Direction::Outbound),
                inbound: self.telemetry.open(Direction::Inbound),
            },
            attached_devices: self.steering.report().map_or(0, |report| {
                report.attachments.iter().filter(|attachment| attachment.error.is_none()).count()
            }),
            memory_bytes: crate::telemetry::resident_memory().unwrap_or_default(),
            log_filter: self.log.current(),
        }
    }

    pub(super) fn pod_counts(&self) -> PodCounts {
        let pods = self.pods.load();
        let enrolled = || pods.iter().filter(|pod| pod.enrolled);
        PodCounts {
            known: pods.len(),
            enrolled: enrolled().count(),
            without_device: enrolled().filter(|pod| pod.device.is_none()).count(),
        }
    }

    pub(super) fn pod_infos(&self) -> Vec<PodInfo> {
        let progress = self.enrolment.progress();
        let mut open: HashMap<std::net::IpAddr, (usize, usize)> = HashMap::new();
        for record in self.telemetry.connections() {
            match (record.direction, &record.destination) {
                (Direction::Outbound, _) => open.entry(record.source.address.ip()).or_default().0 += 1,
                (Direction::Inbound, Some(pod)) => open.entry(pod.address.ip()).or_default().1 += 1,
                (Direction::Inbound, None) => {}
            }
        }
        let pods = self.pods.load();
        let mut infos: Vec<_> = pods
            .iter()
            .map(|pod| {
                let mut info = pod_info(pod);
                info.balanced_at_connect =
                    self.connect_time.pod(&pod.uid) == Some(crate::connect_time::PodBalancing::Balanced);
                if let Some((state, detail)) = progress.get(&pod.uid) {
                    info.state = *state;
                    info.detail = Some(detail.clone());
                }
                for (outbound, inbound) in pod.addresses.iter().filter_map(|address| open.get(address)) {
                    info.outbound += outbound;
                    info.inbound += inbound;
                }
                info
            })
            .collect();
        infos.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        infos
    }

    pub(super) fn workload_infos(&self, namespace: Option<&str>) -> Vec<WorkloadInfo> {
        let mesh = self.mesh.load();
        let selected = |workload: &&Arc<Workload>| namespace.is_none_or(|name| *workload.namespace == *name);
        let mut infos: Vec<_> =
            mesh.workloads().filter(selected).map(|workload| workload_info(&mesh, workload)).collect();
        infos.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        infos
    }

    pub(super) fn service_infos(&self, namespace: Option<&str>) -> Vec<ServiceInfo> {
        let mesh = self.mesh.load();
        let selected =
            |entry: &&Arc<ServiceEntry>| namespace.is_none_or(|name| *entry.service.id.namespace == *name);
        mesh.services().filter(selected).map(|entry| service_info(entry)).collect()
    }

    pub(super) fn connection_infos(&self) -> Vec<ConnectionInfo> {
        self.telemetry.connections().iter().map(|record| connection_info(record)).collect()
    }
}

fn pod_info(pod: &LocalPod) -> PodInfo {
    PodInfo {
        uid: pod.uid.to_string(),
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        service_account: pod.service_account.to_string(),
        addresses: pod.addresses.iter().map(ToString::to_string).collect(),
        device: pod.device.as_ref().map(|device| device.name.clone()),
        device_index: pod.device.as_ref().map(|device| device.index),
        state: if pod.enrolled { PodState::Enrolled } else { PodState::Outside },
        failure_mode: failure_mode(pod.failure_mode).into(),
        exceptions: exceptions(&pod.redirection),
        ..PodInfo::default()
    }
}

fn failure_mode(mode: FailureMode) -> &'static str {
    match mode {
        FailureMode::Open => "open",
        FailureMode::Closed => "closed",
    }
}

/// What a pod's rules leave out, or bring back in.
fn exceptions(rules: &Redirection) -> Vec<String> {
    let mut words = Vec::new();
    let mut add = |what: &str, values: Vec<String>| {
        if !values.is_empty() {
            words.push(format!("{what} {}", values.join(",")));
        }
    };
    add("not to ports", text(&rules.exclude_outbound_ports));
    add("always to ports", text(&rules.include_outbound_ports));
    add("not to", text(&rules.exclude_outbound_cidrs));
    if let CidrSelection::Only(ranges) = &rules.include_outbound_cidrs {
        add("only to", if ranges.is_empty() { vec!["nothing".into()] } else { text(ranges) });
    }
    add("not on ports", text(&rules.exclude_inbound_ports));
    if let PortSelection::Only(ports) = &rules.include_inbound_ports {
        add("only on ports", if ports.is_empty() { vec!["none".into()] } else { text(ports) });
    }
    words
}

fn text<T: ToString>(values: impl IntoIterator<Item = T>) -> Vec<String> {
    values.into_iter().map(|value| value.to_string()).collect()
}

fn workload_info(mesh: &Snapshot, workload: &Workload) -> WorkloadInfo {
    let load = workload.load.get();
    WorkloadInfo {
        uid: workload.uid.to_string(),
        namespace: workload.namespace.to_string(),
        name: workload.name().to_owned(),
        workload: workload.workload_name.to_string(),
        identity: workload.identity().to_string(),
        addresses: text(workload.addresses.iter()),
        node: workload.node.to_string(),
        local: workload.node == mesh.node().name,
        host_network: workload.host_network,
        protocol: match workload.tunnel {
            TunnelProtocol::None => "tcp".into(),
            TunnelProtocol::Hbone => "hbone".into(),
            TunnelProtocol::NativeHbone => "native_hbone".into(),
        },
        healthy: workload.healthy,
        weight: workload.weight,
        locality: locality(&workload.locality),
        services: workload.services.iter().map(|(id, _)| id.to_string()).collect(),
        active: load.active(),
        failures: load.failures(),
        ejected: load.is_ejected(Instant::now()),
    }
}

fn locality(locality: &Locality) -> String {
    let parts = [&locality.region, &locality.zone, &locality.subzone];
    parts.map(|part| &**part).join("/").trim_end_matches('/').into()
}

fn service_info(entry: &ServiceEntry) -> ServiceInfo {
    let service = &entry.service;
    let now = Instant::now();
    let tier_of = |uid: &str| {
        let holds =
            |endpoints: &&crate::config::Tier| endpoints.iter().any(|known| *known.workload.uid == *uid);
        entry.tiers.iter().position(|tier| holds(&tier))
    };
    let endpoints = entry.endpoints.iter().map(|endpoint| EndpointInfo {
        workload: endpoint.workload.uid.to_string(),
        node: endpoint.workload.node.to_string(),
        addresses: text(endpoint.workload.addresses.iter()),
        healthy: endpoint.workload.healthy,
        tier: tier_of(&endpoint.workload.uid),
        active: endpoint.load().active(),
        ejected: endpoint.load().is_ejected(now),
    });
    ServiceInfo {
        namespace: service.id.namespace.to_string(),
        hostname: service.id.hostname.to_string(),
        name: service.name.to_string(),
        addresses: service.addresses.iter().map(address).collect(),
        ports: service
            .ports
            .iter()
            .map(|port| ServicePortInfo { port: port.service_port, target_port: port.target_port })
            .collect(),
        balancing: balancing(&service.load_balancing),
        endpoints: endpoints.collect(),
    }
}

fn address(address: &NetworkAddress) -> String {
    match &*address.network {
        "" => address.address.to_string(),
        _ => address.to_string(),
    }
}

/// How endpoints are chosen, in words.
pub(super) fn balancing(balancing: &LoadBalancing) -> String {
    let scopes: Vec<_> = balancing.preference.iter().map(|scope| scope.as_str()).collect();
    let mut words = match balancing.mode {
        BalanceMode::Any => "least busy".into(),
        BalanceMode::Passthrough => "the client's choice".into(),
        BalanceMode::Failover => format!("nearest first ({})", scopes.join(", ")),
        BalanceMode::Strict => format!("same {} only", scopes.join(", ")),
    };
    if balancing.health_policy == HealthPolicy::AllowAll {
        words.push_str(", ready or not");
    }
    if let Some(time) = balancing.session_affinity {
        words.push_str(&format!(", clients keep their endpoint for {} s", time.as_secs()));
    }
    words
}

fn connection_info(record: &ConnectionRecord) -> ConnectionInfo {
    ConnectionInfo {
        id: record.id,
        direction: record.direction,
        transport: record.transport,
        security: record.security,
        source: peer_info(&record.source),
        original_destination: record.original_destination.to_string(),
        destination: record.destination.as_ref().map(peer_info),
        service: record.service.as_ref().map(|service| service.id.to_string()),
        bytes_to_server: record.traffic.sent(),
        bytes_to_client: record.traffic.received(),
        age_milliseconds: u64::try_from(record.opened.elapsed().as_millis()).unwrap_or(u64::MAX),
        attempts: record.attempts,
        worker: record.worker,
    }
}

fn peer_info(peer: &Peer) -> PeerInfo {
    let workload = peer.workload.as_ref();
    PeerInfo {
        address: peer.address.to_string(),
        namespace: workload.map(|workload| workload.namespace.to_string()),
        name: workload.map(|workload| workload.name().to_owned()),
        identity: workload.map(|workload| workload.identity().to_string()),
        principal: peer.identity.as_ref().map(ToString::to_string),
        node: workload.map(|workload| workload.node.to_string()),
    }
}
