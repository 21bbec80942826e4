//! One run: its options, the scenarios in turn, what they have measured.

use anyhow::Result;
use clap::Args;

use crate::metric::Metric;
use crate::sample::Sample;
use crate::scenarios;

/// What a run may be told.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Only these scenarios or contenders, by name; may be given several times, or separated by commas
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Fewer and shorter rounds: under three minutes, and less certain
    #[arg(long)]
    pub(crate) quick: bool,
}

/// A run.
pub(crate) struct Bench {
    options: Options,
    samples: Vec<Sample>,
}

impl Bench {
    pub(crate) fn new(options: Options) -> Self {
        Self { options, samples: Vec::new() }
    }

    /// Runs every scenario that is wanted.
    pub(crate) fn run(mut self) -> Result<()> {
        for scenario in scenarios::ALL {
            if self.wants_scenario(scenario.name) {
                (scenario.run)(&mut self)?;
            }
        }
        Ok(())
    }

    /// Whether the scenario is to run.
    pub(crate) fn wants_scenario(&self, name: &str) -> bool {
        let chosen = |only: &String| scenarios::ALL.iter().any(|scenario| scenario.name == only);
        !self.options.only.iter().any(chosen) || self.options.only.iter().any(|only| only == name)
    }

    /// Whether the contender is to run; `direct`, which all are compared with, always is.
    pub(crate) fn wants_contender(&self, name: &str) -> bool {
        let scenario = |only: &&String| !scenarios::ALL.iter().any(|scenario| scenario.name == *only);
        let mut only = self.options.only.iter().filter(scenario).peekable();
        name == "direct" || only.peek().is_none() || only.any(|only| only == name)
    }

    /// Whether the run is to be short.
    pub(crate) fn is_quick(&self) -> bool {
        self.options.quick
    }

    /// How many rounds interleaved contenders run.
    pub(crate) fn rounds(&self) -> usize {
        if self.is_quick() { 3 } else { 5 }
    }

    /// Notes what was measured.
    pub(crate) fn record(
        &mut self,
        scenario: &'static str,
        contender: impl Into<String>,
        metric: Metric,
        round: usize,
        value: f64,
    ) {
        self.samples.push(Sample { scenario, contender: contender.into(), metric, round, value });
    }
}
