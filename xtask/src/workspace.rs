//! Where things are: the repository, the target folder, cargo and the tools that `setup` put into the target
//! folder.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

/// The repository and the folders of it that tasks work in.
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
    cargo: PathBuf,
}

impl Workspace {
    /// Finds the repository: cargo names it when it runs this program; else the working directory or a parent
    /// of it is one.
    pub(crate) fn locate() -> Result<Self> {
        let here = env::current_dir().context("the working directory is gone")?;
        let root = match env::var_os("CARGO_MANIFEST_DIR") {
            Some(xtask) => PathBuf::from(xtask).parent().map(Path::to_path_buf),
            None => here
                .ancestors()
                .find(|folder| folder.join("xtask/Cargo.toml").exists())
                .map(Path::to_path_buf),
        }
        .context("not inside the repository: run `cargo xtask` from a clone of it")?;
        let target =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| here.join(folder));
        Ok(Self { root, target, cargo: cargo() })
    }

    /// The folder of the workspace's `Cargo.toml`.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's target folder.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// The tools that no package manager has: one folder each, programs or links to them in `bin`.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// Cargo, in the repository.
    pub(crate) fn cargo(&self) -> Command {
        self.command(&self.cargo)
    }

    /// The folder of cargo's own program, where the toolchain keeps its components' programs.
    pub(crate) fn toolchain_programs(&self) -> Option<&Path> {
        self.cargo.parent()
    }

    /// Any program, in the repository, without standard input: no task asks questions.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.current_dir(&self.root).stdin(std::process::Stdio::null());
        command
    }
}

/// The cargo that runs us. Never the first one in `PATH`: Debian's `cargo-web`, which the kernel programs may
/// be built with, puts another there.
pub(crate) fn cargo() -> PathBuf {
    let rustup = env::home_dir().map(|home| home.join(".cargo/bin/cargo")).filter(|cargo| cargo.exists());
    env::var_os("CARGO").map(PathBuf::from).or(rustup).unwrap_or_else(|| PathBuf::from("cargo"))
}

/// The first program of that name in `PATH` or in the folders that packages install to and `PATH` often
/// lacks.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let home = env::home_dir().map(|home| home.join(".cargo/bin"));
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/go/bin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(home)
        .chain(more)
        .map(|folder| folder.join(name))
        .find(|program| is_program(program))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
