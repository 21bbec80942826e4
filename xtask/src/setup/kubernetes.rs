//! Kubernetes and CoreDNS, for test clusters: built once from their Go modules, at the versions that `mesh-lab/kubernetes` and
//! `mesh-lab/coredns` name, into a cache that all clones share.
//!
//! What was built says from which sources, so that a change of them is a build and nothing else is.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Missing, Remedy, go};
use crate::{process, workspace::Workspace};

const COMPONENTS: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"];
/// The file beside a program that holds what it was built from.
const BUILT_FROM: &str = "built-from";

/// A program of one Go module.
struct Build {
    program: &'static str,
    /// The module whose version is the program's.
    module: &'static str,
    label: &'static str,
}

const KUBERNETES: Build = Build {
    program: "kubernetes",
    module: "k8s.io/kubernetes",
    label: "Kubernetes (about fifteen minutes on two cores, once)",
};
const COREDNS: Build = Build {
    program: "coredns",
    module: "github.com/coredns/coredns",
    label: "CoreDNS (about two minutes, once)",
};

/// The folder of Kubernetes' programs: `$KUBEBUILDER_ASSETS` if it has all of them, else the cache.
pub(crate) fn programs(workspace: &Workspace) -> Result<PathBuf> {
    match assets() {
        Some(folder) => Ok(folder),
        None => KUBERNETES.folder(workspace),
    }
}

/// CoreDNS' program.
pub(crate) fn coredns(workspace: &Workspace) -> Result<PathBuf> {
    Ok(COREDNS.folder(workspace)?.join(COREDNS.program))
}

pub(super) fn missing(workspace: &Workspace) -> Vec<Missing> {
    let mut missing = Vec::new();
    if assets().is_none() && !KUBERNETES.is_built(workspace) {
        missing.push(Missing {
            what: "Kubernetes".into(),
            why: "the components of test clusters",
            remedy: Remedy::Step(|workspace| {
                KUBERNETES.build(workspace)?;
                link_components(&KUBERNETES.folder(workspace)?)
            }),
        });
    }
    if !COREDNS.is_built(workspace) {
        missing.push(Missing {
            what: "CoreDNS".into(),
            why: "the DNS of test clusters",
            remedy: Remedy::Step(|workspace| COREDNS.build(workspace)),
        });
    }
    if !missing.is_empty() {
        missing.extend(go::missing(workspace));
    }
    // Go, if it has to be fetched, comes with packages, and these are installed first.
    missing
}

/// `$KUBEBUILDER_ASSETS`, where it has every component; usually it has but three.
fn assets() -> Option<PathBuf> {
    let folder = PathBuf::from(env::var_os("KUBEBUILDER_ASSETS")?);
    COMPONENTS.iter().all(|component| folder.join(component).exists()).then_some(folder)
}

impl Build {
    fn sources(&self, workspace: &Workspace) -> PathBuf {
        workspace.root().join("mesh-lab").join(self.program)
    }

    /// The module's version, as its `go.mod` has it.
    fn version(&self, workspace: &Workspace) -> Result<String> {
        let path = self.sources(workspace).join("go.mod");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let version = text.lines().find_map(|line| {
            let mut words = line.trim().trim_start_matches("require ").split_whitespace();
            (words.next() == Some(self.module)).then(|| words.next().map(str::to_owned))?
        });
        version.with_context(|| format!("{} does not require {}", path.display(), self.module))
    }

    /// Where the program is, or will be.
    fn folder(&self, workspace: &Workspace) -> Result<PathBuf> {
        Ok(cache()?.join(format!("{}-{}", self.program, self.version(workspace)?)))
    }

    /// What the program is built from.
    fn recipe(&self, workspace: &Workspace) -> Result<String> {
        let read = |name: &str| {
            let path = self.sources(workspace).join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok([read("main.go")?, read("go.mod")?, read("go.sum")?, self.linker_flags(workspace)?].concat())
    }

    /// Without tables for debuggers, which would double the size; Kubernetes' programs must know their version, or kubectl and the
    /// API server take each other for ancient.
    fn linker_flags(&self, workspace: &Workspace) -> Result<String> {
        let version = self.version(workspace)?;
        let mut numbers = version.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        let package = "k8s.io/component-base/version";
        Ok(format!(
            "-s -w -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
        ))
    }

    fn is_built(&self, workspace: &Workspace) -> bool {
        let built = || -> Result<bool> {
            let folder = self.folder(workspace)?;
            let from = fs::read_to_string(folder.join(BUILT_FROM))?;
            Ok(folder.join(self.program).exists() && from == self.recipe(workspace)?)
        };
        built().unwrap_or(false)
    }

    /// Builds beside and renames at the end, so that what is there is whole; the recipe is written last.
    fn build(&self, workspace: &Workspace) -> Result<()> {
        let folder = self.folder(workspace)?;
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let beside = folder.join(format!("{}.new", self.program));
        let sources = self.sources(workspace);
        let flags = self.linker_flags(workspace)?;
        go::with(workspace, |go| {
            let mut command = workspace.command(go);
            command.args(["build", "-ldflags", &flags, "-o"]).arg(&beside).arg(".");
            command.current_dir(&sources).env("CGO_ENABLED", "0");
            process::quietly(workspace, self.label, &mut command)
        })?;
        let program = folder.join(self.program);
        fs::rename(&beside, &program).with_context(|| format!("cannot rename {}", beside.display()))?;
        let path = folder.join(BUILT_FROM);
        fs::write(&path, self.recipe(workspace)?).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The one program is whichever component it is called as.
fn link_components(folder: &Path) -> Result<()> {
    for component in COMPONENTS {
        let link = folder.join(component);
        if link.symlink_metadata().is_err() {
            symlink(KUBERNETES.program, &link).with_context(|| format!("cannot make {}", link.display()))?;
        }
    }
    Ok(())
}

/// A folder that outlives clones: these builds take longer than all others together.
fn cache() -> Result<PathBuf> {
    let folder = match env::var_os("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => env::home_dir().context("there is no home folder: set XDG_CACHE_HOME")?.join(".cache"),
    };
    Ok(folder.join("mesh"))
}
