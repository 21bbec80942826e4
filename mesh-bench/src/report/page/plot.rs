//! Bar plots in SVG. Colours come from the page's style, so that they follow its scheme.

use maud::{Markup, html};

use super::super::figure;
use super::super::rows::{Row, Spread};
use super::super::unique;
use super::direction;
use crate::bench::DIRECT;

const OURS: &str = "mesh-agent";
/// Height of a row and of the bar in it.
const ROW: f64 = 24.0;
const BAR: f64 = 14.0;
/// About the width of a letter at the plots' font size.
const LETTER: f64 = 7.0;

/// A bar with whiskers.
struct Bar<'a> {
    label: String,
    /// Who it belongs to: decides on the colour.
    contender: &'a str,
    spread: Spread,
    text: String,
}

/// A metric's ratios to `direct`, a bar per contender, with a line where `direct` is.
pub(super) fn ratios(rows: &[&Row], contenders: &[&str]) -> Markup {
    let bars: Vec<_> = rows
        .iter()
        .filter_map(|row| {
            let spread = row.compared()?;
            let text = figure::ratio(spread.median);
            Some(Bar { label: row.contender.clone(), contender: &row.contender, spread, text })
        })
        .collect();
    let Some(row) = rows.first() else { return html! {} };
    let direct = rows.iter().find(|row| row.contender == DIRECT);
    let caption = html! {
        strong { (row.metric) } " " small {
            (direction(row.better))
            @if let Some(direct) = direct { " · direct " (figure::value(direct.median)) " " (direct.unit) }
        }
    };
    let description = format!("{} as a ratio to direct, {}", row.metric, direction(row.better));
    draw(&caption, &description, &bars, contenders, Some(1.0), 190.0)
}

/// What has no ratio: a plot per unit, a bar per metric and contender.
pub(super) fn values(rows: &[&Row], contenders: &[&str]) -> Vec<Markup> {
    let alone =
        |row: &&Row| !rows.iter().any(|other| other.metric == row.metric && other.compared().is_some());
    let rows: Vec<&Row> = rows.iter().copied().filter(alone).collect();
    let several = contenders.len() > 1;
    let plot = |unit: &str| {
        let bars: Vec<_> = rows
            .iter()
            .filter(|row| row.unit == unit)
            .map(|row| Bar {
                label: if several {
                    format!("{}, {}", row.metric, row.contender)
                } else {
                    row.metric.clone()
                },
                contender: &row.contender,
                spread: row.values(),
                text: figure::value(row.median),
            })
            .collect();
        draw(&html! { strong { (unit) } }, &format!("Figures in {unit}"), &bars, contenders, None, 420.0)
    };
    unique(rows.iter().map(|row| row.unit.as_str())).into_iter().map(plot).collect()
}

/// What was reached against what was wanted: a bar, a whisker and a mark, from 0 to a little more than `direct`.
pub(super) fn bullet(reached: Spread, goal: f64, met: bool) -> Markup {
    const WIDTH: f64 = 110.0;
    let scale = WIDTH / greatest([1.05, goal, reached.max].into_iter());
    let class = if met { "bar met" } else { "bar missed" };
    let title = format!("{} of a target of {}", figure::ratio(reached.median), figure::ratio(goal));
    html! {
        svg.bullet width=(WIDTH) height="20" viewBox={ "0 0 " (WIDTH) " 20" } role="img" aria-label=(title) {
            rect.track x="0" y="6" width=(WIDTH) height="8" rx="2" {}
            rect class=(class) x="0" y="6" width=(coordinate(reached.median * scale)) height="8" rx="2" {}
            (whisker(reached, 0.0, scale, 10.0, 3.0))
            line.goal x1=(coordinate(goal * scale)) x2=(coordinate(goal * scale)) y1="1" y2="19" {}
        }
    }
}

fn draw(
    caption: &Markup,
    description: &str,
    bars: &[Bar<'_>],
    contenders: &[&str],
    reference: Option<f64>,
    length: f64,
) -> Markup {
    let letters = |text: &str| LETTER * f64::from(u16::try_from(text.chars().count()).unwrap_or(u16::MAX));
    let left = greatest(bars.iter().map(|bar| letters(&bar.label))) + 10.0;
    let right = greatest(bars.iter().map(|bar| letters(&bar.text))) + 12.0;
    let top = if reference.is_some() { 18.0 } else { 4.0 };
    let scale = length / greatest(bars.iter().map(|bar| bar.spread.max).chain(reference));
    let height = top + ROW * f64::from(u16::try_from(bars.len()).unwrap_or(u16::MAX)) + 2.0;
    let width = left + length + right;
    let told: Vec<_> = bars.iter().map(|bar| format!("{} {}", bar.label, bar.text)).collect();
    html! {
        figure {
            figcaption { (caption) }
            svg width=(coordinate(width)) height=(coordinate(height)) viewBox={ "0 0 " (coordinate(width)) " " (coordinate(height)) }
                role="img" aria-label={ (description) ": " (told.join(", ")) }
            {
                line.axis x1=(coordinate(left)) x2=(coordinate(left)) y1=(top) y2=(coordinate(height)) {}
                @if let Some(reference) = reference {
                    @let x = coordinate(left + reference * scale);
                    line.reference x1=(x) x2=(x) y1=(top - 4.0) y2=(coordinate(height)) {}
                    text.faint x=(x) y=(top - 7.0) text-anchor="middle" { (DIRECT) }
                }
                @for (bar, middle) in bars.iter().zip(middles(top)) {
                    text x=(coordinate(left - 8.0)) y=(coordinate(middle + 4.0)) text-anchor="end" { (bar.label) }
                    rect class={ "bar " (colour(bar.contender, contenders)) } x=(coordinate(left)) y=(coordinate(middle - BAR / 2.0))
                        width=(coordinate(bar.spread.median.max(0.0) * scale)) height=(BAR) rx="2" {}
                    (whisker(bar.spread, left, scale, middle, 4.0))
                    text.figure x=(coordinate(width - 2.0)) y=(coordinate(middle + 4.0)) text-anchor="end" { (bar.text) }
                }
            }
        }
    }
}

/// From the least to the greatest, with ends; nothing where they are the same.
fn whisker(spread: Spread, left: f64, scale: f64, y: f64, size: f64) -> Markup {
    let [from, to] = [spread.min, spread.max].map(|value| coordinate(left + value.max(0.0) * scale));
    let [above, below] = [y - size, y + size].map(coordinate);
    let y = coordinate(y);
    html! {
        @if from != to {
            path.whisker d={ "M" (from) " " (above) "V" (below) "M" (from) " " (y) "H" (to) "M" (to) " " (above) "V" (below) } {}
        }
    }
}

fn middles(top: f64) -> impl Iterator<Item = f64> {
    std::iter::successors(Some(top + ROW / 2.0), |middle| Some(middle + ROW))
}

/// The style's class of a contender: ours and the first others have colours of their own.
fn colour(contender: &str, contenders: &[&str]) -> String {
    match contender {
        DIRECT => "direct".into(),
        OURS => "ours".into(),
        // The same agent, told to do its work in another way.
        _ if contender.starts_with(OURS) => "variant".into(),
        _ => {
            let others = contenders.iter().filter(|other| **other != DIRECT && !other.starts_with(OURS));
            format!("peer{}", others.take_while(|other| **other != contender).count() % 6)
        }
    }
}

/// The greatest of some values; 1 if all are 0, so that one can divide by it.
fn greatest(values: impl Iterator<Item = f64>) -> f64 {
    let greatest = values.fold(0.0, f64::max);
    if greatest > 0.0 { greatest } else { 1.0 }
}

/// Tenths of a pixel are enough.
fn coordinate(value: f64) -> String {
    format!("{value:.1}")
}
