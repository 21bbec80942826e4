//! What an installation looks like.

use anyhow::{Context, Result, ensure};

use crate::world::World;

pub(super) fn agents_are_ready_and_find_nothing_wrong(world: &World) -> Result<()> {
    for node in world.cluster().nodes() {
        let status = world.meshctl(node.name(), &["status"])?;
        ensure!(status["health"]["ready"] == true, "{}: {status}", node.name());
        ensure!(status["node"] == node.name(), "{status}");
        let report = world.meshctl(node.name(), &["check"])?;
        let checks = report["checks"].as_array().with_context(|| format!("no checks: {report}"))?;
        let failed: Vec<_> = checks.iter().filter(|check| check["status"] == "fail").collect();
        ensure!(failed.is_empty(), "{}: {failed:?}", node.name());
    }
    Ok(())
}
