//! `cargo xtask images`: what a cluster runs, as archives of OCI images, without Docker.
//!
//! An image is one layer with the programs, the shared libraries that they need, and nothing else: no shell, no package manager, no
//! users. Static builds were weighed: musl's allocator has one lock for all threads, and a static glibc cannot look up names. The
//! Dockerfiles take the same layer from here, with `--unpack`. Same programs, same digest: nothing of the time, the user or the
//! machine goes in.

mod archive;
mod root;
#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    build, ebpf, process, progress,
    setup::{self, Purpose, kubernetes},
    workspace::{Workspace, find_program},
};
use root::Root;

/// What `images` may be told.
#[derive(Args)]
pub(crate) struct Options {
    /// Where the archives go [default: target/images].
    #[arg(long, value_name = "DIR", conflicts_with = "unpack")]
    output: Option<PathBuf>,
    /// Only this image (may be given several times).
    #[arg(long, value_name = "NAME")]
    only: Vec<Product>,
    /// How the programs are built: dev takes a fraction of the time, for tests.
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
    /// Give the images to the cluster that `cargo xtask cluster up` has made, as well.
    #[arg(long, conflicts_with = "unpack")]
    load: bool,
    /// Write what is in the one image into a folder, instead; this is how the Dockerfiles get it.
    #[arg(long, value_name = "DIR")]
    unpack: Option<PathBuf>,
}

/// An image of the mesh's programs.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Product {
    #[value(name = "mesh-agent")]
    Agent,
    #[value(name = "mesh-control")]
    Control,
    /// An echo server, a traffic generator and a shell, for the pods of tests; only written when asked for.
    #[value(name = "mesh-lab")]
    Lab,
}

/// Those that are released.
const RELEASED: [Product; 2] = [Product::Agent, Product::Control];

/// How programs are compiled.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    Release,
    Dev,
}

impl Profile {
    fn folder(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "debug",
        }
    }
}

/// What is in an image, and how it is run.
pub(crate) struct Image {
    /// The file name of its archive.
    name: &'static str,
    /// The name it has in a container runtime, in full.
    reference: String,
    programs: Vec<PathBuf>,
    /// Links in `/usr/bin`, to the first program.
    links: Vec<String>,
    user: &'static str,
    entrypoint: Vec<&'static str>,
    command: Vec<&'static str>,
    ports: Vec<u16>,
}

impl Image {
    /// The node agent and `meshctl`.
    fn mesh_agent(programs: &Path) -> Self {
        Self {
            name: "mesh-agent",
            reference: released("mesh-agent"),
            programs: ["mesh-agent", "meshctl"].map(|name| programs.join(name)).to_vec(),
            links: Vec::new(),
            // The files that it shares with the node are root's. The DaemonSet takes all of root's other powers away.
            user: "0:0",
            entrypoint: vec!["/usr/bin/mesh-agent"],
            command: vec!["run"],
            ports: Vec::new(),
        }
    }

    /// The control server.
    fn mesh_control(programs: &Path) -> Self {
        Self {
            name: "mesh-control",
            reference: released("mesh-control"),
            programs: vec![programs.join("mesh-control")],
            links: Vec::new(),
            user: "65532:65532",
            entrypoint: vec!["/usr/bin/mesh-control"],
            command: Vec::new(),
            ports: vec![15010, 15012, 15014],
        }
    }

    /// What tests run in pods: the echo server and the traffic generator, with a shell.
    fn mesh_lab(programs: &Path) -> Result<Self> {
        let busybox = busybox()?;
        let applets = process::output(std::process::Command::new(&busybox).arg("--list"))?;
        let taken = |applet: &&str| *applet != "busybox";
        Ok(Self {
            name: "mesh-lab",
            reference: for_tests("mesh-lab"),
            links: applets.lines().filter(taken).map(str::to_owned).collect(),
            programs: vec![busybox, programs.join("mesh-lab")],
            user: "0:0",
            entrypoint: vec!["/usr/bin/mesh-lab"],
            command: Vec::new(),
            ports: Vec::new(),
        })
    }

    /// What keeps the namespaces of a pod of a test cluster: something that sleeps.
    pub(crate) fn pause() -> Result<Self> {
        Ok(Self {
            name: "pause",
            reference: for_tests("pause"),
            programs: vec![busybox()?],
            links: Vec::new(),
            user: "65532:65532",
            entrypoint: vec!["/usr/bin/busybox", "sleep", "2147483647"],
            command: Vec::new(),
            ports: Vec::new(),
        })
    }

    /// The DNS of test clusters.
    pub(crate) fn coredns(workspace: &Workspace) -> Result<Self> {
        Ok(Self {
            name: "coredns",
            reference: for_tests("coredns"),
            programs: vec![kubernetes::coredns(workspace)?],
            links: Vec::new(),
            user: "0:0",
            entrypoint: vec!["/usr/bin/coredns"],
            command: Vec::new(),
            ports: Vec::new(),
        })
    }

    fn product(product: Product, programs: &Path) -> Result<Self> {
        Ok(match product {
            Product::Agent => Self::mesh_agent(programs),
            Product::Control => Self::mesh_control(programs),
            Product::Lab => Self::mesh_lab(programs)?,
        })
    }

    fn root(&self) -> Result<Root> {
        let mut root = Root::collect(&self.programs)?;
        for link in &self.links {
            root.link(link, &self.programs);
        }
        Ok(root)
    }
}

/// The name that the chart's default values ask for. Without a registry in it, container runtimes mean this one.
fn released(name: &str) -> String {
    format!("docker.io/library/{name}:{}", env!("CARGO_PKG_VERSION"))
}

fn for_tests(name: &str) -> String {
    format!("localhost/{name}:test")
}

fn busybox() -> Result<PathBuf> {
    find_program("busybox").context("busybox is missing: run `cargo xtask cluster build`")
}

/// `cargo xtask images`.
pub(crate) fn task(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::ensure(workspace, Purpose::Building)?;
    ebpf::build(workspace)?;
    build::binaries(workspace, options.profile == Profile::Release)?;
    let programs = workspace.target().join(options.profile.folder());
    let chosen = if options.only.is_empty() { RELEASED.as_slice() } else { &options.only };
    let images =
        chosen.iter().map(|product| Image::product(*product, &programs)).collect::<Result<Vec<Image>>>()?;

    if let Some(folder) = &options.unpack {
        let [image] = images.as_slice() else { bail!("--unpack takes one image: name it with --only") };
        return image.root()?.unpack(folder);
    }
    let output = options.output.clone().unwrap_or_else(|| default_output(workspace));
    let archives = images.iter().map(|image| write(image, &output)).collect::<Result<Vec<PathBuf>>>()?;
    if options.load {
        crate::cluster::load(workspace, &archives)?;
    }
    Ok(())
}

/// All images that the cluster's tests run, from programs that are built already.
pub(crate) fn write_for_tests(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let programs = workspace.target().join(Profile::Dev.folder());
    let images = [Image::mesh_agent(&programs), Image::mesh_control(&programs), Image::mesh_lab(&programs)?];
    images.iter().map(|image| write_if_older(workspace, image)).collect()
}

/// Writes an image's archive, unless there is one that is newer than all that goes in.
pub(crate) fn write_if_older(workspace: &Workspace, image: &Image) -> Result<PathBuf> {
    let output = default_output(workspace);
    let archive = output.join(image.name).with_extension("tar");
    let modified = |path: &Path| path.metadata().and_then(|file| file.modified());
    let own = std::env::current_exe().context("this program is gone")?;
    let newer = |archived| {
        image
            .programs
            .iter()
            .chain([&own])
            .all(|program| modified(program).is_ok_and(|program| program < archived))
    };
    if modified(&archive).is_ok_and(newer) {
        return Ok(archive);
    }
    write(image, &output)
}

fn write(image: &Image, output: &Path) -> Result<PathBuf> {
    fs::create_dir_all(output).with_context(|| format!("cannot make {}", output.display()))?;
    let archive = output.join(image.name).with_extension("tar");
    let written = archive::write(image, &archive)
        .with_context(|| format!("the image {} could not be written", image.name))?;
    progress::good(format_args!(
        "{} ({}.{} MB, {})",
        archive.display(),
        written.bytes / 1_000_000,
        written.bytes / 100_000 % 10,
        written.digest
    ));
    Ok(archive)
}

fn default_output(workspace: &Workspace) -> PathBuf {
    workspace.target().join("images")
}
