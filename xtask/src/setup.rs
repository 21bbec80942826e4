//! `cargo xtask setup`: what the project needs on a machine, what of it is missing, and how it gets there.
//!
//! Looking is cheap (files, no programs started), because `build` and `test` look every time. What is there
//! is never touched: a need is met by a program in `PATH` or a path, whoever installed it.

mod apt;
mod bpf;
mod envoy;
mod go;
pub(crate) mod helm;
pub(crate) mod kubernetes;
mod python;

use std::{
    collections::BTreeSet,
    fs::{self, File},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{process, progress, workspace::Workspace};

/// What `setup` may be told.
#[derive(Args)]
pub(crate) struct Options {
    /// Only say what is missing, and fail if anything is.
    #[arg(long)]
    check: bool,
}

/// Something the project needs that was not found.
struct Missing {
    what: String,
    why: &'static str,
    remedy: Remedy,
}

/// How a need is met.
enum Remedy {
    /// Packages of the distribution; those of all needs are installed at once.
    Packages(Vec<&'static str>),
    /// A step of its own, after the packages.
    Step(fn(&Workspace) -> Result<()>),
}

/// What a task is about to do: images are built without what only tests need, and nobody gets the benchmarks' peers or a
/// Kubernetes who does not run them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Building,
    Testing,
    Measuring,
    Clustering,
}

impl Purpose {
    /// Whether it needs what `other` needs. All need what building does, and all others what testing does.
    fn includes(self, other: Self) -> bool {
        self == other || other == Self::Building || (other == Self::Testing && self != Self::Building)
    }
}

/// `cargo xtask setup`.
pub(crate) fn task(workspace: &Workspace, options: &Options) -> Result<()> {
    if options.check {
        return check(workspace);
    }
    ensure(workspace, Purpose::Testing)?;
    progress::good("everything the project needs is installed");
    Ok(())
}

/// Installs what is missing; at once done when nothing is.
pub(crate) fn ensure(workspace: &Workspace, purpose: Purpose) -> Result<()> {
    if missing(workspace, purpose).is_empty() {
        return Ok(());
    }
    let _lock = lock(workspace)?;
    // Whoever held the lock may have installed everything meanwhile.
    let missing = missing(workspace, purpose);
    if missing.is_empty() {
        return Ok(());
    }

    progress::heading("Installing what is missing");
    show(&missing);
    let packages = missing.iter().flat_map(|need| match &need.remedy {
        Remedy::Packages(packages) => packages.clone(),
        Remedy::Step(_) => Vec::new(),
    });
    apt::install(workspace, packages.collect())?;
    for need in &missing {
        if let Remedy::Step(install) = need.remedy {
            install(workspace).with_context(|| format!("{} could not be installed", need.what))?;
        }
    }
    Ok(())
}

fn check(workspace: &Workspace) -> Result<()> {
    let missing = missing(workspace, Purpose::Testing);
    if missing.is_empty() {
        progress::good("everything the project needs is installed");
        return Ok(());
    }
    show(&missing);
    bail!(
        "{} missing: run `cargo xtask setup` as root",
        if missing.len() == 1 { "one thing is" } else { "several things are" }
    );
}

fn show(missing: &[Missing]) {
    for need in missing {
        progress::bad(format_args!("{:<28} {}", need.what, need.why));
    }
}

/// Everything that is missing, in the order in which it must be installed.
fn missing(workspace: &Workspace, purpose: Purpose) -> Vec<Missing> {
    let mut missing = apt::missing(purpose);
    missing.extend(bpf::missing());
    if purpose.includes(Purpose::Testing) {
        missing.extend(components(workspace));
        missing.extend(helm::missing(workspace));
        missing.extend(envoy::missing(workspace));
    }
    if purpose.includes(Purpose::Clustering) {
        missing.extend(kubernetes::missing(workspace));
    }
    // Two needs may ask for the same thing.
    let mut known = BTreeSet::new();
    missing.retain(|need| known.insert(need.what.clone()));
    missing
}

/// The formatter and the linter, which a minimal rustup profile lacks.
fn components(workspace: &Workspace) -> Option<Missing> {
    let programs = workspace.toolchain_programs()?;
    let complete = ["cargo-fmt", "cargo-clippy"].iter().all(|name| programs.join(name).exists());
    (!complete).then(|| Missing {
        what: "rustfmt, clippy".into(),
        why: "formatting and lints",
        remedy: Remedy::Step(|workspace| {
            process::quietly(
                workspace,
                "rustfmt and clippy",
                workspace.command("rustup").args(["component", "add", "rustfmt", "clippy"]),
            )
        }),
    })
}

/// Two set-ups must not install at once: root's share the machine's packages, others' the clone's tools. The lock
/// is the kernel's and ends with its holder, however that ends.
fn lock(workspace: &Workspace) -> Result<File> {
    let folder =
        if nix::unistd::geteuid().is_root() { "/run/lock".into() } else { workspace.target().to_owned() };
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join("mesh-xtask-setup.lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    if file.try_lock().is_err() {
        progress::note("waiting for another set-up");
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}
