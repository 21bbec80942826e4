//! `cargo xtask ci`: what must hold before a change lands. Every step runs, also after one has failed, so
//! that one run shows all there is to mend.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{chart, process, progress, workspace::Workspace};

struct Outcome {
    name: &'static str,
    again: String,
    took: Duration,
    result: Result<()>,
}

/// `cargo xtask ci`.
pub(crate) fn task(workspace: &Workspace) -> Result<()> {
    // The tests come first: they install what the other steps need.
    let mut outcomes = vec![
        run("tests", workspace.cargo().args(["xtask", "test"])),
        run("tests on clusters", workspace.cargo().args(["xtask", "cluster", "test"])),
        run("formatting", workspace.cargo().args(["fmt", "--all", "--check"])),
        run(
            "formatting of the kernel programs",
            workspace.cargo().args(["fmt", "--manifest-path", "mesh-ebpf/Cargo.toml", "--check"]),
        ),
        run(
            "lints",
            workspace.cargo().args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--all-features",
                "--",
                "-D",
                "warnings",
            ]),
        ),
        run(
            "documentation",
            workspace
                .cargo()
                .args(["doc", "--workspace", "--all-features", "--no-deps", "--document-private-items"])
                // The pages are for those who work on the code: private items are shown, so links to them work.
                .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links"),
        ),
    ];
    outcomes.push(measure("rendered chart", "cargo xtask chart --check".into(), || chart::check(workspace)));
    sum_up(&outcomes)
}

fn run(name: &'static str, command: &mut Command) -> Outcome {
    measure(name, process::shown(command), || process::aloud(command, |_| ()))
}

fn measure(name: &'static str, again: String, step: impl FnOnce() -> Result<()>) -> Outcome {
    progress::heading(format_args!("{name}: {again}"));
    let started = Instant::now();
    let result = step();
    if let Err(error) = &result {
        progress::bad(format_args!("{error:#}"));
    }
    Outcome { name, again, took: started.elapsed(), result }
}

fn sum_up(outcomes: &[Outcome]) -> Result<()> {
    progress::heading("Continuous integration");
    for outcome in outcomes {
        let line = format!("{:<36} {:>12}", outcome.name, progress::elapsed(outcome.took));
        if outcome.result.is_ok() { progress::good(line) } else { progress::bad(line) }
    }
    let failed: Vec<_> = outcomes
        .iter()
        .filter(|outcome| outcome.result.is_err())
        .map(|outcome| outcome.again.as_str())
        .collect();
    if !failed.is_empty() {
        bail!(
            "{} of {} steps failed; run them again with\n    {}",
            failed.len(),
            outcomes.len(),
            failed.join("\n    ")
        );
    }
    Ok(())
}
