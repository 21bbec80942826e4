//! Where resources come from.
//!
//! A source reads objects in whatever way is its own, turns them into [`Resource`]s and tells the rest of the
//! program what changed, in [`Batch`]es that belong together. Nothing behind this interface knows where a resource
//! came from. [`files`] reads manifests; a watch of the Kubernetes API belongs next to it and feeds the same
//! channel.

pub mod files;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use tokio::sync::mpsc;

use crate::model::findings::Severity;
use crate::model::{Resource, ResourceKey};

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

/// The state of a source.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What it reads, in order.
    pub files: Vec<FileReport>,
    /// Everything that is wrong in it now.
    pub problems: Vec<Problem>,
    /// Directories that were never read as a whole: what they give is not known.
    pub unread: Vec<PathBuf>,
}

impl Report {
    /// Number of problems of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }
}

/// A file that is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// Its path.
    pub path: PathBuf,
    /// Resources that come from it.
    pub resources: usize,
}

/// Something that is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Line of the problem, from 1; 0 if it is about the file as a whole.
    pub line: u64,
    /// Line at which the document begins.
    pub document_line: u64,
    /// Whether the document is used nevertheless.
    pub severity: Severity,
    /// Kind and name of the resource, as far as they can be told.
    pub resource: Option<String>,
    /// The field.
    pub field: Option<String>,
    /// What is wrong with it.
    pub reason: String,
    /// What counts in the place of what is refused, if anything does.
    pub served_instead: Option<&'static str>,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:", self.file.display())?;
        if self.line != 0 {
            write!(out, "{}:", self.line)?;
        }
        if let Some(resource) = &self.resource {
            write!(out, " {resource}:")?;
        }
        if let Some(field) = &self.field {
            write!(out, " {field}:")?;
        }
        write!(out, " {}", self.reason)?;
        match (self.severity, self.served_instead) {
            (Severity::Warning, _) => out.write_str(" (warning)"),
            (Severity::Refused, None) => Ok(()),
            (Severity::Refused, Some(instead)) => write!(out, " ({instead})"),
        }
    }
}
