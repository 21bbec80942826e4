//! `cargo xtask build-ebpf`: the kernel programs, compiled for BPF into one object that `mesh-agent` carries.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    process,
    workspace::{Workspace, cargo, find_program},
};

const TARGET: &str = "bpfel-unknown-none";

/// A Rust toolchain that compiles for BPF.
pub(crate) enum Toolchain {
    /// A rustup nightly, which builds the core library from its source.
    Nightly,
    /// Debian's `rustc-web`, with a core library already built.
    Debian,
}

impl Toolchain {
    /// The toolchain of this machine; a nightly first, because whoever has installed its source wants it
    /// used.
    pub(crate) fn find() -> Result<Self> {
        if nightly_source().is_some() {
            return Ok(Self::Nightly);
        }
        let parts =
            ["/usr/bin/cargo".into(), "/usr/bin/rustc".into(), format!("/usr/lib/rustlib/{TARGET}/lib")];
        if parts.iter().all(|part| Path::new(part).exists()) {
            return Ok(Self::Debian);
        }
        bail!("no Rust toolchain for BPF: run `cargo xtask setup`")
    }

    fn cargo(&self, workspace: &Workspace) -> Command {
        match self {
            Self::Nightly => {
                let mut command = workspace.command("rustup");
                command.args(["run", "nightly", "cargo", "build", "-Zbuild-std=core"]);
                command
            }
            Self::Debian => {
                let mut command = workspace.command("/usr/bin/cargo");
                // A stable compiler; the BPF assembly in aya-ebpf is still an unstable feature.
                command.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1").arg("build");
                command
            }
        }
    }
}

/// The source of a nightly's core library.
fn nightly_source() -> Option<PathBuf> {
    let rustup = std::env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".rustup")))?;
    let toolchains = fs::read_dir(rustup.join("toolchains")).ok()?.flatten();
    // Not `nightly-2026-01-31-<host>`: that is someone's pin, and `rustup run nightly` another toolchain.
    let nightlies = toolchains.filter(|toolchain| {
        let name = toolchain.file_name().to_string_lossy().into_owned();
        name.strip_prefix("nightly-")
            .is_some_and(|host| !host.starts_with(|first: char| first.is_ascii_digit()))
    });
    nightlies
        .map(|toolchain| toolchain.path().join("lib/rustlib/src/rust/library/core"))
        .find(|source| source.exists())
}

/// Where cargo keeps the sources of dependencies.
fn cargo_home() -> PathBuf {
    std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".cargo")))
        .unwrap_or_default()
}

/// Where the object is put, for `mesh-agent` to include.
fn object(workspace: &Workspace) -> PathBuf {
    workspace.target().join("bpf/mesh-ebpf")
}

/// Builds the object. Quick when nothing has changed.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    find_program("bpf-linker").context("bpf-linker is missing: run `cargo xtask setup`")?;
    let target = workspace.target().join("ebpf");
    let mut command = Toolchain::find()?.cargo(workspace);
    command
        .current_dir(workspace.root().join("mesh-ebpf"))
        .args(["--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(&target)
        // Flags of the workspace's build are not for this target; BTF is what makes maps and programs
        // readable for bpftool. It names source files: without this machine's folders the same source gives
        // the same object everywhere.
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            [
                "-Clinker=bpf-linker",
                "-Cdebuginfo=2",
                "-Clink-arg=--btf",
                &format!("--remap-path-prefix={}=mesh", workspace.root().display()),
                &format!("--remap-path-prefix={}=cargo", cargo_home().display()),
            ]
            .join("\u{1f}"),
        )
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN");
    process::quietly(workspace, "kernel programs", &mut command)?;

    let (built, object) = (target.join(TARGET).join("release/mesh-ebpf"), object(workspace));
    let built = strip(workspace, built)?;
    if fs::read(&built).ok() == fs::read(&object).ok() {
        // The same bytes: `mesh-agent` need not be built anew.
        return Ok(());
    }
    fs::create_dir_all(workspace.target().join("bpf"))
        .context("cannot make the folder of the kernel programs")?;
    fs::copy(&built, &object)
        .with_context(|| format!("cannot put the kernel programs into {}", object.display()))?;
    Ok(())
}

/// Takes out what only debuggers read, five sixths of the object: an agent holds it in memory and reads all of it when it
/// starts. What the kernel and bpftool read (BTF) stays. A compiler that comes without the tool leaves it in.
fn strip(workspace: &Workspace, built: PathBuf) -> Result<PathBuf> {
    let asked = workspace.command(cargo().with_file_name("rustc")).args(["--print", "sysroot"]).output();
    let sysroot = asked.context("cannot ask rustc where it is installed")?.stdout;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&sysroot).trim());
    let tool = fs::read_dir(sysroot.join("lib/rustlib")).into_iter().flatten().flatten();
    let Some(tool) = tool.map(|entry| entry.path().join("bin/rust-objcopy")).find(|tool| tool.exists())
    else {
        return Ok(built);
    };
    let stripped = built.with_extension("stripped");
    let mut command = workspace.command(tool);
    // It brings its own LLVM.
    command.env("LD_LIBRARY_PATH", sysroot.join("lib")).arg("--strip-debug").args([&built, &stripped]);
    process::quietly(workspace, "kernel programs without debug information", &mut command)?;
    Ok(stripped)
}
