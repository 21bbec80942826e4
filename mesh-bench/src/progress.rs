//! What a run shows while it measures: on a terminal a line that says whose turn it is, elsewhere a line per scenario.
//!
//! The line is drawn once a second at most, so that drawing is no part of what is measured.

use std::fmt;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use anstream::eprintln;
use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const DIM: Style = Style::new().dimmed();

/// A scenario that runs.
pub(crate) struct Progress {
    scenario: &'static str,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Shows that it has started.
    pub(crate) fn start(scenario: &'static str) -> Self {
        let bar = io::stderr().is_terminal().then(|| live_line(scenario));
        if bar.is_none() {
            eprintln!("  {DIM}..{DIM:#} {scenario}");
        }
        Self { scenario, started: Instant::now(), bar }
    }

    /// Whose turn it is, in which round.
    pub(crate) fn turn(&self, contender: &str, round: usize) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{contender}, round {}", round + 1));
        }
    }

    /// Replaces the line by one that stays.
    pub(crate) fn done(self) {
        let took = elapsed(self.started.elapsed());
        self.finish(&format!("  {GOOD}ok{GOOD:#} {:<20} {DIM}{took}{DIM:#}", self.scenario));
    }

    /// The same for a scenario that did not come to its end.
    pub(crate) fn failed(self, why: &str) {
        self.finish(&format!("  {BAD}!!{BAD:#} {:<20} {why}", self.scenario));
    }

    fn finish(&self, line: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{line}");
    }
}

fn live_line(scenario: &'static str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_prefix(scenario);
    if let Ok(style) =
        ProgressStyle::with_template("  {spinner:.cyan}  {prefix:<20.bold} {elapsed:.dim} {wide_msg}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}

/// A line that says what will happen or how to go on.
pub(crate) fn note(text: impl fmt::Display) {
    eprintln!("     {DIM}{text}{DIM:#}");
}

/// The end of a run that could not be, with every cause.
pub(crate) fn failure(error: &anyhow::Error) {
    eprintln!("{BAD}error{BAD:#}: {error:#}");
}

fn elapsed(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    }
}
