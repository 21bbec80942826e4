//! What a task shows: on a terminal a line that lives while a step runs, elsewhere plain lines that read well
//! in a log.

use std::{
    fmt,
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use anstream::{eprintln, stderr};
use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();

/// A step of a task, shown from its start to its end.
pub(crate) struct Step {
    label: String,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Step {
    /// Shows that `label` has started.
    pub(crate) fn start(label: impl Into<String>) -> Self {
        let label = label.into();
        let bar = io::stderr().is_terminal().then(|| live_line(&label));
        if bar.is_none() {
            eprintln!("  {DIM}..{DIM:#} {label}");
        }
        Self { label, started: Instant::now(), bar }
    }

    /// What the step is at, for instance the last line that its program printed. Only a terminal shows it.
    pub(crate) fn detail(&self, line: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(printable(line));
        }
    }

    /// Says that the step still runs, in a log that would otherwise be silent.
    pub(crate) fn still_running(&self) {
        if self.bar.is_none() {
            eprintln!("  {DIM}.. {} is running since {}{DIM:#}", self.label, elapsed(self.started.elapsed()));
        }
    }

    /// Replaces the live line by one that stays.
    pub(crate) fn done(self) {
        let took = elapsed(self.started.elapsed());
        self.finish(&format!("  {GOOD}ok{GOOD:#} {:<44} {DIM}{took}{DIM:#}", self.label));
    }

    /// The same for a step that failed; why is the caller's to say.
    pub(crate) fn failed(self) {
        let took = elapsed(self.started.elapsed());
        self.finish(&format!("  {BAD}!!{BAD:#} {:<44} {DIM}{took}{DIM:#}", self.label));
    }

    fn finish(&self, line: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{line}");
    }
}

fn live_line(label: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_prefix(label.to_owned());
    if let Ok(style) =
        ProgressStyle::with_template("  {spinner:.cyan}  {prefix:.bold} {elapsed:.dim} {wide_msg:.dim}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// A program's line without what would move the cursor of the live line.
fn printable(line: &str) -> String {
    let plain = anstream::adapter::strip_str(line).to_string();
    plain.trim().replace(|character: char| character.is_control(), " ")
}

/// A heading between the parts of a long task.
pub(crate) fn heading(text: impl fmt::Display) {
    eprintln!("\n{BOLD}{text}{BOLD:#}");
}

/// A line that says something is well.
pub(crate) fn good(text: impl fmt::Display) {
    eprintln!("  {GOOD}ok{GOOD:#} {text}");
}

/// A line that says something is not.
pub(crate) fn bad(text: impl fmt::Display) {
    eprintln!("  {BAD}!!{BAD:#} {text}");
}

/// A line that says what will happen or how to go on.
pub(crate) fn note(text: impl fmt::Display) {
    eprintln!("     {DIM}{text}{DIM:#}");
}

/// The end of a task that failed, with every cause.
pub(crate) fn failure(error: &anyhow::Error) {
    let _stderr = stderr().lock();
    eprintln!("\n{BAD}error{BAD:#}: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  {DIM}because{DIM:#} {cause}");
    }
}

/// A duration as people say it: tenths of a second below a minute, whole seconds above.
pub(crate) fn elapsed(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{elapsed, printable};

    #[test]
    fn durations_read_as_people_say_them() {
        let cases = [(0, "0.0 s"), (59_940, "59.9 s"), (61_000, "1 min 01 s"), (3_725_000, "1 h 02 min")];
        for (milliseconds, expected) in cases {
            assert_eq!(elapsed(Duration::from_millis(milliseconds)), expected);
        }
    }

    #[test]
    fn a_live_line_is_never_broken_by_what_a_program_prints() {
        assert_eq!(printable("\x1b[32m   Compiling\x1b[0m mesh\tagent\r"), "Compiling mesh agent");
    }
}
