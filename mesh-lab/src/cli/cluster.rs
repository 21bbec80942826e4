//! `cluster`: Kubernetes clusters for tests and for looking around. `cargo xtask cluster` makes what they need and calls this.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use mesh_lab::cluster::{Cluster, CniPlugin, ProxyMode, Settings};
use mesh_lab::state::{self, ProcessId};

use super::labs::print_table;
use crate::demo::{self, cluster::ClusterDemoArguments};

#[derive(Debug, Args)]
pub(crate) struct ClusterArguments {
    /// The cluster
    #[arg(long, env = "MESH_CLUSTER", default_value = "mesh", global = true)]
    name: String,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a cluster; it stays until `down`
    Up {
        /// How many nodes
        #[arg(long, default_value_t = 2)]
        nodes: u8,
        /// How pods are connected: ptp or bridge
        #[arg(long, default_value = "ptp")]
        cni: CniPlugin,
        /// How kube-proxy translates: iptables or nftables
        #[arg(long, default_value = "iptables")]
        kube_proxy: ProxyMode,
        /// The folder of Kubernetes' programs
        #[arg(long)]
        programs: PathBuf,
        /// An archive of an image that all nodes shall have
        #[arg(long)]
        image: Vec<PathBuf>,
        /// The process whose end makes the cluster stale
        #[arg(long)]
        owner: Option<i32>,
    },
    /// End every program of the cluster and remove it
    Down {
        /// Remove all clusters and labs whose owners have died, instead
        #[arg(long)]
        all_stale: bool,
    },
    /// Show the clusters of this machine, and the parts of this one
    Status,
    /// Run kubectl as a user who may do everything
    Kubectl {
        /// What kubectl is told
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Give all nodes images, from archives
    Load {
        /// The archives
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Run a program on a node, or on `control`
    Exec {
        /// The node
        machine: String,
        /// The program and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// Show what the mesh does on this cluster, which must have its images
    Demo(ClusterDemoArguments),
    /// Stop a part, such as kube-apiserver or kubelet-node1
    Stop {
        /// The part
        part: String,
    },
    /// Start a part that was stopped
    Start {
        /// The part
        part: String,
    },
}

pub(super) fn run(arguments: ClusterArguments) -> anyhow::Result<()> {
    let ClusterArguments { name, action } = arguments;
    match action {
        Action::Up { nodes, cni, kube_proxy, programs, image: images, owner } => {
            let owner =
                owner.map(|pid| ProcessId::of(pid).with_context(|| format!("there is no process {pid}")));
            let settings = Settings { name, nodes, cni, kube_proxy, programs, images };
            Cluster::up(settings)?.keep(owner.transpose()?)?;
        }
        Action::Down { all_stale: true } => super::labs::down_stale()?,
        Action::Down { all_stale: false } => {
            // Whatever is left of it: a cluster that was never finished is a lab as well.
            if let Err(error) = state::remove(&name) {
                bail!(error);
            }
        }
        Action::Status => status(&name)?,
        Action::Kubectl { arguments } => return Err(kubectl(&name, &arguments)),
        Action::Load { archives } => {
            let cluster = Cluster::open(&name)?;
            archives.iter().try_for_each(|archive| cluster.load(archive))?;
        }
        Action::Exec { machine, command } => return Err(super::labs::exec(&name, &machine, &command)),
        Action::Demo(arguments) => demo::cluster::run(&Cluster::open(&name)?, &arguments)?,
        Action::Stop { part } => Cluster::open(&name)?.part(&part)?.stop()?,
        Action::Start { part } => Cluster::open(&name)?.part(&part)?.start()?,
    }
    Ok(())
}

fn status(name: &str) -> anyhow::Result<()> {
    let names = Cluster::names()?;
    if !names.iter().any(|other| other == name) {
        println!("there is no cluster {name}; there are: {}", names.join(", "));
        return Ok(());
    }
    let cluster = Cluster::open(name)?;
    let mut rows = vec![["PART", "STATE", "LOG"].map(str::to_owned).to_vec()];
    rows.extend(cluster.parts()?.iter().map(|part| {
        let state =
            part.process().map_or("does not run".to_owned(), |process| format!("process {}", process.pid));
        vec![part.name().to_owned(), state, part.log_path().display().to_string()]
    }));
    print_table(&rows)?;
    let nodes = cluster.kubectl(["get", "nodes", "--output=wide"])?;
    Ok(write!(std::io::stdout().lock(), "\n{nodes}")?)
}

/// Becomes kubectl; returns only if that fails.
fn kubectl(name: &str, arguments: &[OsString]) -> anyhow::Error {
    let become_kubectl = || -> anyhow::Result<std::convert::Infallible> {
        let cluster = Cluster::open(name)?;
        let machine = cluster.lab().host("control")?;
        machine.enter().with_context(|| format!("cannot enter {}", machine.name()))?;
        let program = cluster.settings().programs.join("kubectl");
        let mut command = Command::new(&program);
        command.args(arguments).envs(cluster.kubectl_variables());
        Err(command.exec()).with_context(|| format!("cannot run {}", program.display()))
    };
    match become_kubectl() {
        Ok(never) => match never {},
        Err(error) => error,
    }
}
