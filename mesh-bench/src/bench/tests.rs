use std::error::Error;
use std::fs;
use std::path::Path;

use anyhow::bail;
use clap::Parser;
use serde_json::{Value, json};

use super::*;
use crate::cli::{Arguments, Command};

const RATE: Metric = Metric::higher("rate_1", "requests/s");

fn bench(options: &[&str]) -> Result<Bench> {
    match Arguments::try_parse_from(["mesh-bench", "run"].iter().chain(options))?.command {
        Command::Run(options) => Bench::new(options),
        other => bail!("{other:?}"),
    }
}

/// Runs scenarios and gives the JSON, and whether one has failed.
fn report(mut bench: Bench, scenarios: &[Scenario], output: &Path) -> Result<(Value, bool), Box<dyn Error>> {
    for scenario in scenarios {
        bench.run_scenario(scenario);
    }
    let failed = bench.outcome.finish(&Reporting::new(output.into(), None), false)?;
    Ok((serde_json::from_str(&fs::read_to_string(output.join("latest.json"))?)?, failed))
}

#[test]
fn a_scenario_that_fails_does_not_take_figures_along() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let breaks = Scenario {
        name: "breaks",
        about: "",
        run: |bench| {
            bench.record("breaks", DIRECT, RATE, 0, 10.0);
            bail!("the server is gone")
        },
    };
    let works = Scenario {
        name: "works",
        about: "",
        run: |bench| {
            bench.record("works", DIRECT, RATE, 0, 20.0);
            Ok(())
        },
    };
    let (json, failed) = report(bench(&[])?, &[breaks, works], directory.path())?;
    assert!(failed);
    assert_eq!(json["failed"], json!([{"scenario": "breaks", "error": "the server is gone"}]));
    let rows = json["rows"].as_array().ok_or("no rows")?;
    let medians: Vec<_> = rows.iter().map(|row| (&row["scenario"], &row["median"])).collect();
    assert_eq!(medians, [(&json!("breaks"), &json!(10.0)), (&json!("works"), &json!(20.0))]);
    Ok(())
}

#[test]
fn a_figure_that_is_no_number_is_a_failure() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let divides = Scenario {
        name: "divides",
        about: "",
        run: |bench| {
            bench.record("divides", DIRECT, RATE, 1, f64::NAN);
            Ok(())
        },
    };
    let (json, failed) = report(bench(&[])?, &[divides], directory.path())?;
    assert!(failed);
    assert_eq!(json["failed"][0]["error"], "direct has NaN for rate_1 in round 2");
    assert_eq!(json["rows"], json!([]));
    Ok(())
}

#[test]
fn only_chooses_scenarios_and_contenders_apart() -> Result<()> {
    let all = bench(&[])?;
    assert!(all.wants_scenario("memory") && all.wants_contender("envoy") && all.rounds() == 5);
    let scenario = bench(&["--only", "memory", "--quick"])?;
    assert!(
        scenario.wants_scenario("memory") && !scenario.wants_scenario("policy") && scenario.rounds() == 3
    );
    assert!(scenario.wants_contender("envoy"), "a scenario says nothing of contenders");
    let contender = bench(&["--only", "envoy", "--quick", "--rounds", "7"])?;
    assert!(contender.wants_scenario("memory") && contender.rounds() == 7);
    assert!(contender.wants_contender("envoy") && contender.wants_contender(DIRECT));
    assert!(!contender.wants_contender("mesh-agent"));
    let both = bench(&["--only", "same-node-l4,envoy"])?;
    assert!(!both.wants_scenario("memory") && !both.wants_contender("haproxy"));
    Ok(())
}
