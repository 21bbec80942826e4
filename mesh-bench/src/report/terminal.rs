//! The report on a terminal: a table per scenario, changes since the baseline, and the targets last, where one looks.

use anstream::println;
use anstyle::{AnsiColor, Style};
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
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
    for scenario in report.scenarios() {
        println!("\n{TITLE}{scenario}{TITLE:#}");
        println!("{}", figures(report, scenario));
    }
    if let Some(comparison) = comparison {
        println!("\n{TITLE}Against the run of {}{TITLE:#}", comparison.date);
        println!("{}", changes(comparison));
        println!("{}", comparison.summary());
    }
    let judgements = targets::judge(report);
    let measured: Vec<_> = judgements.iter().filter(|judgement| judgement.met.is_some()).collect();
    if !measured.is_empty() {
        println!("\n{TITLE}Targets{TITLE:#} {DIM}as ratios to direct, where there is no unit{DIM:#}");
        println!("{}", verdicts(&measured));
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
    let mut table = table(["metric", "unit"].into_iter().chain(contenders.iter().copied()));
    for metric in unique(rows.clone().map(|row| row.metric.as_str())) {
        let rows: Vec<_> = rows.clone().filter(|row| row.metric == metric).collect();
        let best = best(&rows);
        let unit = rows.first().map_or("", |row| row.unit.as_str());
        let cells = contenders.iter().map(|contender| {
            let row = rows.iter().find(|row| row.contender == *contender);
            let cell = number(row.map_or_else(String::new, |row| figures_of(row)));
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

fn figures_of(row: &Row) -> String {
    let values = row.values();
    let ratio = row.compared().map(|ratios| {
        let spread = figure::range(ratios.min, ratios.max, figure::ratio);
        format!("{} {} ({spread})", figure::value(values.median), figure::ratio(ratios.median))
    });
    ratio.unwrap_or_else(|| {
        let spread = figure::range(values.min, values.max, figure::value);
        if row.rounds > 1 {
            format!("{} ({spread})", figure::value(values.median))
        } else {
            figure::value(values.median)
        }
    })
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

fn changes(comparison: &Comparison) -> Table {
    let mut table = table(["scenario", "contender", "metric", "before", "now", "change", ""]);
    for change in &comparison.changes {
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
            number(figure(change.old.median)),
            number(format!("{} {unit}", figure(change.new.median))),
            number(figure::change(change.change)),
            colour.into_iter().fold(verdict, Cell::fg),
        ]);
    }
    table
}

fn verdicts(judgements: &[&targets::Judgement]) -> Table {
    let mut table = table(["", "scenario", "metric", "target", "this run", "peers"]);
    for judgement in judgements {
        let sign = match judgement.met {
            Some(true) => Cell::new("✓").fg(Color::Green),
            Some(false) => Cell::new("✗").fg(Color::Red),
            None => Cell::new(""),
        };
        table.add_row([
            sign,
            Cell::new(judgement.scenario),
            Cell::new(judgement.metric),
            number(&judgement.goal),
            number(judgement.reached.as_deref().unwrap_or("not measured")),
            Cell::new(&judgement.peers),
        ]);
    }
    table
}

fn table<'a>(header: impl IntoIterator<Item = &'a str>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    // Whether colours are shown is decided by `anstream`, as everywhere.
    table.enforce_styling();
    table.set_header(header.into_iter().map(|title| Cell::new(title).add_attribute(Attribute::Dim)));
    table
}

fn number(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}
