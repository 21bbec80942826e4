//! What is measured, one module each.

use anyhow::Result;

use crate::bench::Bench;

mod config;
mod control;
mod ebpf;
mod matchup;
mod memory;
mod policy;
mod same_node;
mod two_nodes;
mod unenrolled;

/// Something to measure, with the contenders that can do it.
pub(crate) struct Scenario {
    /// As it is named in the JSON and by `--only`.
    pub(crate) name: &'static str,
    /// Runs all rounds of all contenders, interleaved.
    pub(crate) run: fn(&mut Bench) -> Result<()>,
}

/// In the order in which they run.
pub(crate) const ALL: [Scenario; 9] = [
    Scenario { name: "same-node-l4", run: same_node::run },
    Scenario { name: "two-nodes-plain", run: two_nodes::plain },
    Scenario { name: "two-nodes-mtls", run: two_nodes::mtls },
    Scenario { name: "unenrolled", run: unenrolled::run },
    Scenario { name: "memory", run: memory::run },
    Scenario { name: "policy", run: policy::run },
    Scenario { name: "config", run: config::run },
    Scenario { name: "control", run: control::run },
    Scenario { name: "ebpf", run: ebpf::run },
];
