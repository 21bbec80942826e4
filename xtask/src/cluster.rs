//! `cargo xtask cluster`: real Kubernetes clusters on this machine, without Docker. `mesh-lab` runs them; what they need is made here.

mod demo;
mod temporary;
mod test;

use std::{ffi::OsString, os::unix::process::CommandExt, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use crate::{
    build, ebpf,
    images::{self, Image},
    process, progress,
    setup::{self, Purpose, helm, kubernetes},
    workspace::Workspace,
};

/// The name of a cluster that nobody has given another.
const DEFAULT_NAME: &str = "mesh";

/// What [`Action::Other`] leads to, which clap cannot know.
const OTHER_COMMANDS: &str = "\
With a cluster that is up (`cargo xtask cluster COMMAND --help` says more):
  kubectl  Run kubectl as its administrator
  load     Load images into its nodes
  status   Show its parts
  exec     Run a program on one of its nodes
  stop     End one of its parts
  start    Start it again
  down     Remove the cluster";

/// What `cluster` may be told.
#[derive(Args)]
#[command(after_help = OTHER_COMMANDS)]
pub(crate) struct Options {
    /// The cluster.
    #[arg(long, env = "MESH_CLUSTER", default_value = DEFAULT_NAME, global = true)]
    name: String,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Install and build what clusters need, without making one.
    Build,
    /// Make a cluster; it stays until `down`.
    Up(UpOptions),
    /// Show what the mesh does on a cluster, from `helm install` on.
    Demo(demo::Options),
    /// Run the tests that need a cluster, or those whose name contains FILTER.
    Test(test::Options),
    /// What `mesh-lab cluster` does with one: [`OTHER_COMMANDS`].
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

#[derive(Args)]
struct UpOptions {
    /// How many nodes.
    #[arg(long, default_value_t = 2)]
    nodes: u8,
    /// How pods are connected to their node.
    #[arg(long, value_enum, default_value_t = Cni::Ptp)]
    cni: Cni,
    /// How kube-proxy translates the addresses of services.
    #[arg(long, value_enum, default_value_t = ProxyMode::Iptables)]
    kube_proxy: ProxyMode,
}

/// A CNI plugin.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cni {
    /// A veth per pod, routed.
    Ptp,
    /// A bridge with a veth per pod.
    Bridge,
}

impl Cni {
    fn name(self) -> &'static str {
        match self {
            Self::Ptp => "ptp",
            Self::Bridge => "bridge",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProxyMode {
    Iptables,
    Nftables,
}

/// `cargo xtask cluster`.
pub(crate) fn task(workspace: &Workspace, options: &Options) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "clusters are made of namespaces and cgroups, which only root may make: run\n\n    \
             sudo -E env PATH=\"$PATH\" cargo xtask cluster ..."
        );
    }
    match &options.action {
        Action::Build => {
            prepare(workspace)?;
            progress::good("everything that clusters need is there");
            Ok(())
        }
        Action::Up(up) => {
            let images = prepare(workspace)?;
            make(workspace, &options.name, up, &images, None)?;
            progress::good(format_args!("the cluster {} is up", options.name));
            progress::note(format_args!("cargo xtask cluster --name {} kubectl get pods -A", options.name));
            Ok(())
        }
        Action::Demo(options) => demo::task(workspace, options),
        Action::Test(options) => test::task(workspace, options),
        Action::Other(arguments) => {
            let mut command = lab(workspace, &options.name)?;
            command.args(arguments);
            // It takes our place, so that signals, the terminal and the exit status are its own.
            command.stdin(std::process::Stdio::inherit());
            let error = command.exec();
            Err(error).with_context(|| format!("cannot start `{}`", process::shown(&command)))
        }
    }
}

/// Makes a cluster, which is stale once the process `owner` has ended.
fn make(
    workspace: &Workspace,
    name: &str,
    options: &UpOptions,
    images: &[PathBuf],
    owner: Option<u32>,
) -> Result<()> {
    let mut command = lab(workspace, name)?;
    let kube_proxy = match options.kube_proxy {
        ProxyMode::Iptables => "iptables",
        ProxyMode::Nftables => "nftables",
    };
    command
        .args(["up", "--cni", options.cni.name(), "--kube-proxy", kube_proxy])
        .args(["--nodes", &options.nodes.to_string()])
        .arg("--programs")
        .arg(kubernetes::programs(workspace)?);
    for image in images {
        command.arg("--image").arg(image);
    }
    if let Some(owner) = owner {
        command.args(["--owner", &owner.to_string()]);
    }
    let label = format!("cluster {name} ({} nodes, {})", options.nodes, options.cni.name());
    process::quietly(workspace, &label, &mut command)
}

/// `mesh-lab cluster`.
fn lab(workspace: &Workspace, name: &str) -> Result<Command> {
    let program = workspace.target().join("debug/mesh-lab");
    if !program.exists() {
        bail!("mesh-lab is not built: run `cargo xtask cluster build`");
    }
    let mut command = workspace.command(program);
    command.args(["cluster", "--name", name]);
    // Info messages of the lab would stand between those of kubectl.
    command.env("RUST_LOG", std::env::var_os("RUST_LOG").unwrap_or_else(|| "warn".into()));
    Ok(command)
}

/// Everything that clusters need, built and installed.
fn prepare(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    setup::ensure(workspace, Purpose::Clustering)?;
    ebpf::build(workspace)?;
    build::binaries(workspace, false)?;
    let images = [Image::pause()?, Image::coredns(workspace)?];
    images.iter().map(|image| images::write_if_older(workspace, image)).collect()
}

/// Gives the cluster of `$MESH_CLUSTER`, or the one of the usual name, images.
pub(crate) fn load(workspace: &Workspace, archives: &[PathBuf]) -> Result<()> {
    let name = std::env::var("MESH_CLUSTER").unwrap_or_else(|_| DEFAULT_NAME.into());
    let mut command = lab(workspace, &name)?;
    command.arg("load").args(archives);
    process::quietly(workspace, &format!("images into the cluster {name}"), &mut command)
}

/// The arguments that say where Helm and the chart are.
fn chart(workspace: &Workspace) -> Result<[OsString; 4]> {
    let helm = helm::find(workspace).context("Helm is missing: run `cargo xtask setup`")?;
    let chart = workspace.root().join("deploy/chart");
    Ok(["--helm".into(), helm.into(), "--chart".into(), chart.into()])
}
