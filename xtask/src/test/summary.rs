//! One line for many test programs: how many tests passed and which failed.

use std::{collections::BTreeSet, time::Duration};

use crate::progress;

/// What the closing lines of the test programs add up to.
#[derive(Default)]
pub(crate) struct Summary {
    passed: usize,
    failed: usize,
    ignored: usize,
    programs: usize,
    failures: BTreeSet<String>,
}

impl Summary {
    /// Takes in a line that `cargo test` printed.
    pub(crate) fn read(&mut self, line: &str) {
        let line = anstream::adapter::strip_str(line).to_string();
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.programs += 1;
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
            self.ignored += count(counts, "ignored");
        } else if let Some(test) =
            line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... FAILED"))
        {
            self.failures.insert(test.to_owned());
        }
    }

    /// Shows the sum.
    pub(crate) fn show(&self, took: Duration) {
        let Self { passed, failed, ignored, programs, .. } = self;
        let line = format!(
            "{passed} passed, {failed} failed, {ignored} ignored in {programs} programs, {}",
            progress::elapsed(took)
        );
        if *failed == 0 {
            progress::good(line)
        } else {
            progress::bad(line)
        }
        for test in &self.failures {
            progress::bad(format_args!(
                "{test}: again with `cargo xtask test {}`",
                test.split(" - ").next().unwrap_or(test)
            ));
        }
    }
}

/// The number before `what` in `ok. 12 passed; 0 failed; ...`.
fn count(counts: &str, what: &str) -> usize {
    let before = counts.split(['.', ';']).find_map(|part| part.trim().strip_suffix(what));
    before.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::Summary;

    #[test]
    fn counts_of_all_programs_are_added_and_failures_named() {
        let mut summary = Summary::default();
        let lines = [
            "running 3 tests",
            "test relay::half_close ... ok",
            "test relay::idle ... \u{1b}[31mFAILED\u{1b}[0m",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.31s",
            "test result: ok. 40 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 12.05s",
        ];
        for line in lines {
            summary.read(line);
        }
        assert_eq!((summary.passed, summary.failed, summary.ignored, summary.programs), (42, 1, 1, 2));
        assert!(summary.failures.contains("relay::idle"));
    }
}
