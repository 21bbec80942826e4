//! Client and server on one node.

use anyhow::Result;

use super::matchup::{self, Matchup, Steps};
use crate::bench::Bench;
use crate::contenders::{AgentSetup, Place, Way};

/// Connections are authorized by the agent, and pass and are counted in the kernel; or all go through the agent.
pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let place = Place::SameNode;
    let kernel = AgentSetup { name: "mesh-agent", place, way: Way::Kernel, neighbours: 0, arguments: &[] };
    let proxied = AgentSetup {
        name: "mesh-agent-proxied",
        way: Way::Relay,
        arguments: &["--in-kernel-passage", "off"],
        ..kernel
    };
    matchup::run(
        bench,
        &Matchup { scenario: "same-node-l4", place, meshes: &[kernel, proxied], steps: Steps::All },
    )
}
