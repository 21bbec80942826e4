//! The agent's own state as metrics, read when they are asked for.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::api::{ConfigOrigin, IdentityState};
use super::state::AdminState;
use crate::telemetry::exposition::{counter, counters, gauge, gauges, info};

/// Asks every part for what it counts.
pub(super) struct AgentCollector(pub(super) Arc<AdminState>);

impl fmt::Debug for AgentCollector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("AgentCollector").finish_non_exhaustive()
    }
}

impl Collector for AgentCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let state = &self.0;
        let build = [("version", env!("CARGO_PKG_VERSION"))];
        info(encoder, "mesh_agent_build_info", "What runs", &build)?;
        gauge(
            encoder,
            "mesh_agent_ready",
            "Whether traffic is steered and a configuration is there",
            u64::from(state.health().ready),
        )?;
        counters(
            encoder,
            "mesh_agent_steering_packets",
            "What the kernel programs did with packets, by outcome",
            "outcome",
            state.steering.counters(),
        )?;
        gauge(
            encoder,
            "mesh_agent_node_processes_guarded",
            "Whether processes of the node other than the kubelet reach enrolled pods through the agent only",
            u64::from(state.steering.knows_kubelet()),
        )?;
        configuration(state, encoder)?;
        certificates(state, encoder)?;
        let pods = state.pod_counts();
        gauges(
            encoder,
            "mesh_agent_pods",
            "Pods of this node",
            "state",
            [("known", pods.known), ("enrolled", pods.enrolled), ("without_device", pods.without_device)]
                .map(|(label, count)| (label, number(count))),
        )
    }
}

fn configuration(state: &AdminState, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mesh = state.mesh.load();
    let config = state.config.status();
    gauge(
        encoder,
        "mesh_agent_config_revision",
        "Counts the changes that led to the current configuration",
        mesh.revision(),
    )?;
    gauges(
        encoder,
        "mesh_agent_config_resources",
        "What the configuration knows",
        "kind",
        [("workload", mesh.workload_count()), ("service", mesh.service_count())]
            .map(|(kind, count)| (kind, number(count))),
    )?;
    gauge(
        encoder,
        "mesh_agent_config_rejected_resources",
        "Resources whose newest version was refused",
        number(config.rejected.len()),
    )?;
    gauge(
        encoder,
        "mesh_agent_config_connected",
        "Whether a control server is connected",
        u64::from(config.connected.is_some()),
    )?;
    gauge(
        encoder,
        "mesh_agent_config_from_cache",
        "Whether the configuration in force is the last good state on disk",
        u64::from(config.origin == ConfigOrigin::Cache),
    )?;
    let Some(age) = config.last_change_seconds else { return Ok(()) };
    gauge(encoder, "mesh_agent_config_age_seconds", "Time since the last change came", age)
}

fn certificates(state: &AdminState, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let report = state.identities.report();
    let count = |wanted| report.identities.iter().filter(|identity| identity.state == wanted).count();
    gauges(
        encoder,
        "mesh_agent_certificates",
        "Identities of this node's pods, by the state of their certificates",
        "state",
        [
            ("pending", count(IdentityState::Pending)),
            ("valid", count(IdentityState::Valid)),
            ("expired", count(IdentityState::Expired)),
        ]
        .map(|(state, count)| (state, number(count))),
    )?;
    counter(encoder, "mesh_agent_certificates_issued", "Certificates received", report.issued)?;
    counters(
        encoder,
        "mesh_agent_certificate_failures",
        "Requests for a certificate that failed, by the reason",
        "reason",
        report.failures.iter().map(|(reason, count)| (reason.as_str(), *count)),
    )?;
    let ends = [
        (
            "mesh_agent_certificate_first_expiry_seconds",
            "When the first of the pods' certificates expires, in seconds since the epoch",
            report.identities.iter().filter_map(|identity| identity.expires).min(),
        ),
        (
            "mesh_agent_root_first_expiry_seconds",
            "When the first of the roots expires that peers are verified with, in seconds since the epoch",
            report.roots.iter().map(|root| root.expires).min(),
        ),
    ];
    for (name, help, end) in ends {
        if let Some(end) = end {
            gauge(encoder, name, help, end)?;
        }
    }
    Ok(())
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
