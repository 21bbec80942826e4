//! Client and server are not in the mesh, but on nodes with an agent and with pods that are.

mod forwarding;

use anyhow::Result;

use super::matchup::{self, Matchup, Steps};
use crate::bench::Bench;
use crate::contenders::{AgentSetup, Place, Way};

const SCENARIO: &str = "unenrolled";
/// Enrolled pods on each node.
const NEIGHBOURS: usize = 20;

/// Every packet passes the agent's programs in the kernel, which leave it alone.
pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let place = Place::OtherNode;
    let mesh =
        AgentSetup { name: "mesh-agent", place, way: Way::Past, neighbours: NEIGHBOURS, arguments: &[] };
    if bench.wants_contender(mesh.name) {
        forwarding::run(bench)?;
    }
    matchup::run(bench, &Matchup { scenario: SCENARIO, place, meshes: &[mesh], steps: Steps::Few })
}
