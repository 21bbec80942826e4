//! `cargo xtask cluster test`: a cluster for each CNI plugin, and the tests of `mesh-cluster-tests` on it.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use super::{Cni, ProxyMode, UpOptions, chart, prepare, temporary::Temporary};
use crate::{images, process, progress, workspace::Workspace};

/// What `cluster test` may be told.
#[derive(Args)]
pub(super) struct Options {
    /// Run only tests whose name contains one of these.
    filter: Vec<String>,
    /// The CNI plugin of the cluster; both take turns.
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

/// Runs the tests on every cluster, also after one has failed.
pub(super) fn task(workspace: &Workspace, options: &Options) -> Result<()> {
    let mut images = prepare(workspace)?;
    images.extend(images::write_for_tests(workspace)?);
    let mut stale = workspace.command(workspace.target().join("debug/mesh-lab"));
    process::quietly(workspace, "labs of earlier runs", stale.args(["down", "--all-stale"]))?;

    let mut failed = Vec::new();
    let plugins = options.cni.list();
    for (position, cni) in plugins.iter().enumerate() {
        progress::heading(format_args!("Tests on a cluster with the CNI plugin {}", cni.name()));
        let keep = options.keep && position + 1 == plugins.len();
        if let Err(error) = on_cluster(workspace, options, *cni, keep, &images) {
            progress::bad(format_args!("{error:#}"));
            failed.push(cni.name());
        }
    }
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
) -> Result<()> {
    // Between them, both plugins and both modes are seen.
    let usual = if cni == Cni::Ptp { ProxyMode::Iptables } else { ProxyMode::Nftables };
    let up = UpOptions { nodes: 2, cni, kube_proxy: options.kube_proxy.unwrap_or(usual) };
    let cluster = Temporary::make(workspace, &format!("mesh-test-{}", cni.name()), &up, images, keep)?;
    let mut tests = workspace.command(workspace.target().join("debug/mesh-cluster-tests"));
    tests.args(["--cluster", cluster.name()]).args(chart(workspace)?).args(&options.filter);
    let result = process::aloud(&mut tests, |_| ());
    cluster.end()?;
    result
}
