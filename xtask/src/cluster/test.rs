//! `cargo xtask cluster test`: a cluster for each CNI plugin, and the tests of `mesh-cluster-tests` on it.

use std::io::{self, PipeReader};
use std::path::PathBuf;
use std::sync::mpsc::{self, Sender};
use std::thread;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use super::{Cni, ProxyMode, UpOptions, chart, prepare, temporary::Temporary};
use crate::{images, process, progress, workspace::Workspace};

/// What `cluster test` may be told.
#[derive(Args)]
pub(super) struct Options {
    /// Run only tests whose name contains one of these.
    filter: Vec<String>,
    /// The CNI plugin of the cluster.
    #[arg(long, value_enum, default_value_t = Plugins::Both)]
    cni: Plugins,
    /// How kube-proxy translates the addresses of services [default: iptables with ptp, nftables with bridge].
    #[arg(long, value_enum)]
    kube_proxy: Option<ProxyMode>,
    /// Leave the last cluster running, to look around in.
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Plugins {
    Ptp,
    Bridge,
    Both,
}

impl Plugins {
    fn list(self) -> &'static [Cni] {
        match self {
            Self::Ptp => &[Cni::Ptp],
            Self::Bridge => &[Cni::Bridge],
            Self::Both => &[Cni::Ptp, Cni::Bridge],
        }
    }
}

/// The tests' program prints this when it has run the tests that run beside each other.
const PAUSED: &str = "paused";

/// Runs the tests on every cluster, also after one has failed. A new cluster and tests that run beside each other take all
/// there is of the processors, so clusters take turns with those. Tests that run one after another wait, mostly: they run
/// on all clusters at the same time.
pub(super) fn task(workspace: &Workspace, options: &Options) -> Result<()> {
    let mut images = prepare(workspace)?;
    images.extend(images::write_for_tests(workspace)?);
    let mut stale = workspace.command(workspace.target().join("debug/mesh-lab"));
    process::quietly(workspace, "labs of earlier runs", stale.args(["down", "--all-stale"]))?;

    let plugins = options.cni.list();
    let images = images.as_slice();
    let (go_on, hold) = io::pipe().context("no pipe")?;
    let failed = thread::scope(|scope| -> Result<Vec<&str>> {
        let mut runs = Vec::new();
        for (position, cni) in plugins.iter().enumerate() {
            let keep = options.keep && position + 1 == plugins.len();
            let go_on = go_on.try_clone().context("no pipe")?;
            let (paused, turn) = mpsc::channel();
            let run = scope.spawn(move || {
                progress::heading(format_args!("Tests on a cluster with the CNI plugin {}", cni.name()));
                on_cluster(workspace, options, *cni, keep, images, go_on, &paused)
                    .inspect_err(|error| progress::bad(format_args!("{}: {error:#}", cni.name())))
            });
            runs.push((cni.name(), run));
            // An error is the end of the run.
            let _ = turn.recv();
        }
        drop(hold);
        let ends = runs.into_iter().map(|(name, run)| (name, run.join().is_ok_and(|result| result.is_ok())));
        Ok(ends.filter(|(_, passed)| !passed).map(|(name, _)| name).collect())
    })?;
    if !failed.is_empty() {
        bail!("tests failed with {}", failed.join(" and "));
    }
    Ok(())
}

/// Runs the tests on one cluster. Says `paused` in their middle, and has them wait there for the end of `go_on`.
fn on_cluster(
    workspace: &Workspace,
    options: &Options,
    cni: Cni,
    keep: bool,
    images: &[PathBuf],
    go_on: PipeReader,
    paused: &Sender<()>,
) -> Result<()> {
    // Between them, both plugins and both modes are seen.
    let usual = if cni == Cni::Ptp { ProxyMode::Iptables } else { ProxyMode::Nftables };
    let up = UpOptions { nodes: 2, cni, kube_proxy: options.kube_proxy.unwrap_or(usual) };
    let cluster = Temporary::make(workspace, &format!("mesh-test-{}", cni.name()), &up, images, keep)?;
    let mut tests = workspace.command(workspace.target().join("debug/mesh-cluster-tests"));
    tests.args(["--cluster", cluster.name(), "--pause"]).args(chart(workspace)?).args(&options.filter);
    tests.stdin(go_on);
    let result = process::aloud_as(&format!("{:<8}", cni.name()), &mut tests, |line| {
        if line == PAUSED {
            // Nobody waits for the second time.
            let _ = paused.send(());
        }
    });
    cluster.end()?;
    result
}
