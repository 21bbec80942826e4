//! Client and server on one node.

use anyhow::Result;

use super::matchup::play;
use crate::bench::Bench;
use crate::contenders::{AgentSetup, Contender, Place, proxied};

/// Connections are authorized by the agent, and pass and are counted in the kernel.
pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let kernel = AgentSetup {
        name: "mesh-agent",
        place: Place::SameNode,
        certificates: true,
        arguments: &[],
        check: proxied,
    };
    let proxied =
        AgentSetup { name: "mesh-agent-proxied", arguments: &["--in-kernel-passage", "off"], ..kernel };
    let mut contenders = vec![Contender::direct(Place::SameNode)?];
    for mesh in [kernel, proxied].iter().filter(|mesh| bench.wants_contender(mesh.name)) {
        contenders.push(mesh.start()?);
    }
    play(bench, "same-node-l4", &contenders)
}
