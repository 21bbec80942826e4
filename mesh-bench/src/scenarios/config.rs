//! How long it takes until configuration counts: a change from the moment it is made to the first connection that is decided
//! otherwise, and a whole mesh from the start of an agent that knows nothing.

mod effect;
mod probe;
mod sync;

use anyhow::{Context, Result};

use crate::bench::Bench;

const SCENARIO: &str = "config";
const AGENT: &str = "mesh-agent";
/// Where the lab's agents look for a control server without certificates.
const CONTROL_PORT: u16 = 15010;

pub(super) fn run(bench: &mut Bench) -> Result<()> {
    if !bench.wants_contender(AGENT) {
        return Ok(());
    }
    effect::of_manifests(bench).context("changed manifests")?;
    effect::of_pushes(bench).context("pushed changes")?;
    sync::run(bench).context("first synchronisation")
}
