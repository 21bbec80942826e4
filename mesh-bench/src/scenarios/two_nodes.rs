//! Client and server on two nodes.

use anyhow::Result;

use super::matchup::play;
use crate::bench::Bench;
use crate::contenders::{AgentSetup, Contender, Place, proxied};

/// Between the nodes everything is plain text.
pub(super) fn plain(bench: &mut Bench) -> Result<()> {
    let mesh = AgentSetup {
        name: "mesh-agent",
        place: Place::OtherNode,
        certificates: false,
        arguments: &[],
        check: proxied,
    };
    run(bench, "two-nodes-plain", &[mesh])
}

/// Between the nodes there is mutual TLS.
pub(super) fn mtls(bench: &mut Bench) -> Result<()> {
    let mesh = AgentSetup {
        name: "mesh-agent",
        place: Place::OtherNode,
        certificates: true,
        arguments: &[],
        check: proxied,
    };
    let hbone = AgentSetup { name: "mesh-agent-hbone", arguments: &["--tunnel-protocol", "hbone"], ..mesh };
    run(bench, "two-nodes-mtls", &[mesh, hbone])
}

fn run(bench: &mut Bench, scenario: &'static str, meshes: &[AgentSetup]) -> Result<()> {
    let mut contenders = vec![Contender::direct(Place::OtherNode)?];
    for mesh in meshes.iter().filter(|mesh| bench.wants_contender(mesh.name)) {
        contenders.push(mesh.start()?);
    }
    play(bench, scenario, &contenders)
}
