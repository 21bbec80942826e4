//! What can go wrong with a cluster.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::lab::LabError;
use crate::process::ProcessError;
use crate::topology::TopologyError;

/// Why a cluster cannot be built, found or used.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no such cluster.
    #[error(
        "there is no cluster {0}: `cargo xtask cluster up --name {0}` makes one, `cargo xtask cluster status` shows those that are there"
    )]
    Unknown(String),
    /// A program of Kubernetes, or another that a cluster needs, is not there.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// The program.
        what: String,
        /// How it gets there.
        remedy: &'static str,
    },
    /// Containers cannot be found and ended for sure without cgroup2.
    #[error(
        "no cgroup2 is mounted: clusters need one, `mount -t cgroup2 none /sys/fs/cgroup/unified` makes it"
    )]
    NoCgroup2,
    /// The settings describe no possible cluster.
    #[error("{0}")]
    Settings(String),
    /// There is no such part.
    #[error("the cluster has no part {name}; it has {known}")]
    NoPart {
        /// The part looked for.
        name: String,
        /// Those there are.
        known: String,
    },
    /// The machines below cannot be made, found or removed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The name is not a possible one.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A program cannot be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A part has ended when it should run.
    #[error("{part} has ended; the end of its log, {log}:\n{said}")]
    Ended {
        /// The part.
        part: String,
        /// Its log.
        log: PathBuf,
        /// The end of the log.
        said: String,
    },
    /// A command has failed.
    #[error("`{command}` failed: {said}")]
    Command {
        /// The command.
        command: String,
        /// What it said.
        said: String,
    },
    /// A file cannot be read or written.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Keys and certificates cannot be made.
    #[error("cannot make the cluster's certificates: {0}")]
    Certificates(String),
    /// What a program printed is not what was expected.
    #[error("cannot understand what `{command}` printed: {said}")]
    Unreadable {
        /// The command.
        command: String,
        /// What is wrong with it.
        said: String,
    },
    /// What was waited for has not happened in time.
    #[error("{what}: not within {after:?}{last}")]
    NotReached {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
        /// What stood in the way last.
        last: String,
    },
}
