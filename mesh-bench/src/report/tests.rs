use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::baseline::{Verdict, compare};
use super::*;
use crate::metric::Metric;

pub(super) const RATE: Metric = Metric::higher("rate_64", "requests/s");
pub(super) const DELAY: Metric = Metric::lower("p99_us_64", "µs");
const FRESH: Metric = Metric::lower("rss_fresh_mb", "MB");

/// Samples of a scenario: the values of each contender's rounds.
pub(super) fn samples(scenario: &'static str, metric: Metric, contenders: &[(&str, &[f64])]) -> Vec<Sample> {
    let rounds = |(contender, values): &(&str, &[f64])| {
        let contender = (*contender).to_owned();
        let sample =
            move |(round, value)| Sample { scenario, contender: contender.clone(), metric, round, value };
        values.iter().copied().enumerate().map(sample).collect::<Vec<_>>()
    };
    contenders.iter().flat_map(rounds).collect()
}

pub(super) fn report(samples: Vec<Sample>) -> Report {
    let machine = Machine {
        cpu: "A processor".into(),
        cores: 2,
        memory_mb: 8_000,
        kernel: "6.18.0".into(),
        system: "Debian".into(),
        virtualization: Some("kvm".into()),
        congestion_control: Some("cubic".into()),
        commit: Some("0123456789abcdef0123456789abcdef01234567".into()),
        dirty: Some(false),
        versions: BTreeMap::from([("envoy".into(), "1.40.0".into())]),
    };
    let report = Report::new(machine, Outcome { samples, ..Outcome::default() });
    Report { date: "2026-11-21T08:00:00Z".into(), ..report }
}

/// A run in which a contender does so much of what `direct` does.
fn run_with_ratios(ratios: &[f64]) -> Report {
    let direct = vec![100.0; ratios.len()];
    let values: Vec<_> = ratios.iter().map(|ratio| ratio * 100.0).collect();
    report(samples("same-node-l4", RATE, &[("direct", &direct), ("mesh-agent", &values)]))
}

#[test]
fn ratios_are_made_round_by_round() {
    // The machine is half as fast in the second round: the medians' ratio would be 0.45 / 1.0.
    let samples =
        samples("same-node-l4", RATE, &[("direct", &[100.0, 50.0, 200.0]), ("envoy", &[45.0, 25.0, 80.0])]);
    let report = report(samples);
    let [direct, envoy] = report.rows.as_slice() else { panic!("{:?}", report.rows) };
    assert_eq!((direct.median, direct.min, direct.max, direct.rounds), (100.0, 50.0, 200.0, 3));
    assert_eq!(direct.ratio, Some(1.0));
    assert_eq!((envoy.median, envoy.min, envoy.max), (45.0, 25.0, 80.0));
    assert_eq!((envoy.ratio, envoy.ratio_min, envoy.ratio_max), (Some(0.45), Some(0.4), Some(0.5)));
}

#[test]
fn the_median_of_an_even_number_is_between_the_middle_ones() {
    let report = report(samples("memory", FRESH, &[("mesh-agent", &[4.0, 1.0, 2.0, 8.0])]));
    assert_eq!(report.rows[0].median, 3.0);
}

#[test]
fn there_are_ratios_only_where_direct_has_the_same_round() {
    let mut all = samples("same-node-l4", RATE, &[("direct", &[100.0]), ("mesh-agent", &[90.0, 10.0])]);
    all.extend(samples("same-node-l4", DELAY, &[("mesh-agent", &[7.0])]));
    all.extend(samples("two-nodes-plain", RATE, &[("direct", &[0.0]), ("mesh-agent", &[90.0])]));
    let report = report(all);
    let ratio =
        |scenario, metric| report.row(scenario, "mesh-agent", metric).map(|row| (row.rounds, row.ratio));
    assert_eq!(ratio("same-node-l4", "rate_64"), Some((2, Some(0.9))));
    assert_eq!(ratio("same-node-l4", "p99_us_64"), Some((1, None)));
    assert_eq!(ratio("two-nodes-plain", "rate_64"), Some((1, None)), "nothing is a multiple of 0");
}

#[test]
fn several_samples_of_a_round_count_as_their_median() {
    let mut all = samples("memory", FRESH, &[("mesh-agent", &[10.0])]);
    all.extend(samples("memory", FRESH, &[("mesh-agent", &[20.0, 3.0])]));
    let report = report(all);
    let [row] = report.rows.as_slice() else { panic!("{:?}", report.rows) };
    assert_eq!((row.rounds, row.min, row.max), (2, 3.0, 15.0));
}

#[test]
fn rows_keep_the_order_in_which_things_were_measured() {
    let mut all = samples("two-nodes-plain", RATE, &[("direct", &[1.0]), ("envoy", &[1.0])]);
    all.extend(samples("two-nodes-plain", DELAY, &[("envoy", &[1.0]), ("direct", &[1.0])]));
    all.extend(samples("memory", FRESH, &[("mesh-agent", &[1.0])]));
    let report = report(all);
    let order = report.rows.iter().map(|row| format!("{} {} {}", row.scenario, row.metric, row.contender));
    assert_eq!(
        order.collect::<Vec<_>>(),
        [
            "two-nodes-plain rate_64 direct",
            "two-nodes-plain rate_64 envoy",
            "two-nodes-plain p99_us_64 direct",
            "two-nodes-plain p99_us_64 envoy",
            "memory rss_fresh_mb mesh-agent",
        ]
    );
}

#[test]
fn the_json_has_the_shape_that_was_promised() {
    let mut all = samples("same-node-l4", DELAY, &[("direct", &[50.0]), ("mesh-agent", &[75.0])]);
    all.extend(samples("memory", FRESH, &[("mesh-agent", &[9.5])]));
    let mut report = report(all);
    report.failed.push(Failure { scenario: "control".into(), error: "no".into() });
    let row = |scenario: &str, contender: &str, metric: &str, unit: &str, value: f64, ratio: Option<f64>| {
        json!({
            "scenario": scenario, "contender": contender, "metric": metric, "unit": unit, "better": "lower",
            "median": value, "min": value, "max": value, "rounds": 1,
            "ratio": ratio, "ratio_min": ratio, "ratio_max": ratio,
        })
    };
    let sample = |scenario: &str, contender: &str, metric: &str, value: f64| json!({"scenario": scenario, "contender": contender, "metric": metric, "round": 0, "value": value});
    let expected = json!({
        "machine": {
            "cpu": "A processor", "cores": 2, "memory_mb": 8000, "kernel": "6.18.0", "system": "Debian",
            "virtualization": "kvm", "congestion_control": "cubic", "commit": "0123456789abcdef0123456789abcdef01234567", "dirty": false,
            "versions": {"envoy": "1.40.0"},
        },
        "date": "2026-11-21T08:00:00Z",
        "rows": [
            row("same-node-l4", "direct", "p99_us_64", "µs", 50.0, Some(1.0)),
            row("same-node-l4", "mesh-agent", "p99_us_64", "µs", 75.0, Some(1.5)),
            row("memory", "mesh-agent", "rss_fresh_mb", "MB", 9.5, None),
        ],
        "failed": [{"scenario": "control", "error": "no"}],
        "interrupted": false,
        "quick": false,
        "samples": [
            sample("same-node-l4", "direct", "p99_us_64", 50.0),
            sample("same-node-l4", "mesh-agent", "p99_us_64", 75.0),
            sample("memory", "mesh-agent", "rss_fresh_mb", 9.5),
        ],
    });
    assert_eq!(serde_json::to_value(&report).unwrap(), expected);
}

#[test]
fn what_is_written_can_be_read_and_nothing_else_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("deep/bench");
    let report = run_with_ratios(&[0.9, 0.95]);
    let [latest, dated, page] = report.write(&output, None).unwrap();
    assert_eq!(fs::read(&latest).unwrap(), fs::read(&dated).unwrap());
    assert!(fs::read_to_string(&page).unwrap().starts_with("<!DOCTYPE html>"));
    let read = Report::read(&latest).unwrap();
    assert_eq!((read.rows, read.machine), (report.rows, report.machine));
    let names = fs::read_dir(&output).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["2026-11-21T08-00-00Z.json", "latest.html", "latest.json"]);
}

#[test]
fn a_run_with_the_promised_keys_only_can_be_compared_with() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("old.json");
    let row = json!({
        "scenario": "same-node-l4", "contender": "mesh-agent", "metric": "rate_64", "unit": "requests/s",
        "median": 50.0, "min": 49.0, "max": 51.0, "rounds": 3, "ratio": 0.5,
    });
    let old: Value = json!({"machine": {"cpu": "Another"}, "date": "2026-01-01T00:00:00Z", "rows": [row]});
    fs::write(&path, old.to_string()).unwrap();
    let comparison = compare(&Report::read(&path).unwrap(), &run_with_ratios(&[0.9, 0.91, 0.92]));
    let [change] = comparison.changes.as_slice() else { panic!("{comparison:?}") };
    assert_eq!(change.verdict, Verdict::Better);
    assert!(!comparison.same_machine);
}

#[test]
fn a_change_counts_when_it_is_beyond_the_spread_of_both() {
    let verdict = |old: &[f64], new: &[f64]| {
        let comparison = compare(&run_with_ratios(old), &run_with_ratios(new));
        let ours = |change: &&baseline::Change| change.contender == "mesh-agent";
        let change = comparison.changes.iter().find(ours).unwrap();
        assert_eq!(change.unit, None, "ratios are compared where there are ratios");
        change.verdict
    };
    assert_eq!(verdict(&[0.50, 0.52, 0.54], &[0.60, 0.62, 0.64]), Verdict::Better);
    assert_eq!(verdict(&[0.60, 0.62, 0.64], &[0.50, 0.52, 0.54]), Verdict::Worse);
    assert_eq!(verdict(&[0.50, 0.52, 0.61], &[0.60, 0.62, 0.64]), Verdict::Same, "the spreads overlap");
    assert_eq!(verdict(&[0.600], &[0.606]), Verdict::Same, "too little to tell");
}

#[test]
fn less_is_better_where_it_is_and_rows_may_be_missing() {
    let old = samples("memory", FRESH, &[("mesh-agent", &[20.0, 21.0]), ("envoy", &[50.0])]);
    let mut new = samples("memory", FRESH, &[("mesh-agent", &[9.0, 10.0])]);
    new.extend(samples("memory", DELAY, &[("mesh-agent", &[1.0])]));
    let comparison = compare(&report(old), &report(new));
    let [change] = comparison.changes.as_slice() else { panic!("{comparison:?}") };
    assert_eq!((change.verdict, change.unit.as_deref()), (Verdict::Better, Some("MB")));
    assert_eq!((comparison.new, comparison.gone), (1, 1));
    assert_eq!(comparison.summary(), "1 better, 0 worse, 0 the same; 1 not in the baseline; 1 only there.");
}

#[test]
fn targets_are_judged_by_what_was_measured() {
    let mut all = samples(
        "same-node-l4",
        RATE,
        &[("direct", &[100.0]), ("mesh-agent", &[96.0]), ("mesh-agent-proxied", &[50.0]), ("envoy", &[20.0])],
    );
    all.extend(samples("memory", FRESH, &[("mesh-agent", &[10.5])]));
    let judgements = targets::judge(&report(all));
    let about = |metric| judgements.iter().find(|judgement| judgement.metric == metric).unwrap();
    let rate = about("rate_64");
    assert_eq!((rate.goal.as_str(), rate.met()), ("≥ 0.95", Some(true)));
    assert_eq!(rate.peers, "envoy 0.20 (ztunnel 0.13–0.26)", "another mode of the agent is no peer");
    assert_eq!((about("rss_fresh_mb").goal.as_str(), about("rss_fresh_mb").met()), ("≤ 10 MB", Some(false)));
    assert_eq!(about("connects").met(), None);
    assert!(targets::summary(&judgements).starts_with("1 of 2 targets met, "));
}

#[test]
fn an_unenrolled_pod_may_lose_no_more_than_direct_varies() {
    let met = |direct: &[f64], agent: &[f64]| {
        let report = report(samples("unenrolled", RATE, &[("direct", direct), ("mesh-agent", agent)]));
        let judgements = targets::judge(&report);
        judgements
            .iter()
            .find(|judgement| judgement.scenario == "unenrolled" && judgement.metric == "rate_64")
            .unwrap()
            .met()
    };
    assert_eq!(met(&[100.0, 100.0], &[98.0, 98.0]), Some(true));
    assert_eq!(met(&[100.0, 100.0], &[90.0, 90.0]), Some(false));
    assert_eq!(met(&[80.0, 100.0, 120.0], &[72.0, 90.0, 108.0]), Some(true));
}

#[test]
fn a_reader_is_told_what_the_figures_lack() {
    let mut report = run_with_ratios(&[1.0]);
    assert!(report.caveats().is_empty());
    report.failed.push(Failure { scenario: "control".into(), error: "no port".into() });
    (report.interrupted, report.quick) = (true, true);
    assert_eq!(report.caveats().len(), 3);
    assert_eq!(report.caveats()[0], "control failed: no port");
}
