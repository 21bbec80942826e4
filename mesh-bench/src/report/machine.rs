//! The machine that figures were measured on, and what was measured.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::thread::available_parallelism;

use serde::{Deserialize, Serialize};

/// What one must know to judge figures. Unknown parts are empty: figures are worth keeping without them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Machine {
    pub(super) cpu: String,
    pub(super) cores: usize,
    /// Millions of bytes.
    pub(super) memory_mb: u64,
    pub(super) kernel: String,
    pub(super) system: String,
    /// What the machine runs in, as systemd-detect-virt names it; `none` on bare metal.
    pub(super) virtualization: Option<String>,
    /// How the kernel controls congestion, in all labs: what paces makes every hop of a proxy dearer.
    pub(super) congestion_control: Option<String>,
    /// Of this repository.
    pub(super) commit: Option<String>,
    /// Whether there were changes that the commit does not have.
    pub(super) dirty: Option<bool>,
    /// By contender.
    pub(super) versions: BTreeMap<String, String>,
}

impl Machine {
    /// This machine, and the repository in the working directory.
    pub(crate) fn detect() -> Self {
        Self {
            cpu: cpu(),
            cores: available_parallelism().map_or(0, usize::from),
            memory_mb: memory_mb().unwrap_or_default(),
            kernel: read("/proc/sys/kernel/osrelease"),
            system: field("/etc/os-release", "PRETTY_NAME", '=').unwrap_or_default(),
            virtualization: virtualization(),
            congestion_control: Some(read("/proc/sys/net/ipv4/tcp_congestion_control"))
                .filter(|name| !name.is_empty()),
            commit: git(&["rev-parse", "HEAD"]),
            dirty: git(&["status", "--porcelain"]).map(|changes| !changes.is_empty()),
            versions: versions(),
        }
    }

    /// Whether values of both may be compared as they are.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let what_counts = |machine: &Self| {
            (machine.cpu.clone(), machine.cores, machine.kernel.clone(), machine.congestion_control.clone())
        };
        what_counts(self) == what_counts(other)
    }

    /// In one line.
    pub(super) fn summary(&self) -> String {
        let memory = format!("{:.0} GB", self.memory_mb as f64 / 1000.0);
        let cores = format!("{} cores", self.cores);
        let kernel = format!("Linux {}", self.kernel);
        let congestion = self.congestion_control.clone().unwrap_or_default();
        let virtualization = self.virtualization.clone().unwrap_or_default();
        let parts = [self.cpu.clone(), cores, memory, kernel, congestion, virtualization];
        let known: Vec<_> = parts.into_iter().filter(|part| !part.is_empty() && part != "none").collect();
        known.join(", ")
    }

    /// The commit, and whether there is more than it.
    pub(super) fn revision(&self) -> Option<String> {
        let commit = self.commit.as_deref()?;
        let short = commit.get(..12).unwrap_or(commit);
        Some(if self.dirty == Some(true) { format!("{short} with changes") } else { short.into() })
    }
}

/// What is installed of the contenders that people run. Those that are not installed are not in the run either.
fn versions() -> BTreeMap<String, String> {
    let envoy = std::env::var_os("MESH_ENVOY").unwrap_or_else(|| "target/tools/envoy/bin/envoy".into());
    let peers = [("envoy", envoy, "--version"), ("haproxy", "haproxy".into(), "-v")];
    let found = peers.into_iter().filter_map(|(name, program, argument)| {
        let output = Command::new(program).arg(argument).stdin(Stdio::null()).output().ok()?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = told.lines().find(|line| !line.trim().is_empty())?;
        // Envoy's begins with the path of the program.
        Some((
            name.to_owned(),
            line.rsplit_once("version:").map_or(line, |(_, version)| version).trim().to_owned(),
        ))
    });
    let own = ("mesh-agent".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    std::iter::once(own).chain(found).collect()
}

fn cpu() -> String {
    let field = |name| field("/proc/cpuinfo", name, ':');
    // Arm's kernels name no model; the architecture is better than nothing.
    field("model name").or_else(|| field("Model")).unwrap_or_else(|| std::env::consts::ARCH.into())
}

fn memory_mb() -> Option<u64> {
    let total = field("/proc/meminfo", "MemTotal", ':')?;
    let kibibytes: u64 = total.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024 / 1_000_000)
}

fn virtualization() -> Option<String> {
    // Says `none`, with an error status, where there is none.
    let told = Command::new("systemd-detect-virt").stderr(Stdio::null()).output().ok();
    let told = told.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    told.filter(|told| !told.is_empty()).or_else(|| {
        let flags = field("/proc/cpuinfo", "flags", ':')?;
        flags.split_whitespace().any(|flag| flag == "hypervisor").then(|| "virtual machine".into())
    })
}

/// `git` in the working directory, also where another user owns it.
fn git(arguments: &[&str]) -> Option<String> {
    let mut git = Command::new("git");
    git.args(["-c", "safe.directory=*"]).args(arguments).stdin(Stdio::null()).stderr(Stdio::null());
    let output = git.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The first value of that name in a file of names and values.
fn field(path: &str, name: &str, separator: char) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let mut fields = text.lines().filter_map(|line| line.split_once(separator));
    let (_, value) = fields.find(|(found, _)| found.trim() == name)?;
    Some(value.trim().trim_matches('"').to_owned())
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
