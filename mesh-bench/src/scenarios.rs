//! What is measured, one module each.

use anyhow::Result;

use crate::bench::Bench;

mod config;
mod control;
mod ebpf;
mod kubernetes;
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
    /// What is measured, in a sentence or two for the reports.
    pub(crate) about: &'static str,
    /// Runs all rounds of all contenders, interleaved.
    pub(crate) run: fn(&mut Bench) -> Result<()>,
}

/// In the order in which they run.
pub(crate) const ALL: [Scenario; 10] = [
    Scenario {
        name: "same-node-l4",
        about: "Client and server pod on one node; connections are authorized and counted.",
        run: same_node::run,
    },
    Scenario {
        name: "two-nodes-plain",
        about: "Client and server pod on two nodes, in plain text.",
        run: two_nodes::plain,
    },
    Scenario {
        name: "two-nodes-mtls",
        about: "Client and server pod on two nodes, with mutual TLS between the nodes.",
        run: two_nodes::mtls,
    },
    Scenario {
        name: "unenrolled",
        about: "A pod outside of the mesh on a node where an agent runs: what the mesh costs those who do not use it.",
        run: unenrolled::run,
    },
    Scenario {
        name: "memory",
        about: "User memory of an agent: fresh, with large meshes, and for every idle connection.",
        run: memory::run,
    },
    Scenario {
        name: "policy",
        about: "What it takes to check a connection against many authorization policies.",
        run: policy::run,
    },
    Scenario {
        name: "config",
        about: "How long the first synchronisation of a large mesh takes, and a change until connections see it.",
        run: config::run,
    },
    Scenario {
        name: "control",
        about: "The control server with a thousand connected agents: its memory, and one change pushed to all of them.",
        run: control::run,
    },
    Scenario {
        name: "kubernetes",
        about: "The control server on a Kubernetes API with ten thousand pods: its memory, its start, and how long a change takes to \
                reach an agent.",
        run: kubernetes::run,
    },
    Scenario { name: "ebpf", about: "What each kernel program takes per packet.", run: ebpf::run },
];
