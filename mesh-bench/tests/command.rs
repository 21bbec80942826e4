//! The program as one calls it.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

type Outcome = Result<(), Box<dyn Error>>;

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-bench"));
    command.args(arguments).stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

/// The error of a call that is refused before anything is measured.
fn refused(arguments: &[&str]) -> Result<String, Box<dyn Error>> {
    let Output { status, stdout, stderr } = bench(arguments).output()?;
    assert!(!status.success(), "{arguments:?}");
    assert!(stdout.is_empty(), "{arguments:?}");
    Ok(String::from_utf8(stderr)?)
}

#[test]
fn unknown_names_are_told_with_those_that_there_are() -> Outcome {
    let error = refused(&["run", "--only", "policy,nonsense", "--only", "mesh-agnet"])?;
    assert!(error.contains("`nonsense`, `mesh-agnet`") && !error.contains("`policy`"), "{error}");
    assert!(
        error.contains("same-node-l4, two-nodes-plain") && error.contains("direct, mesh-agent"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_baseline_must_be_a_run() -> Outcome {
    let directory = tempfile::tempdir()?;
    let foreign = directory.path().join("foreign.json");
    let foreign = foreign.to_str().ok_or("a path that is no text")?;
    fs::write(foreign, "{\"rows\": 7}")?;
    let error = refused(&["run", "--only", "policy", "--baseline", foreign])?;
    for part in ["--baseline", foreign, "not the JSON of a run", "cargo xtask bench", "line 1"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let error = refused(&["run", "--only", "policy", "--baseline", "/does/not/exist.json"])?;
    assert!(error.contains("cannot read /does/not/exist.json"), "{error}");
    Ok(())
}

#[test]
fn rounds_are_a_number_of_rounds() -> Outcome {
    for rounds in ["0", "101", "many"] {
        let error = refused(&["run", "--rounds", rounds])?;
        assert!(error.contains("--rounds"), "{error}");
    }
    Ok(())
}

#[test]
fn workers_are_not_shown() -> Outcome {
    let help = String::from_utf8(bench(&["--help"]).output()?.stdout)?;
    assert!(help.contains("run ") && help.contains("show ") && !help.contains("hold"), "{help}");
    Ok(())
}

/// A run that is interrupted after the first figures reports these. What it has written is then shown and compared.
#[test]
fn an_interrupted_run_reports_what_there_is() -> Outcome {
    let directory = tempfile::tempdir()?;
    let output = directory.path().to_str().ok_or("a path that is no text")?;
    let mut run = bench(&["run", "--only", "policy", "--rounds", "100", "--output", output])
        .env("RUST_LOG", "mesh_bench=debug")
        .env("NO_COLOR", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let pid = Pid::from_raw(i32::try_from(run.id())?);
    let mut told = BufReader::new(run.stderr.take().ok_or("no standard error")?).lines();
    let mut log = String::new();
    for line in told.by_ref() {
        let line = line?;
        let first = line.contains("check_us_at_10_policies");
        log = log + &line + "\n";
        if first {
            kill(pid, Signal::SIGINT)?;
            break;
        }
    }
    for line in told {
        log = log + &line? + "\n";
    }
    let ended = run.wait_with_output()?;
    assert_eq!(ended.status.code(), Some(130), "{log}");
    let table = String::from_utf8(ended.stdout)?;
    assert!(table.contains("check_us_at_10_policies") && table.contains("interrupted"), "{table}{log}");
    assert!(!table.contains('\u{1b}'), "colours where there is no terminal: {table}");

    let latest = format!("{output}/latest.json");
    let report: Value = serde_json::from_str(&fs::read_to_string(&latest)?)?;
    assert_eq!(report["interrupted"], true);
    assert_eq!(report["failed"], Value::Array(Vec::new()));
    assert!(report["machine"]["cores"].as_u64().is_some_and(|cores| cores > 0), "{report}");
    assert!(fs::read_to_string(format!("{output}/latest.html"))?.contains("check_us_at_10_policies"));

    let shown = bench(&["show", &latest, "--baseline", &latest]).output()?;
    let shown = String::from_utf8(shown.stdout)?;
    assert!(shown.contains("0 better, 0 worse"), "{shown}");
    Ok(())
}
