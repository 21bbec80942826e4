//! Scenarios with traffic, from end to end: labs, agents, load, report. Needs root and the mesh's programs beside this one's.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// Runs one round of a scenario and gives the JSON of it.
fn run(arguments: &[&str], output: &Path) -> Result<Value, Box<dyn Error>> {
    let done = Command::new(env!("CARGO_BIN_EXE_mesh-bench"))
        .args(["run", "--quick", "--rounds", "1", "--output"])
        .arg(output)
        .args(arguments)
        .stdin(Stdio::null())
        .output()?;
    let json = fs::read_to_string(output.join("latest.json"))
        .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(&done.stderr)))?;
    Ok(serde_json::from_str(&json)?)
}

#[test]
fn a_scenario_is_measured() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let json = run(&["--only", "unenrolled"], directory.path())?;
    assert_eq!(json["failed"], json!([]));
    let rows = json["rows"].as_array().ok_or("no rows")?;
    for contender in ["direct", "mesh-agent"] {
        for metric in ["throughput_1", "cpu_s_per_gb", "rate_64", "p99_us_64", "cpu_ms_per_1k", "connects"] {
            let row = rows.iter().find(|row| row["contender"] == contender && row["metric"] == metric);
            let row = row.ok_or_else(|| format!("{contender} has no {metric}: {json}"))?;
            assert_eq!((&row["scenario"], &row["rounds"]), (&json!("unenrolled"), &json!(1)), "{row}");
            assert!(row["median"].as_f64() > Some(0.0) && row["ratio"].as_f64() > Some(0.0), "{row}");
        }
        let errors = rows.iter().find(|row| row["contender"] == contender && row["metric"] == "errors");
        assert_eq!(errors.ok_or("errors are not told")?["median"], 0.0);
    }
    Ok(())
}

/// What a plug-in's program says is told, and the others are measured all the same.
#[test]
fn a_contender_that_does_not_start_is_told() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("broken.yaml");
    fs::write(
        &file,
        r#"
name: broken
programs:
  near: {on: client, command: sh, args: [-c, "echo no such option >&2; exit 3"], ready: "{node_ip}:15001"}
scenarios:
  same-node-l4: {dial: "{client_node_ip}:15001", programs: [near]}
"#,
    )?;
    let file = file.to_str().ok_or("a path that is no text")?;
    let json = run(&["--contender", file, "--only", "same-node-l4,broken"], directory.path())?;
    let error = json["failed"][0]["error"].as_str().ok_or_else(|| json.to_string())?;
    for part in ["broken", "program near", "exit status: 3", "no such option"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let rows = json["rows"].as_array().ok_or("no rows")?;
    assert!(rows.iter().any(|row| row["contender"] == "direct" && row["metric"] == "rate_64"), "{json}");
    assert!(rows.iter().all(|row| row["contender"] == "direct"), "{json}");
    Ok(())
}
