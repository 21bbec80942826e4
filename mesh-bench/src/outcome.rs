//! What a run has measured so far, and its end: exactly one report, whether the run comes to its end or is ended.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;

use crate::progress;
use crate::report::{Failure, Machine, Outcome, Report};
use crate::sample::Sample;

/// What was measured so far: also for the thread that ends the run at once.
#[derive(Debug, Clone)]
pub(crate) struct Shared(Arc<Mutex<Option<Outcome>>>);

/// Where a run reports to.
#[derive(Debug, Clone)]
pub(crate) struct Reporting {
    output: PathBuf,
    baseline: Option<Report>,
    machine: Machine,
}

impl Reporting {
    /// From this machine to a directory, with an earlier run to compare with.
    pub(crate) fn new(output: PathBuf, baseline: Option<Report>) -> Self {
        Self { output, baseline, machine: Machine::detect() }
    }
}

impl Shared {
    /// Nothing yet.
    pub(crate) fn new(quick: bool) -> Self {
        Self(Arc::new(Mutex::new(Some(Outcome { quick, ..Outcome::default() }))))
    }

    pub(crate) fn add(&self, sample: Sample) {
        if let Some(outcome) = self.lock().as_mut() {
            outcome.samples.push(sample);
        }
    }

    pub(crate) fn fail(&self, scenario: &str, error: String) {
        if let Some(outcome) = self.lock().as_mut() {
            outcome.failed.push(Failure { scenario: scenario.into(), error });
        }
    }

    /// Reports, once; whether a scenario has failed. The lock is kept to the end, so that nobody exits meanwhile.
    pub(crate) fn finish(&self, reporting: &Reporting, interrupted: bool) -> Result<bool> {
        let mut outcome = self.lock();
        let Some(outcome) = outcome.take() else { return Ok(false) };
        let failed = !outcome.failed.is_empty();
        let report = Report::new(reporting.machine.clone(), Outcome { interrupted, ..outcome });
        if report.is_empty() {
            progress::note("nothing was measured: nothing is written");
            return Ok(failed);
        }
        let baseline = reporting.baseline.as_ref();
        report.print(baseline);
        let written = report.write(&reporting.output, baseline)?;
        let written = written.map(|path| path.display().to_string());
        progress::note(format_args!("written: {}", written.join(", ")));
        Ok(failed)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Outcome>> {
        // What a panic has left is still worth reporting.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
