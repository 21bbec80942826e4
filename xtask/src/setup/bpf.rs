//! What builds the kernel programs: a Rust toolchain with a core library for BPF, and `bpf-linker`.
//!
//! Debian has both in packages that every supported release gets (`rustc-web`, kept current for browsers)
//! with a core library already built, and the LLVM that goes with them. Elsewhere a rustup nightly builds the
//! core library from its source.

use std::{fs, path::Path};

use anyhow::{Result, bail};

use super::{Missing, Remedy};
use crate::{
    ebpf, process,
    workspace::{Workspace, find_program},
};

/// The linker's series. Its LLVM must not be older than the compiler's.
const LINKER_VERSION: &str = "^0.13";
/// The LLVM versions which that series can be built with, the best first.
const LLVM_VERSIONS: [&str; 2] = ["22", "23"];
const DEBIAN_PACKAGES: &[&str] =
    &["cargo-web", "g++", "gcc", "libstd-rust-web-dev-bpf", "llvm-22-dev", "rust-web-src", "rustc-web"];

pub(super) fn missing() -> Vec<Missing> {
    let mut missing = Vec::new();
    if ebpf::Toolchain::find().is_err() {
        missing.push(Missing {
            what: "Rust for BPF".into(),
            why: "compiles the kernel programs",
            remedy: if is_debian() {
                Remedy::Packages(DEBIAN_PACKAGES.to_vec())
            } else {
                Remedy::Step(install_nightly)
            },
        });
    }
    if find_program("bpf-linker").is_none() {
        // Built against Debian's LLVM; harmless to name where the toolchain has brought it already.
        if is_debian() && installed_llvm().is_none() {
            missing.push(Missing {
                what: "LLVM".into(),
                why: "bpf-linker is built with it",
                remedy: Remedy::Packages(vec!["llvm-22-dev"]),
            });
        }
        missing.push(Missing {
            what: "bpf-linker".into(),
            why: "links the kernel programs",
            remedy: Remedy::Step(install_linker),
        });
    }
    missing
}

fn is_debian() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|release| release.lines().any(|line| line == "ID=debian"))
}

fn install_nightly(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.command("rustup");
    command.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
    process::quietly(workspace, "nightly Rust with its source", &mut command)
}

/// The newest LLVM of the distribution with headers that bpf-linker can be built with.
fn installed_llvm() -> Option<&'static str> {
    LLVM_VERSIONS
        .into_iter()
        .find(|version| Path::new(&format!("/usr/lib/llvm-{version}/include/llvm-c/Core.h")).exists())
}

fn install_linker(workspace: &Workspace) -> Result<()> {
    let Some(llvm) = installed_llvm() else {
        bail!(
            "bpf-linker is missing, and so is an LLVM to build it with: install the package llvm-22-dev, or put \
             the program of a release (https://github.com/aya-rs/bpf-linker/releases) into a folder of PATH, and \
             run the task again"
        );
    };
    let mut command = workspace.cargo();
    command
        .args([
            "install",
            "bpf-linker",
            "--locked",
            "--version",
            LINKER_VERSION,
            "--no-default-features",
            "--features",
        ])
        .arg(format!("llvm-{llvm}"))
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"));
    process::quietly(workspace, "bpf-linker (about two minutes)", &mut command)
}
