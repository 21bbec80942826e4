//! Where the authority's keys and certificates come from.
//!
//! | source | keys are | rotation of the root |
//! |---|---|---|
//! | directory | generated here, kept in `authority.json` | by itself, or on demand |
//! | files | the operator's, in Istio's layout | by the operator, through two roots in `root-cert.pem` |
//! | secret | either of them, as the keys of a Kubernetes secret | as above |
//!
//! Servers that share a directory or a secret agree on one state: each changes it only if nobody else did.

mod directory;
mod files;
mod secret;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::generations::{Generations, Lifetimes, StateError};
use super::signer::Material;
pub(super) use directory::{Directory, write_file};
pub(super) use files::Files;
pub(super) use secret::Secret;

/// File or key of the generated state.
const STATE: &str = "authority.json";

/// A place of keys and certificates.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Directory(Directory),
    Files(Files),
    Secret(Secret),
}

/// What generated authorities are to be like.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) trust_domain: String,
    pub(super) lifetimes: Lifetimes,
}

/// What a source holds.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) material: Material,
    /// The state behind it, if it was generated.
    pub(super) generations: Option<Generations>,
}

/// What to do with a generated state; files of an operator are only ever read.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// Begin it if there is none, and take every step whose time has come.
    Due(Arc<Plan>),
    /// Note that a new root is wanted.
    Rotate,
    /// Nothing.
    Look,
}

/// A source gives nothing that can be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    #[error("{}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    #[error("{}: {error}", path.display())]
    State { path: PathBuf, error: StateError },
    #[error("secret {name}: {reason}")]
    Secret { name: String, reason: String },
    #[error(
        "{0} holds an operator's certificates: to rotate, put the old and the new root into root-cert.pem, wait until \
         all certificates were renewed, replace ca-cert.pem, ca-key.pem and cert-chain.pem, wait again, and remove the \
         old root"
    )]
    Operators(String),
    #[error("reading did not end: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl Source {
    /// Makes a change and returns what there is after it.
    pub(super) async fn change(&self, change: Change, now: SystemTime) -> Result<Found, SourceError> {
        match self {
            Self::Directory(directory) => {
                let directory = directory.clone();
                tokio::task::spawn_blocking(move || directory.change(&change, now)).await?
            }
            Self::Files(files) => {
                let files = files.clone();
                tokio::task::spawn_blocking(move || files.read(&change)).await?
            }
            Self::Secret(secret) => secret.change(&change, now).await,
        }
    }
}

impl Change {
    /// Changes the state that `kept` holds. The second part tells whether it has to be written.
    fn apply(&self, kept: Option<&[u8]>, now: SystemTime) -> Result<(Generations, bool), StateError> {
        let kept = kept.map(Generations::read).transpose()?;
        match (self, kept) {
            (Self::Due(plan), None) => {
                Ok((Generations::begin(&plan.trust_domain, &plan.lifetimes, now)?, true))
            }
            (Self::Due(plan), Some(mut state)) => {
                state.check_trust_domain(&plan.trust_domain)?;
                let changed = state.advance(&plan.lifetimes, now)?;
                Ok((state, changed))
            }
            (Self::Rotate | Self::Look, None) => Err(StateError::Missing),
            (Self::Rotate, Some(mut state)) => {
                let changed = state.request_rotation()?;
                Ok((state, changed))
            }
            (Self::Look, Some(state)) => Ok((state, false)),
        }
    }
}

impl Found {
    fn generated(generations: Generations) -> Result<Self, StateError> {
        Ok(Self { material: generations.material()?, generations: Some(generations) })
    }
}
