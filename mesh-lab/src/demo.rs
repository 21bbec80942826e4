//! The demo: the shop of `examples/` on two nodes, real clients and servers, and what the mesh does for them.
//!
//! It is a test as well: every scene says what it expects, and what does not come true ends it with an error.

pub(crate) mod cluster;
mod journey;
mod scenes;
mod servers;
mod show;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use mesh_lab::{Lab, LabError, Mesh, Topology, state};

use servers::Servers;
use show::Show;

/// The lab's name, for `--keep` and `--down`.
pub(crate) const NAME: &str = "mesh-demo";

/// What to run the demo on.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArguments {
    /// Directory with lab.yaml, manifests/ and more/
    #[arg(long, default_value = "examples")]
    examples: PathBuf,
    /// Leave everything running at the end
    #[arg(long, conflicts_with = "down")]
    keep: bool,
    /// Remove what --keep has left
    #[arg(long)]
    down: bool,
}

/// What every scene works with. The servers end before the mesh, and the mesh before its lab.
struct Stage {
    show: Show,
    servers: Servers,
    mesh: Mesh,
    examples: PathBuf,
}

pub(crate) fn run(arguments: &DemoArguments) -> Result<()> {
    let gone = remove_previous()?;
    if arguments.down {
        println!("{}", if gone { "The demo is gone." } else { "There is no demo to remove." });
        return Ok(());
    }
    let started = Instant::now();
    let mut stage = Stage::set_up(arguments)?;
    scenes::play(&mut stage)?;
    stage.show.finale(started.elapsed());
    if arguments.keep {
        stage.keep()?;
    }
    Ok(())
}

/// Removes the lab of an earlier demo, kept or crashed; says whether there was one.
fn remove_previous() -> Result<bool> {
    let owner = state::load(NAME).ok().and_then(|record| record.owner);
    if let Some(owner) = owner.filter(|owner| owner.alive()) {
        bail!("the demo runs already, as process {}", owner.pid);
    }
    match state::remove(NAME) {
        Ok(()) => Ok(true),
        Err(LabError::Unknown { .. }) => Ok(false),
        Err(error) => Err(error).context("cannot remove the lab of an earlier demo"),
    }
}

impl Stage {
    fn set_up(arguments: &DemoArguments) -> Result<Self> {
        let mut show = Show::default();
        show.scene("Two nodes, ten pods", "network namespaces, wired the way clusters are");
        let file = arguments.examples.join("lab.yaml");
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let mut topology = Topology::parse(&file.display().to_string(), &text)?;
        NAME.clone_into(&mut topology.name);
        let begin = Instant::now();
        let lab = Lab::up(topology)?;
        show.topology(lab.topology());
        show.timing("built", begin.elapsed());

        let mut mesh =
            Mesh::new(lab, "control")?.certificate_lifetime(scenes::security::CERTIFICATE_LIFETIME);
        if arguments.keep {
            mesh.detach();
        }
        for entry in sorted_files(&arguments.examples.join("manifests"))? {
            let text = std::fs::read_to_string(&entry)?;
            let name = entry.file_name().unwrap_or_default().to_string_lossy();
            mesh.apply(&name, &text)?;
        }

        show.scene("Servers", "the programs people run, unchanged");
        let servers = Servers::start(&mesh, &mut show, arguments.keep)?;
        Ok(Self { show, servers, mesh, examples: arguments.examples.clone() })
    }

    /// Leaves everything running and says what to do with it.
    fn keep(self) -> Result<()> {
        let Self { mut show, servers, mesh, .. } = self;
        servers.keep();
        let alias = |node: &str| {
            let socket = mesh.admin_socket(node);
            format!("alias {node}='mesh-lab exec {NAME} {node} -- meshctl --socket {}'", socket.display())
        };
        let lab = mesh.programs().path("mesh-lab");
        show.commands(
            "It goes on running. To look around:",
            &lab,
            &[
                alias("node1"),
                alias("node2"),
                "node1 status".to_owned(),
                "node1 check".to_owned(),
                "node1 explain shop/client web.shop:80".to_owned(),
                "node2 bpf".to_owned(),
                format!("mesh-lab exec {NAME} client -- curl -s http://10.96.0.10/"),
                format!("mesh-lab exec {NAME} client -- mesh-lab traffic http http://10.96.0.10/ --rate 100 --duration 30 &"),
                "node2 connections --follow".to_owned(),
                format!("$EDITOR {}", mesh.manifests_directory().join("20-web.yaml").display()),
            ],
        );
        println!("\nTo remove it: cargo xtask demo --down");
        Ok(mesh.keep()?)
    }
}

fn sorted_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    Ok(files)
}
