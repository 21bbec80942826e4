//! What a run says: rows made of its samples, the machine they were measured on, and the places it is written to.
//!
//! The JSON is the interface: `machine`, `date` and `rows` are what others read and later runs are compared with. The page
//! and the terminal show the same.

mod baseline;
mod figure;
mod machine;
mod page;
mod rows;
mod show;
mod targets;
mod terminal;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(crate) use machine::Machine;
pub(crate) use show::{ShowOptions, show};

use crate::sample::Sample;
use baseline::compare;
use rows::Row;

/// A run, as it is written to JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    machine: Machine,
    /// When the run ended, in RFC 3339, UTC.
    date: String,
    rows: Vec<Row>,
    /// Scenarios that did not come to their end; what they had measured until then is in `rows`.
    #[serde(default)]
    failed: Vec<Failure>,
    /// Whether the run was ended before all of it was measured.
    #[serde(default)]
    interrupted: bool,
    /// Whether it was a short one.
    #[serde(default)]
    quick: bool,
    /// What `rows` are made of.
    #[serde(default, skip_deserializing)]
    samples: Vec<Sample>,
}

/// A scenario that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) scenario: String,
    pub(crate) error: String,
}

/// What a run has come to, however it ended.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) samples: Vec<Sample>,
    pub(crate) failed: Vec<Failure>,
    pub(crate) interrupted: bool,
    pub(crate) quick: bool,
}

/// Why there is no earlier run to show or to compare with.
#[derive(Debug, Error)]
pub(crate) enum ReadError {
    #[error("cannot read {}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error(
        "{} is not the JSON of a run; give a file that `cargo xtask bench` has written, such as target/bench/latest.json \
         or one of the dated copies beside it",
        path.display()
    )]
    Foreign { path: PathBuf, source: serde_json::Error },
}

impl Report {
    /// Reads the JSON of an earlier run; its samples stay in the file.
    ///
    /// # Errors
    ///
    /// When there is none at `path`.
    pub(crate) fn read(path: &Path) -> Result<Self, ReadError> {
        let text =
            fs::read_to_string(path).map_err(|source| ReadError::Unreadable { path: path.into(), source })?;
        serde_json::from_str(&text).map_err(|source| ReadError::Foreign { path: path.into(), source })
    }

    pub(crate) fn new(machine: Machine, outcome: Outcome) -> Self {
        let Outcome { samples, failed, interrupted, quick } = outcome;
        Self { machine, date: now(), rows: rows::of(&samples), failed, interrupted, quick, samples }
    }

    /// Whether there is nothing to say.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.failed.is_empty()
    }

    /// Prints tables of everything to standard output.
    pub(crate) fn print(&self, baseline: Option<&Self>) {
        terminal::print(self, baseline.map(|baseline| compare(baseline, self)).as_ref());
    }

    /// Writes `latest.json`, a copy of it under its date, and `latest.html`; gives their paths.
    ///
    /// # Errors
    ///
    /// When the directory cannot be written to. Each file is complete or as it was before.
    pub(crate) fn write(&self, directory: &Path, baseline: Option<&Self>) -> Result<[PathBuf; 3]> {
        fs::create_dir_all(directory).with_context(|| {
            format!("cannot make {}: give another directory with --output", directory.display())
        })?;
        let mut json = serde_json::to_string_pretty(self).context("the report has no JSON")?;
        json.push('\n');
        let page = self.page(baseline);
        let dated = format!("{}.json", self.date.replace(':', "-"));
        let files = [("latest.json", &json), (dated.as_str(), &json), ("latest.html", &page)];
        for (name, text) in files {
            replace(directory, name, text)?;
        }
        Ok(files.map(|(name, _)| directory.join(name)))
    }

    /// The page.
    pub(crate) fn page(&self, baseline: Option<&Self>) -> String {
        page::render(self, baseline.map(|baseline| compare(baseline, self)).as_ref())
    }

    /// The scenarios that have rows, in the order in which they ran.
    fn scenarios(&self) -> Vec<&str> {
        unique(self.rows.iter().map(|row| row.scenario.as_str()))
    }

    /// The rows of a scenario.
    fn rows_of(&self, scenario: &str) -> impl Iterator<Item = &Row> + Clone {
        self.rows.iter().filter(move |row| row.scenario == scenario)
    }

    fn row(&self, scenario: &str, contender: &str, metric: &str) -> Option<&Row> {
        self.rows_of(scenario).find(|row| row.contender == contender && row.metric == metric)
    }

    /// What a reader must know before the figures.
    fn caveats(&self) -> Vec<String> {
        let failed = self.failed.iter();
        let failed = failed.map(|Failure { scenario, error }| format!("{scenario} failed: {error}"));
        let interrupted =
            self.interrupted.then(|| "The run was interrupted: not everything was measured.".into());
        let quick = self.quick.then(|| "A quick run: fewer and shorter rounds, less certain figures.".into());
        failed.chain(interrupted).chain(quick).collect()
    }
}

/// Every value once, in the order of its first appearance.
fn unique<'a>(values: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut unique = Vec::new();
    for value in values {
        if !unique.contains(&value) {
            unique.push(value);
        }
    }
    unique
}

/// Now, in RFC 3339, to the second.
fn now() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or_default();
    jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

/// Writes a file beside its place and moves it there, so that nobody reads half of one.
fn replace(directory: &Path, name: &str, text: &str) -> Result<()> {
    let path = directory.join(name);
    let draft = directory.join(format!(".{name}.{}", std::process::id()));
    fs::write(&draft, text)
        .and_then(|()| fs::rename(&draft, &path))
        .with_context(|| format!("cannot write {}: give another directory with --output", path.display()))
}
