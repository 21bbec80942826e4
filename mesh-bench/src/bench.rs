//! One run: its options, the scenarios in turn, what they have measured.

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::RangedU64ValueParser;

use crate::contenders::Plugin;
use crate::hold;
use crate::interrupt::{Interrupted, Interruption};
use crate::metric::Metric;
use crate::outcome::{Reporting, Shared};
use crate::progress::{self, Progress};
use crate::report::Report;
use crate::sample::Sample;
use crate::scenarios::{self, Scenario};

/// The contender that all others are compared with.
pub(crate) const DIRECT: &str = "direct";

/// Only the nftables table that an agent adds to a node.
pub(crate) const UNTRACKING: &str = "mesh-agent-untracking";
/// All that an agent changes on a node, without the agent.
pub(crate) const STEERING: &str = "mesh-agent-steering";

/// Contenders that are not described in files.
const OWN: [&str; 6] = [DIRECT, "mesh-agent", "mesh-agent-hbone", "mesh-agent-proxied", UNTRACKING, STEERING];

/// What a run may be told.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Only these scenarios or contenders, by name; may be given several times, or separated by commas
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Fewer and shorter rounds: under three minutes, and less certain
    #[arg(long)]
    pub(crate) quick: bool,
    /// Compare with an earlier run, by its JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) baseline: Option<PathBuf>,
    /// Where the reports go
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub(crate) output: PathBuf,
    /// How many rounds all contenders take turns in [default: 5, with --quick 3]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=100))]
    pub(crate) rounds: Option<usize>,
    /// One more contender, described in a file; may be given several times
    #[arg(long = "contender", value_name = "FILE")]
    pub(crate) contenders: Vec<PathBuf>,
}

/// A run.
pub(crate) struct Bench {
    options: Options,
    plugins: Vec<Plugin>,
    outcome: Shared,
    interruption: Interruption,
    progress: Option<Progress>,
}

impl Bench {
    /// A run that has not begun.
    ///
    /// # Errors
    ///
    /// When an option names what there is not.
    pub(crate) fn new(options: Options) -> Result<Self> {
        let plugins = plugins(&options.contenders)?;
        check_names(&options.only, &plugins)?;
        let outcome = Shared::new(options.quick);
        Ok(Self { options, plugins, outcome, interruption: Interruption::default(), progress: None })
    }

    /// Runs every scenario that is wanted, also after one has failed, and reports what they have measured.
    ///
    /// # Errors
    ///
    /// When the baseline cannot be read, or the report cannot be written. A scenario that fails is no error but part of
    /// the report and of the exit status.
    pub(crate) fn run(mut self) -> Result<ExitCode> {
        let baseline =
            self.options.baseline.as_deref().map(Report::read).transpose().context("--baseline")?;
        let reporting = Reporting::new(self.options.output.clone(), baseline);
        hold::raise_descriptor_limit()?;
        self.interruption = Interruption::listen({
            let (outcome, reporting) = (self.outcome.clone(), reporting.clone());
            move || {
                if let Err(error) = outcome.finish(&reporting, true) {
                    progress::failure(&error);
                }
                std::process::exit(INTERRUPTED.into());
            }
        })?;
        for scenario in scenarios::ALL {
            if !self.interruption.is_raised() && self.wants_scenario(scenario.name) {
                self.run_scenario(&scenario);
            }
        }
        let interrupted = self.interruption.is_raised();
        let failed = self.outcome.finish(&reporting, interrupted)?;
        Ok(match (interrupted, failed) {
            (true, _) => ExitCode::from(INTERRUPTED),
            (false, true) => ExitCode::FAILURE,
            (false, false) => ExitCode::SUCCESS,
        })
    }

    fn run_scenario(&mut self, scenario: &Scenario) {
        self.progress = Some(Progress::start(scenario.name));
        let result = (scenario.run)(self);
        let Some(progress) = self.progress.take() else { return };
        match result {
            Ok(()) => progress.done(),
            // The signal also ends the programs that the scenario has started, so any error may be its doing.
            Err(_) if self.interruption.is_raised() => progress.failed("interrupted"),
            Err(error) => {
                let error = format!("{error:#}");
                progress.failed(&error);
                self.outcome.fail(scenario.name, error);
            }
        }
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
        name == DIRECT || only.peek().is_none() || only.any(|only| only == name)
    }

    /// Whether somebody has asked for this contender by name.
    pub(crate) fn names_contender(&self, name: &str) -> bool {
        self.options.only.iter().any(|only| only == name)
    }

    /// Contenders that are described in files.
    pub(crate) fn plugins(&self) -> &[Plugin] {
        &self.plugins
    }

    /// Whether the run is to be short.
    pub(crate) fn is_quick(&self) -> bool {
        self.options.quick
    }

    /// How many rounds interleaved contenders run.
    pub(crate) fn rounds(&self) -> usize {
        self.options.rounds.unwrap_or(if self.is_quick() { 3 } else { 5 })
    }

    /// Shows whose turn it is. Call it before each contender of each round, and hand its error on.
    ///
    /// # Errors
    ///
    /// When somebody has interrupted the run: what is recorded so far is reported.
    pub(crate) fn turn(&self, contender: &str, round: usize) -> Result<(), Interrupted> {
        self.interruption.check()?;
        if let Some(progress) = &self.progress {
            progress.turn(contender, round);
        }
        Ok(())
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
        let contender = contender.into();
        tracing::debug!(scenario, contender, metric = metric.name, round, value, unit = metric.unit);
        if value.is_finite() {
            self.outcome.add(Sample { scenario, contender, metric, round, value });
        } else {
            let error = format!("{contender} has {value} for {} in round {}", metric.name, round + 1);
            self.outcome.fail(scenario, error);
        }
    }
}

/// The exit status of a run that was interrupted, as shells have it.
const INTERRUPTED: u8 = 130;

/// The contenders that come with the harness, and those in files.
fn plugins(files: &[PathBuf]) -> Result<Vec<Plugin>> {
    let mut plugins = Plugin::built_in()?;
    for file in files {
        let plugin = Plugin::load(file)?;
        let name = plugin.name();
        if OWN.contains(&name) || plugins.iter().any(|other| other.name() == name) {
            bail!("--contender {}: there is a contender {name} already: use another name", file.display());
        }
        plugins.push(plugin);
    }
    Ok(plugins)
}

fn check_names(only: &[String], plugins: &[Plugin]) -> Result<()> {
    let scenarios = scenarios::ALL.map(|scenario| scenario.name);
    let contenders: Vec<_> = OWN.into_iter().chain(plugins.iter().map(Plugin::name)).collect();
    let known = |name: &&String| scenarios.contains(&name.as_str()) || contenders.contains(&name.as_str());
    let unknown: Vec<_> = only.iter().filter(|name| !known(name)).map(|name| format!("`{name}`")).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    bail!(
        "--only: {} is neither a scenario nor a contender\n\n  scenarios:  {}\n  contenders: {}",
        unknown.join(", "),
        scenarios.join(", "),
        contenders.join(", ")
    );
}
