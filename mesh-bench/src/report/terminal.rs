//! The report on a terminal: a table per scenario, changes since the baseline, and the targets last, where one looks.

use std::ops::RangeBounds;

use anstream::println;
use anstyle::{AnsiColor, Style};
use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table};

use super::baseline::{Comparison, Verdict};
use super::rows::Row;
use super::{Report, figure, targets, unique};
use crate::bench::DIRECT;
use crate::metric::Better;

const TITLE: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Writes to standard output; `anstream` takes colours out where nobody wants them.
pub(super) fn print(report: &Report, comparison: Option<&Comparison>) {
    if !report.rows.is_empty() {
        println!(
            "{DIM}Medians, their ratios to direct, and (from the least to the greatest) of all rounds.{DIM:#}"
        );
    }
    for scenario in report.scenarios() {
        println!("\n{TITLE}{scenario}{TITLE:#}");
        println!("{}", figures(report, scenario).trim_fmt());
    }
    if let Some(comparison) = comparison {
        println!("\n{TITLE}Against the run of {}{TITLE:#}", comparison.date);
        if comparison.changes.iter().any(|change| change.verdict != Verdict::Same) {
            println!("{}", changes(comparison).trim_fmt());
        }
        println!("{}", comparison.summary());
    }
    let judgements = targets::judge(report);
    let measured: Vec<_> = judgements.iter().filter(|judgement| judgement.met().is_some()).collect();
    if !measured.is_empty() {
        println!("\n{TITLE}Targets{TITLE:#} {DIM}as ratios to direct, where there is no unit{DIM:#}");
        println!("{}", verdicts(&measured).trim_fmt());
        println!("{}.", targets::summary(&judgements));
    }
    for caveat in report.caveats() {
        println!("{BAD}!{BAD:#} {caveat}");
    }
}

/// A row per metric, a column per contender: the median, its ratio to `direct`, the ratio's spread.
fn figures(report: &Report, scenario: &str) -> Table {
    let rows = report.rows_of(scenario);
    let contenders = unique(rows.clone().map(|row| row.contender.as_str()));
    let mut table = table(["metric", "unit"].into_iter().chain(contenders.iter().copied()), 2..);
    for metric in unique(rows.clone().map(|row| row.metric.as_str())) {
        let rows: Vec<_> = rows.clone().filter(|row| row.metric == metric).collect();
        let best = best(&rows);
        let unit = rows.first().map_or("", |row| row.unit.as_str());
        let cells = contenders.iter().map(|contender| {
            let row = rows.iter().find(|row| row.contender == *contender);
            let cell = Cell::new(row.map_or_else(String::new, |row| figures_of(row)));
            if best.is_some_and(|best| best == *contender) {
                cell.add_attribute(Attribute::Bold)
            } else {
                cell
            }
        });
        table.add_row([Cell::new(metric), Cell::new(unit)].into_iter().chain(cells));
    }
    table
}

/// One round has no spread.
fn figures_of(row: &Row) -> String {
    let (ratios, values) = (row.compared(), row.values());
    let mut text = figure::value(values.median);
    if let Some(ratios) = ratios {
        text = format!("{text} {}", figure::ratio(ratios.median));
    }
    if row.rounds > 1 {
        let spread = match ratios {
            Some(ratios) => figure::range(ratios.min, ratios.max, figure::ratio),
            None => figure::range(values.min, values.max, figure::value),
        };
        text = format!("{text} ({spread})");
    }
    text
}

/// Which of several contenders did best; `direct` is none.
fn best<'a>(rows: &[&'a Row]) -> Option<&'a str> {
    let contenders = rows.iter().filter(|row| row.contender != DIRECT);
    let better = |row: &&&Row, other: &&&Row| {
        let order = row.median.total_cmp(&other.median);
        if row.better == Better::Higher { order } else { order.reverse() }
    };
    (contenders.clone().count() > 1)
        .then(|| contenders.max_by(better))
        .flatten()
        .map(|row| row.contender.as_str())
}

/// What is not the same; the page has all of it.
fn changes(comparison: &Comparison) -> Table {
    let mut table = table(["scenario", "contender", "metric", "before", "now", "change", ""], 3..6);
    for change in comparison.changes.iter().filter(|change| change.verdict != Verdict::Same) {
        let figure = if change.unit.is_some() { figure::value } else { figure::ratio };
        let unit = change.unit.as_deref().unwrap_or("of direct");
        let colour = match change.verdict {
            Verdict::Better => Some(Color::Green),
            Verdict::Worse => Some(Color::Red),
            Verdict::Same => None,
        };
        let verdict = Cell::new(change.verdict.word());
        table.add_row([
            Cell::new(&change.scenario),
            Cell::new(&change.contender),
            Cell::new(&change.metric),
            Cell::new(figure(change.old.median)),
            Cell::new(format!("{} {unit}", figure(change.new.median))),
            Cell::new(figure::change(change.change)),
            colour.into_iter().fold(verdict, Cell::fg),
        ]);
    }
    table
}

fn verdicts(judgements: &[&targets::Judgement]) -> Table {
    let mut table = table(["", "scenario", "metric", "target", "this run", "peers"], 3..5);
    for judgement in judgements {
        let sign = match judgement.met() {
            Some(true) => Cell::new("✓").fg(Color::Green),
            Some(false) => Cell::new("✗").fg(Color::Red),
            None => Cell::new(""),
        };
        table.add_row([
            sign,
            Cell::new(judgement.scenario),
            Cell::new(judgement.metric),
            Cell::new(&judgement.goal),
            Cell::new(judgement.reached.as_ref().map_or("not measured", |reached| reached.text.as_str())),
            Cell::new(&judgement.peers),
        ]);
    }
    table
}

/// An empty table; which of its columns are numbers.
fn table<'a>(header: impl IntoIterator<Item = &'a str>, numbers: impl RangeBounds<usize>) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    // Whether colours are shown is decided by `anstream`, as everywhere.
    table.enforce_styling();
    table.set_header(header.into_iter().map(|title| Cell::new(title).add_attribute(Attribute::Dim)));
    for (position, column) in table.column_iter_mut().enumerate() {
        if numbers.contains(&position) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
