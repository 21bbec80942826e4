//! An earlier run, and what has changed since.

use super::Report;
use super::rows::{Row, Spread};
use crate::metric::Better;

/// A change smaller than this is none, however narrow the spread: a few rounds know little of it.
const INDISTINCT: f64 = 0.03;

/// Compares a run with an earlier one, row by row.
pub(super) fn compare(baseline: &Report, report: &Report) -> Comparison {
    let same = |row: &Row, other: &Row| {
        (&row.scenario, &row.contender, &row.metric) == (&other.scenario, &other.contender, &other.metric)
    };
    let (mut changes, mut new) = (Vec::new(), 0);
    for row in &report.rows {
        match baseline.rows.iter().find(|old| same(old, row)) {
            Some(old) => changes.extend(Change::between(old, row)),
            None => new += 1,
        }
    }
    let gone = baseline.rows.iter().filter(|old| !report.rows.iter().any(|row| same(row, old))).count();
    let same_machine = baseline.machine.is_like(&report.machine);
    Comparison { date: baseline.date.clone(), same_machine, changes, new, gone }
}

/// A run against an earlier one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Comparison {
    /// Of the earlier one.
    pub(super) date: String,
    pub(super) same_machine: bool,
    pub(super) changes: Vec<Change>,
    /// Rows that the earlier one has not.
    pub(super) new: usize,
    /// Rows that only the earlier one has.
    pub(super) gone: usize,
}

impl Comparison {
    /// In a sentence or two.
    pub(super) fn summary(&self) -> String {
        let count = |verdict| self.changes.iter().filter(|change| change.verdict == verdict).count();
        let [better, worse, same] = [Verdict::Better, Verdict::Worse, Verdict::Same].map(count);
        let mut text = format!("{better} better, {worse} worse, {same} the same");
        if self.new > 0 {
            text.push_str(&format!("; {} not in the baseline", self.new));
        }
        if self.gone > 0 {
            text.push_str(&format!("; {} only there", self.gone));
        }
        if !self.same_machine {
            text.push_str(". It was measured on another machine or kernel: ratios tell more than values");
        }
        text + "."
    }
}

/// What became of a figure.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Change {
    pub(super) scenario: String,
    pub(super) contender: String,
    pub(super) metric: String,
    /// None where ratios to `direct` are compared.
    pub(super) unit: Option<String>,
    pub(super) old: Spread,
    pub(super) new: Spread,
    /// New over old.
    pub(super) change: f64,
    pub(super) verdict: Verdict,
}

/// Whether a change is beyond the spread of both runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Better,
    Worse,
    Same,
}

impl Verdict {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Same => "same",
        }
    }
}

impl Change {
    /// By their ratios to `direct` where both have one, as these depend less on the machine; else by their values. None
    /// where the old figure was 0, and nothing is a multiple of it.
    fn between(old: &Row, new: &Row) -> Option<Self> {
        let (unit, old, spread) = match (old.compared(), new.compared()) {
            (Some(old), Some(new)) => (None, old, new),
            _ => (Some(new.unit.clone()), old.values(), new.values()),
        };
        let change = Some(spread.median / old.median).filter(|change| change.is_finite())?;
        let verdict = if old.overlaps(&spread) || (change - 1.0).abs() < INDISTINCT {
            Verdict::Same
        } else if (change > 1.0) == (new.better == Better::Higher) {
            Verdict::Better
        } else {
            Verdict::Worse
        };
        Some(Self {
            scenario: new.scenario.clone(),
            contender: new.contender.clone(),
            metric: new.metric.clone(),
            unit,
            old,
            new: spread,
            change,
            verdict,
        })
    }
}
