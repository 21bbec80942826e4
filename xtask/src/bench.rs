//! `cargo xtask bench`: builds the mesh optimised and measures it, together with its peers, with `mesh-bench`.

use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::{self, Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{build, ebpf, process, setup, workspace::Workspace};

/// What `bench` may be told; `mesh-bench` knows which scenarios and contenders there are.
#[derive(Args)]
pub(crate) struct Options {
    /// Only these scenarios or contenders, by name (may be given several times, or separated by commas).
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Fewer and shorter rounds: under three minutes, and less certain.
    #[arg(long)]
    quick: bool,
    /// One more contender, described in a file (may be given several times).
    #[arg(long = "contender", value_name = "FILE")]
    contenders: Vec<PathBuf>,
    /// Compare with an earlier run, by its JSON.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Where the reports go [default: target/bench].
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// How many rounds all contenders take turns in [default: 5, with --quick 3].
    #[arg(long, value_name = "N")]
    rounds: Option<u8>,
}

/// `cargo xtask bench`.
pub(crate) fn task(workspace: &Workspace, options: &Options) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the benchmarks make network namespaces and load eBPF programs, which only root may: run\n\n    \
             sudo -E env PATH=\"$PATH\" cargo xtask bench"
        );
    }
    let arguments = arguments(workspace, options)?;
    setup::ensure(workspace, setup::Purpose::Measuring)?;
    ebpf::build(workspace)?;
    build::binaries(workspace, true)?;
    let programs = workspace.target().join("release");
    // What a run that was killed has left would take its share of the machine.
    let mut lab = workspace.command(programs.join("mesh-lab"));
    process::quietly(workspace, "labs of earlier runs", lab.args(["down", "--all-stale"]))?;

    let mut bench = workspace.command(programs.join("mesh-bench"));
    bench.arg("run").args(&arguments);
    // It takes our place, so that signals and the exit status are its own.
    let error = bench.exec();
    Err(error).with_context(|| format!("cannot start `{}`", process::shown(&bench)))
}

/// The options for `mesh-bench`, which runs in another directory.
fn arguments(workspace: &Workspace, options: &Options) -> Result<Vec<String>> {
    let output = match &options.output {
        Some(output) => absolute(output)?,
        None => workspace.target().join("bench").display().to_string(),
    };
    let mut arguments = vec!["--output".to_owned(), output];
    arguments.extend(options.only.iter().flat_map(|name| ["--only".to_owned(), name.clone()]));
    if options.quick {
        arguments.push("--quick".into());
    }
    if let Some(rounds) = options.rounds {
        arguments.extend(["--rounds".into(), rounds.to_string()]);
    }
    let baseline = options.baseline.iter().map(|file| ("--baseline", file));
    let contenders = options.contenders.iter().map(|file| ("--contender", file));
    for (option, file) in baseline.chain(contenders) {
        // Now, instead of after minutes of compiling.
        File::open(file).with_context(|| format!("{option}: cannot read {}", file.display()))?;
        arguments.extend([option.to_owned(), absolute(file)?]);
    }
    Ok(arguments)
}

fn absolute(path: &Path) -> Result<String> {
    let absolute = path::absolute(path).context("the working directory is gone")?;
    Ok(absolute.display().to_string())
}
