use anyhow::Result;

use crate::bench::Bench;

pub(super) fn plain(_bench: &mut Bench) -> Result<()> {
    Ok(())
}

pub(super) fn mtls(_bench: &mut Bench) -> Result<()> {
    Ok(())
}
