//! Statistics: samples become rows.
//!
//! Ratios are made round by round: all contenders of a round ran within seconds of each other, so a machine that is
//! slower for a while slows both sides of a ratio. The median of these ratios is the figure, the least and the greatest of
//! them its spread.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::unique;
use crate::bench::DIRECT;
use crate::metric::{Better, Metric};
use crate::sample::Sample;

/// All rounds of one contender and one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) scenario: String,
    pub(super) contender: String,
    pub(super) metric: String,
    pub(super) unit: String,
    #[serde(default)]
    pub(super) better: Better,
    /// Of the rounds' values, in `unit`.
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    /// How many rounds there were.
    pub(super) rounds: usize,
    /// The median of the rounds' ratios to `direct`; none where `direct` has no such figure.
    pub(super) ratio: Option<f64>,
    #[serde(default)]
    pub(super) ratio_min: Option<f64>,
    #[serde(default)]
    pub(super) ratio_max: Option<f64>,
}

impl Row {
    /// The rounds' values.
    pub(super) fn values(&self) -> Spread {
        Spread { median: self.median, min: self.min, max: self.max }
    }

    /// The rounds' ratios to `direct`.
    pub(super) fn ratios(&self) -> Option<Spread> {
        let median = self.ratio?;
        let [min, max] = [self.ratio_min, self.ratio_max].map(|bound| bound.unwrap_or(median));
        Some(Spread { median, min, max })
    }

    /// The ratios of a contender that is not what the ratio is to.
    pub(super) fn compared(&self) -> Option<Spread> {
        self.ratios().filter(|_| self.contender != DIRECT)
    }
}

/// The median of some values, and how far they are apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// None without values.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let [lower, upper] = [(values.len() - 1) / 2, values.len() / 2].map(|middle| values.get(middle));
        Some(Self { median: lower?.midpoint(*upper?), min, max })
    }

    /// Whether some value may belong to both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.min <= other.max && other.min <= self.max
    }
}

/// The value of each round; the median of several in one round.
type Rounds = BTreeMap<usize, f64>;

/// Rows in the order in which scenarios ran; within one by metric, then by contender, as each came first.
pub(super) fn of(samples: &[Sample]) -> Vec<Row> {
    let mut rows = Vec::new();
    for scenario in unique(samples.iter().map(|sample| sample.scenario)) {
        let samples: Vec<_> = samples.iter().filter(|sample| sample.scenario == scenario).collect();
        let contenders = unique(samples.iter().map(|sample| sample.contender.as_str()));
        for metric in unique(samples.iter().map(|sample| sample.metric.name)) {
            let rounds = |contender: &str| {
                let matching = samples
                    .iter()
                    .filter(|sample| sample.metric.name == metric && sample.contender == contender);
                rounds(matching.copied())
            };
            let Some(metric) = samples.iter().map(|sample| sample.metric).find(|found| found.name == metric)
            else {
                continue;
            };
            let direct = rounds(DIRECT);
            rows.extend(
                contenders
                    .iter()
                    .filter_map(|contender| row(scenario, contender, metric, &rounds(contender), &direct)),
            );
        }
    }
    rows
}

fn rounds<'a>(samples: impl Iterator<Item = &'a Sample>) -> Rounds {
    let mut rounds: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for sample in samples {
        rounds.entry(sample.round).or_default().push(sample.value);
    }
    rounds.into_iter().filter_map(|(round, values)| Some((round, Spread::of(values)?.median))).collect()
}

fn row(scenario: &str, contender: &str, metric: Metric, rounds: &Rounds, direct: &Rounds) -> Option<Row> {
    let Spread { median, min, max } = Spread::of(rounds.values().copied())?;
    let ratios = rounds.iter().filter_map(|(round, value)| Some(value / direct.get(round)?));
    let ratios = Spread::of(ratios.filter(|ratio| ratio.is_finite()));
    Some(Row {
        scenario: scenario.into(),
        contender: contender.into(),
        metric: metric.name.into(),
        unit: metric.unit.into(),
        better: metric.better,
        median,
        min,
        max,
        rounds: rounds.len(),
        ratio: ratios.map(|ratios| ratios.median),
        ratio_min: ratios.map(|ratios| ratios.min),
        ratio_max: ratios.map(|ratios| ratios.max),
    })
}
