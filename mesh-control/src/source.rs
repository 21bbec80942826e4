//! Where resources come from.
//!
//! A source reads objects in whatever way is its own, turns them into [`Resource`]s and tells the rest of the
//! program what changed, in [`Batch`]es that belong together. Nothing behind this interface knows where a resource
//! came from. [`files`] reads manifests, [`kubernetes`] watches the Kubernetes API.

pub mod files;
pub mod kubernetes;
mod report;

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::model::{Resource, ResourceKey};
pub use report::{FileReport, Origin, Problem, Report, WatchReport, WatchState};

/// A change of one resource.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// It is new or has changed.
    Upsert(Resource),
    /// It is gone.
    Remove(ResourceKey),
}

/// Changes that belong together, and how the source is.
#[derive(Debug)]
pub struct Batch {
    /// The changes; may be none if only the report is news. There is at most one per resource.
    pub changes: Vec<Change>,
    /// When the source learned of the oldest of the changes.
    pub noticed: Instant,
    /// The state of the source after them.
    pub report: Arc<Report>,
}

/// Sends batches to the one task that works them in. Bounded: a source that is faster waits.
pub type BatchSender = mpsc::Sender<Batch>;
