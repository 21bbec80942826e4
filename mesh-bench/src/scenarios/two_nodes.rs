//! Client and server on two nodes.

use anyhow::Result;

use super::matchup::{self, Matchup, Steps};
use crate::bench::Bench;
use crate::contenders::{AgentSetup, Place, Way};

const PLACE: Place = Place::OtherNode;

/// Between the nodes everything is plain text.
pub(super) fn plain(bench: &mut Bench) -> Result<()> {
    let mesh = agent(Way::Plain);
    let arguments = &["--in-kernel-passage", "off"];
    let proxied = AgentSetup { name: "mesh-agent-proxied", way: Way::PlainRelay, arguments, ..mesh };
    matchup::run(
        bench,
        &Matchup { scenario: "two-nodes-plain", place: PLACE, meshes: &[mesh, proxied], steps: Steps::All },
    )
}

/// Between the nodes there is mutual TLS. With HBONE too, which the agents speak with everybody else.
pub(super) fn mtls(bench: &mut Bench) -> Result<()> {
    let mesh = agent(Way::Tunnel);
    let hbone = AgentSetup { name: "mesh-agent-hbone", arguments: &["--tunnel-protocol", "hbone"], ..mesh };
    matchup::run(
        bench,
        &Matchup { scenario: "two-nodes-mtls", place: PLACE, meshes: &[mesh, hbone], steps: Steps::All },
    )
}

fn agent(way: Way) -> AgentSetup {
    AgentSetup { name: "mesh-agent", place: PLACE, way, neighbours: 0, arguments: &[] }
}
