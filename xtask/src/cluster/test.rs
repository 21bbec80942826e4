//! `cargo xtask cluster test`: a cluster for each CNI plugin, and the tests of `mesh-cluster-tests` on it.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use anyhow::{Result, bail};
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

/// The tests' program prints a line that begins so before those that it runs one after another.
const ALONE: &str = "one after another";

/// Runs the tests on every cluster, also after one has failed. Tests that run beside each other take all there is of the
/// processors, those that run one after another wait, mostly: the next cluster has its turn from then on.
pub(super) fn task(workspace: &Workspace, options: &Options) -> Result<()> {
    let mut images = prepare(workspace)?;
    images.extend(images::write_for_tests(workspace)?);
    let mut stale = workspace.command(workspace.target().join("debug/mesh-lab"));
    process::quietly(workspace, "labs of earlier runs", stale.args(["down", "--all-stale"]))?;

    let plugins = options.cni.list();
    let images = images.as_slice();
    let failed = thread::scope(|scope| {
        let mut turn: Option<Receiver<()>> = None;
        let mut runs = Vec::new();
        for (position, cni) in plugins.iter().enumerate() {
            let keep = options.keep && position + 1 == plugins.len();
            let (alone, next) = mpsc::channel();
            let turn = turn.replace(next);
            runs.push(scope.spawn(move || {
                // An error is the end of the one before.
                let _ = turn.map(|turn| turn.recv());
                let result = on_cluster(workspace, options, *cni, keep, images, &alone);
                result.inspect_err(|error| progress::bad(format_args!("{}: {error:#}", cni.name())))
            }));
        }
        let ends = runs.into_iter().map(|run| run.join().is_ok_and(|result| result.is_ok()));
        plugins.iter().zip(ends).filter(|(_, passed)| !passed).map(|(cni, _)| cni.name()).collect::<Vec<_>>()
    });
    if !failed.is_empty() {
        bail!("tests failed with {}", failed.join(" and "));
    }
    Ok(())
}

fn on_cluster(
    workspace: &Workspace,
    options: &Options,
    cni: Cni,
    keep: bool,
    images: &[PathBuf],
    alone: &Sender<()>,
) -> Result<()> {
    // Between them, both plugins and both modes are seen.
    let usual = if cni == Cni::Ptp { ProxyMode::Iptables } else { ProxyMode::Nftables };
    let up = UpOptions { nodes: 2, cni, kube_proxy: options.kube_proxy.unwrap_or(usual) };
    let cluster = Temporary::make(workspace, &format!("mesh-test-{}", cni.name()), &up, images, keep)?;
    let mut tests = workspace.command(workspace.target().join("debug/mesh-cluster-tests"));
    tests.args(["--cluster", cluster.name()]).args(chart(workspace)?).args(&options.filter);
    let result = process::aloud_as(&format!("{:<7}", cni.name()), &mut tests, |line| {
        if line.starts_with(ALONE) {
            // Nobody waits for the last one.
            let _ = alone.send(());
        }
    });
    cluster.end()?;
    result
}
