//! What can go wrong between the agent and the kernel.

use std::io;
use std::path::PathBuf;

/// Why the kernel does not steer as it should.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    /// The pin directory is on some other file system.
    #[error("{} is not on a BPF file system; mount one: mount -t bpf bpf {}", .0.display(), .0.display())]
    NotBpfFs(PathBuf),
    /// A directory or file of the BPF file system.
    #[error("cannot {action} {}: {source}", .path.display())]
    Pin {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refuses the programs or their maps.
    #[error("cannot load the kernel programs: {0}")]
    Load(#[from] aya::EbpfError),
    /// The embedded object lacks a part; the agent was built wrong.
    #[error("the embedded kernel programs have no {0}; build the agent anew")]
    Missing(&'static str),
    /// The kernel refuses one program.
    #[error("cannot load kernel program {name}: {source}")]
    Program {
        /// Its name.
        name: &'static str,
        /// What the kernel, usually the verifier, says.
        source: aya::programs::ProgramError,
    },
    /// A program cannot be attached.
    #[error("cannot attach kernel program {program} to {target}: {reason}")]
    Attach {
        /// Its name.
        program: &'static str,
        /// Device, network namespace or cgroup.
        target: String,
        /// Why not.
        reason: String,
    },
    /// A map cannot be read or written.
    #[error("kernel map {map}: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// Why not.
        source: aya::maps::MapError,
    },
    /// More data-plane cores than the kernel side has room for.
    #[error("{0} data-plane workers; the kernel programs spread over {max} at most", max = mesh_common::MAX_LISTENERS)]
    TooManyListeners(usize),
    /// What the kernel says about an open object cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Information {
        /// The file of the proc file system.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The watch over devices and addresses.
    #[error("cannot watch the node's devices: {0}")]
    Watch(String),
}

impl SteeringError {
    /// For `map_err` on map calls.
    pub(super) fn map(map: &'static str) -> impl Fn(aya::maps::MapError) -> Self {
        move |source| Self::Map { map, source }
    }
}

/// An error with its causes.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
