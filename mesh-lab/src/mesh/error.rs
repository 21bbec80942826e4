//! What can go wrong with a mesh.

use std::io;
use std::path::PathBuf;

use crate::lab::LabError;
use crate::process::ProcessError;

/// Why a mesh does not come up, or does not do what it is told.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The lab.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A program.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A program of the mesh is not there.
    #[error("{0} is not there: build it with `cargo build --workspace`, or set MESH_BIN_DIR")]
    NotBuilt(PathBuf),
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A program that does not become ready.
    #[error("{what} is not ready: {answer}\n{log}")]
    NotReady {
        /// The program.
        what: String,
        /// Its last answer.
        answer: String,
        /// What it has logged.
        log: String,
    },
    /// A program that should run does not, or the other way round.
    #[error("{0}")]
    State(String),
    /// meshctl failed.
    #[error("meshctl {arguments} on {node}: {said}")]
    Meshctl {
        /// The node.
        node: String,
        /// Its arguments.
        arguments: String,
        /// What it said.
        said: String,
    },
}
