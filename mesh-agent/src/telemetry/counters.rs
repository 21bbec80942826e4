//! What the agent counts about itself.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::DescriptorEncoder;

use super::exposition::{counter, counters};
use super::record::{ConnectFailure, Incident};

/// Counters of what went wrong, by kind.
#[derive(Debug, Default)]
pub(super) struct Counters {
    connect_failures: [AtomicU64; ConnectFailure::ALL.len()],
    accept_failures: AtomicU64,
    direct_connections: AtomicU64,
    would_be_denied: AtomicU64,
}

impl Counters {
    pub(super) fn incident(&self, incident: Incident) {
        match incident {
            Incident::ConnectFailure(kind) => increment(self.connect_failures.get(kind as usize)),
            Incident::AcceptFailure => increment(Some(&self.accept_failures)),
            Incident::DirectConnection => increment(Some(&self.direct_connections)),
            Incident::WouldBeDenied => increment(Some(&self.would_be_denied)),
        }
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let failures = ConnectFailure::ALL.iter().zip(&self.connect_failures);
        counters(
            encoder,
            "mesh_agent_connect_failures",
            "Endpoints that could not be connected to, by reason",
            "reason",
            failures.map(|(failure, n)| (failure.as_str(), load(n))),
        )?;
        counter(
            encoder,
            "mesh_agent_accept_failures",
            "Connections that could not be accepted",
            load(&self.accept_failures),
        )?;
        counter(
            encoder,
            "mesh_agent_direct_connections",
            "Connections to the listener itself, closed because nothing steered them there",
            load(&self.direct_connections),
        )?;
        counter(
            encoder,
            "mesh_agent_dry_run_denials",
            "Connections that were allowed and that a policy on trial (dry run) would have denied",
            load(&self.would_be_denied),
        )
    }
}

fn increment(counter: Option<&AtomicU64>) {
    if let Some(counter) = counter {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
