//! The same work for several contenders, in turn.

mod steps;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bench::Bench;
use crate::contenders::{AgentSetup, Contender, Drive, Place};
use crate::load::Outcome;
use crate::metric::Metric;

use self::steps::{FEW, STEPS, Step};

/// Who is compared, and in what.
pub(super) struct Matchup<'a> {
    pub(super) scenario: &'static str,
    pub(super) place: Place,
    /// This mesh, the first as it is by default.
    pub(super) meshes: &'a [AgentSetup],
    pub(super) steps: Steps,
}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Steps {
    /// Everything.
    All,
    /// That in which the kernel's part shows best.
    Few,
}

/// Brings everybody up and has every contender do everything in every round, in an order that rotates. A contender that
/// fails is out; the others go on, and the scenario has failed at their end.
pub(super) fn run(bench: &mut Bench, matchup: &Matchup<'_>) -> Result<()> {
    let mut failures = Vec::new();
    let mut contenders = start(bench, matchup, &mut failures)?;
    for round in 0..bench.rounds() {
        play(bench, matchup, round, &mut contenders, &mut failures)?;
    }
    for contender in &contenders {
        if let Err(error) = contender.prove() {
            failures.push(format!("{}: {error:#}", contender.name));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Starts all that are wanted. Variants of a contender are left out of a quick run unless they are asked for by name.
fn start(bench: &Bench, matchup: &Matchup<'_>, failures: &mut Vec<String>) -> Result<Vec<Contender>> {
    let Matchup { scenario, place, meshes, .. } = *matchup;
    let wants = |name: &str, is_variant: bool| {
        bench.names_contender(name) || (bench.wants_contender(name) && !(is_variant && bench.is_quick()))
    };
    let neighbours = meshes.first().map_or(0, |mesh| mesh.neighbours);
    let mut contenders = vec![Contender::direct(place, neighbours)?];
    let meshes = meshes.iter().enumerate().filter(|(number, mesh)| wants(mesh.name, *number > 0));
    let mut started: Vec<_> = meshes.map(|(_, mesh)| mesh.start()).collect();
    let plugins = bench.plugins().iter().filter(|plugin| plugin.takes_part(scenario));
    let plugins = plugins.filter(|plugin| wants(plugin.name(), plugin.is_variant()));
    started.extend(plugins.map(|plugin| plugin.start(scenario, place)));
    for contender in started {
        match contender {
            Ok(contender) => contenders.push(contender),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    Ok(contenders)
}

fn play(
    bench: &mut Bench,
    matchup: &Matchup<'_>,
    round: usize,
    contenders: &mut Vec<Contender>,
    failures: &mut Vec<String>,
) -> Result<()> {
    let scenario = matchup.scenario;
    let wanted = |step: &&Step| matchup.steps == Steps::All || FEW.contains(&step.name);
    let mut errors: BTreeMap<String, u64> = BTreeMap::new();
    for step in STEPS.iter().filter(wanted) {
        let mut out = Vec::new();
        for turn in 0..contenders.len() {
            let position = (turn + round) % contenders.len();
            let Some(contender) = contenders.get_mut(position) else { continue };
            bench.turn(&contender.name, round)?;
            let outcome = match measure(bench.is_quick(), contender, step) {
                Ok(outcome) => outcome,
                Err(error) => {
                    // Whoever has interrupted the run has ended the client too.
                    bench.turn(&contender.name, round)?;
                    failures.push(format!("{}: {error:#}", contender.name));
                    out.push(position);
                    continue;
                }
            };
            for (metric, value) in (step.note)(&outcome) {
                bench.record(scenario, contender.name.clone(), metric, round, value);
            }
            if !step.past_cliff {
                *errors.entry(contender.name.clone()).or_default() += outcome.failed();
            }
        }
        out.sort_unstable();
        for position in out.into_iter().rev() {
            contenders.remove(position);
        }
    }
    let metric = Metric::lower("errors", "errors");
    for contender in contenders {
        let failed = errors.get(&contender.name).copied().unwrap_or_default();
        bench.record(scenario, contender.name.clone(), metric, round, failed as f64);
    }
    Ok(())
}

fn measure(quick: bool, contender: &mut Contender, step: &Step) -> Result<Outcome> {
    let Step { name, work, connections, past_cliff, .. } = *step;
    // Who has too few ports has used them all when the warm-up is over.
    let [warm_up, window] = match (quick, past_cliff) {
        (true, false) => [80, 240],
        (true, true) => [240, 240],
        (false, false) => [300, 2000],
        (false, true) => [600, 2000],
    }
    .map(Duration::from_millis);
    let drive = Drive { work, connections, past_cliff, warm_up, window };
    let mut outcome = contender.drive(drive).context(name)?;
    if !past_cliff && outcome.completed == 0 {
        // What it is left with past the cliff, it may still be busy with. What failed counts.
        let failed = std::mem::replace(&mut outcome, contender.drive(drive).context(name)?);
        for (error, count) in failed.errors {
            *outcome.errors.entry(error).or_default() += count;
        }
    }
    tracing::info!(contender = contender.name, measurement = name, ?outcome);
    ensure!(
        past_cliff || (outcome.completed > 0 && outcome.seconds > 0.0),
        "{name}: nothing was done; errors: {:?}",
        outcome.errors
    );
    Ok(outcome)
}
