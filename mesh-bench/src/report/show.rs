//! `mesh-bench show`: an earlier run again, without measuring anything.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::Report;

/// What `show` may be told.
#[derive(Debug, Clone, Args)]
pub(crate) struct ShowOptions {
    /// The JSON of a run
    file: PathBuf,
    /// Compare with an earlier run, by its JSON
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Write the page to this file
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

/// Prints the tables of a run.
pub(crate) fn show(options: &ShowOptions) -> Result<()> {
    let report = Report::read(&options.file)?;
    let baseline = options.baseline.as_deref().map(Report::read).transpose().context("--baseline")?;
    report.print(baseline.as_ref());
    if let Some(path) = &options.page {
        fs::write(path, report.page(baseline.as_ref()))
            .with_context(|| format!("--page: cannot write {}", path.display()))?;
    }
    Ok(())
}
