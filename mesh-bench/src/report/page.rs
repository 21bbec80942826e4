//! The report as a page: one file without scripts or anything from elsewhere, for screens light and dark, and paper.

mod plot;
#[cfg(test)]
mod tests;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::baseline::{Comparison, Verdict};
use super::rows::Row;
use super::targets::Reached;
use super::{Report, figure, targets, unique};
use crate::metric::Better;
use crate::scenarios;

const STYLE: &str = include_str!("page/style.css");

/// The page.
pub(super) fn render(report: &Report, comparison: Option<&Comparison>) -> String {
    let judgements = targets::judge(report);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Benchmarks of the mesh, " (report.date) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "Benchmarks of the mesh" }
                    p.lead {
                        "The same work done directly, through this mesh and through its peers, in turn within one run. "
                        "Ratios are to " em { "direct" } " in the same round; whiskers and brackets go from the least "
                        "to the greatest of the rounds."
                    }
                    p.meta { time datetime=(report.date) { (report.date) } " · " (report.machine.summary())
                        @if let Some(revision) = report.machine.revision() { " · commit " (revision) } }
                    @let caveats = report.caveats();
                    @if !caveats.is_empty() {
                        ul.caveats { @for caveat in &caveats { li { (caveat) } } }
                    }
                }
                (contents(report, comparison))
                main {
                    (summary(report, &judgements))
                    @for scenario in report.scenarios() { (section(report, scenario)) }
                    @if let Some(comparison) = comparison { (changes(comparison)) }
                    (machine(report))
                }
                footer { p {
                    "Made by " code { "cargo xtask bench" } ". BENCHMARKS.md says what is measured and how to repeat it; "
                    "latest.json beside this page has every sample."
                } }
            }
        }
    };
    page.into_string()
}

fn contents(report: &Report, comparison: Option<&Comparison>) -> Markup {
    html! {
        nav aria-label="Contents" { ul {
            li { a href="#targets" { "Targets" } }
            @for scenario in report.scenarios() { li { a href={ "#" (scenario) } { (scenario) } } }
            @if comparison.is_some() { li { a href="#baseline" { "Baseline" } } }
            li { a href="#machine" { "Machine" } }
        } }
    }
}

fn summary(report: &Report, judgements: &[targets::Judgement]) -> Markup {
    html! {
        section #targets {
            h2 { "Targets" }
            p { (targets::summary(judgements)) ". Ratios to direct unless a unit is given; figures of peers in brackets were "
                "measured elsewhere, on a machine of two cores." }
            div.scroll { table {
                thead { tr {
                    th scope="col" { "Scenario" } th scope="col" { span.hidden { "Verdict" } } th scope="col" { "Metric" }
                    th.number scope="col" { "Target" } th.number scope="col" { "This run" }
                    th scope="col" { span.hidden { "Drawn" } } th scope="col" { "Peers" }
                } }
                @for group in judgements.chunk_by(|one, next| (one.scenario, one.what) == (next.scenario, next.what)) {
                    tbody { @for (position, judgement) in group.iter().enumerate() { tr {
                        @if position == 0 { th scope="rowgroup" rowspan=(group.len()) {
                            @if report.rows_of(judgement.scenario).next().is_some() {
                                a href={ "#" (judgement.scenario) } { (judgement.scenario) }
                            } @else { (judgement.scenario) }
                            br; small { (judgement.what) }
                        } }
                        (verdict(judgement))
                    } } }
                }
            } }
        }
    }
}

fn verdict(judgement: &targets::Judgement) -> Markup {
    let (sign, word, class) = match judgement.met() {
        Some(true) => ("✓", "met", "good"),
        Some(false) => ("✗", "not met", "bad"),
        None => ("–", "not measured", "faint"),
    };
    let reached = judgement.reached.as_ref();
    html! {
        td class={ "verdict " (class) } { span aria-hidden="true" { (sign) } " " (word) }
        td { code { (judgement.metric) } }
        td.number { (judgement.goal) }
        td.number { (reached.map_or("", |reached| reached.text.as_str())) }
        td { @if let Some(Reached { drawn: Some((ratios, goal)), met, .. }) = reached {
            (plot::bullet(*ratios, *goal, *met))
        } }
        td.peers { (judgement.peers) }
    }
}

fn section(report: &Report, scenario: &str) -> Markup {
    let rows: Vec<&Row> = report.rows_of(scenario).collect();
    let contenders = unique(rows.iter().map(|row| row.contender.as_str()));
    let about = scenarios::ALL.iter().find(|known| known.name == scenario).map_or("", |known| known.about);
    html! {
        section id=(scenario) {
            h2 { (scenario) }
            p { (about) }
            div.plots {
                @for metric in unique(rows.iter().map(|row| row.metric.as_str())) {
                    @let rows: Vec<&Row> = rows.iter().copied().filter(|row| row.metric == metric).collect();
                    @if rows.iter().any(|row| row.compared().is_some()) { (plot::ratios(&rows, &contenders)) }
                }
            }
            @for plot in plot::values(&rows, &contenders) { (plot) }
            (table(&rows))
        }
    }
}

/// Every figure of some rows.
fn table(rows: &[&Row]) -> Markup {
    html! {
        div.scroll { table {
            thead { tr {
                th scope="col" { "Metric" } th scope="col" { "Contender" }
                th.number scope="col" { "Median" } th.number scope="col" { "Min–max" } th scope="col" { "Unit" }
                th.number scope="col" { "Rounds" }
                th.number scope="col" { "Ratio" } th.number scope="col" { "Min–max" }
            } }
            @for metric in unique(rows.iter().map(|row| row.metric.as_str())) {
                @let rows: Vec<_> = rows.iter().filter(|row| row.metric == metric).collect();
                tbody { @for (position, row) in rows.iter().enumerate() { tr {
                    @if position == 0 { th scope="rowgroup" rowspan=(rows.len()) { code { (metric) } } }
                    td { (row.contender) }
                    td.number { (figure::value(row.median)) }
                    td.number { (figure::range(row.min, row.max, figure::value)) }
                    td { (row.unit) } td.number { (row.rounds) }
                    @if let Some(ratios) = row.ratios() {
                        td.number { strong { (figure::ratio(ratios.median)) } }
                        td.number { (figure::range(ratios.min, ratios.max, figure::ratio)) }
                    } @else { td {} td {} }
                } } }
            }
        } }
    }
}

fn changes(comparison: &Comparison) -> Markup {
    html! {
        section #baseline {
            h2 { "Against the run of " time datetime=(comparison.date) { (comparison.date) } }
            p { (comparison.summary()) " A change is better or worse when it is beyond the spread of both runs." }
            div.scroll { table {
                thead { tr {
                    th scope="col" { "Scenario" } th scope="col" { "Contender" } th scope="col" { "Metric" }
                    th.number scope="col" { "Before" } th.number scope="col" { "Now" } th scope="col" { "Unit" }
                    th.number scope="col" { "Change" } th scope="col" { "" }
                } }
                tbody { @for change in &comparison.changes {
                    @let figure = if change.unit.is_some() { figure::value } else { figure::ratio };
                    @let class = match change.verdict {
                        Verdict::Better => "good", Verdict::Worse => "bad", Verdict::Same => "faint",
                    };
                    tr {
                        td { (change.scenario) } td { (change.contender) } td { code { (change.metric) } }
                        td.number { (figure(change.old.median)) } td.number { (figure(change.new.median)) }
                        td { (change.unit.as_deref().unwrap_or("of direct")) }
                        td.number { (figure::change(change.change)) }
                        td class={ "verdict " (class) } { (change.verdict.word()) }
                    }
                } }
            } }
        }
    }
}

fn machine(report: &Report) -> Markup {
    let machine = &report.machine;
    let memory = format!("{} MB", machine.memory_mb);
    let commit = machine.commit.as_deref().map(|commit| {
        if machine.dirty == Some(true) { format!("{commit} with changes") } else { commit.to_owned() }
    });
    html! {
        section #machine {
            h2 { "Machine" }
            dl {
                dt { "Processor" } dd { (machine.cpu) ", " (machine.cores) " cores" }
                dt { "Memory" } dd { (memory) }
                dt { "Kernel" } dd { (machine.kernel) }
                dt { "System" } dd { (machine.system) }
                dt { "Virtualization" } dd { (machine.virtualization.as_deref().unwrap_or("unknown")) }
                dt { "Congestion control" } dd { (machine.congestion_control.as_deref().unwrap_or("unknown")) }
                dt { "Commit" } dd { (commit.as_deref().unwrap_or("unknown")) }
                @for (contender, version) in &machine.versions { dt { (contender) } dd { (version) } }
            }
        }
    }
}

/// Which way a metric is better, in words.
fn direction(better: Better) -> &'static str {
    match better {
        Better::Higher => "more is better",
        Better::Lower => "less is better",
    }
}
