//! The state of a source, in the same words for every kind of source: in the log, in metrics and in `/status`.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use tracing::{info, warn};

use crate::model::findings::{Finding, Severity};
use crate::model::{Kind, ResourceKey};

/// What is said of a refused resource that had a good version.
pub(super) const LAST_GOOD: &str = "the last good version is still served";

/// The state of a source.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The files it reads, in order.
    pub files: Vec<FileReport>,
    /// The kinds it watches.
    pub watches: Vec<WatchReport>,
    /// Everything that is wrong in it now.
    pub problems: Vec<Problem>,
    /// Directories, or kinds, that were never read as a whole: what they give is not known.
    pub unread: Vec<String>,
}

impl Report {
    /// Number of problems of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }

    /// What is missing before agents can be served, if anything is.
    pub fn unready(&self) -> Option<String> {
        if self.unread.is_empty() {
            return None;
        }
        let reason = self.watches.iter().find_map(|watch| match &watch.state {
            WatchState::Broken { reason, .. } => Some(format!(": {}: {reason}", watch.kind)),
            _ => None,
        });
        Some(format!("{} cannot be read yet{}", self.unread.join(", "), reason.unwrap_or_default()))
    }

    /// What was read but is not followed any more, and since when.
    pub fn stale(&self) -> impl Iterator<Item = String> {
        self.watches.iter().filter_map(|watch| match &watch.state {
            WatchState::Broken { since, reason } => {
                Some(format!("{}: not followed since {since}, what is known is served: {reason}", watch.kind))
            }
            _ => None,
        })
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

/// A kind that is watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WatchReport {
    /// The kind.
    pub kind: Kind,
    /// How its watch is.
    #[serde(flatten)]
    pub state: WatchState,
}

/// How the watch of a kind is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum WatchState {
    /// All there are, are being read.
    Listing,
    /// Changes are told as they happen.
    Watching {
        /// The version of the API that they are read in, such as `security.istio.io/v1`.
        api_version: String,
    },
    /// The API does not have the kind: there are none.
    Missing,
    /// The API cannot be asked. What is known stays.
    Broken {
        /// Since when.
        since: String,
        /// Why.
        reason: String,
    },
}

/// Something that is wrong with a resource, or with the place it is read from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// Where it stands.
    #[serde(flatten)]
    pub origin: Origin,
    /// Whether the resource is used nevertheless.
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

/// Where a resource stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
pub enum Origin {
    /// A manifest.
    File {
        /// The file.
        file: PathBuf,
        /// Line of the problem, from 1; 0 if it is about the file as a whole.
        line: u64,
        /// Line at which the document begins.
        document_line: u64,
    },
    /// The Kubernetes API; the problem names the resource.
    Api {
        /// The `metadata.generation` of the version that was read, where its kind counts them.
        generation: Option<i64>,
    },
}

impl Problem {
    /// What `finding` means for a resource that stands at `origin`.
    pub(super) fn new(origin: Origin, key: Option<&ResourceKey>, finding: &Finding) -> Self {
        let field = finding.path.to_string();
        Self {
            origin,
            severity: finding.severity,
            resource: key.map(ResourceKey::to_string),
            field: (!field.is_empty()).then_some(field),
            reason: finding.reason.clone(),
            served_instead: None,
        }
    }
}

#[cfg(test)]
impl Problem {
    /// The line its document begins at, and the one it is about; 0 if there are none.
    pub(super) fn lines(&self) -> (u64, u64) {
        match self.origin {
            Origin::File { line, document_line, .. } => (document_line, line),
            Origin::Api { .. } => (0, 0),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        match &self.origin {
            Origin::File { file, line: 0, .. } => write!(out, "{}:", file.display())?,
            Origin::File { file, line, .. } => write!(out, "{}:{line}:", file.display())?,
            Origin::Api { .. } => {}
        }
        if matches!(self.origin, Origin::File { .. }) {
            separator = " ";
        }
        for part in [&self.resource, &self.field].into_iter().flatten() {
            write!(out, "{separator}{part}:")?;
            separator = " ";
        }
        write!(out, "{separator}{}", self.reason)?;
        match (self.severity, self.served_instead) {
            (Severity::Warning, _) => out.write_str(" (warning)"),
            (Severity::Refused, None) => Ok(()),
            (Severity::Refused, Some(instead)) => write!(out, " ({instead})"),
        }
    }
}

/// The problems that were logged: each is said once, and once that all of them are gone.
#[derive(Debug, Default)]
pub(super) struct Logged(BTreeSet<Problem>);

impl Logged {
    /// Logs those that are news.
    pub(super) fn note(&mut self, problems: &[Problem]) {
        let now: BTreeSet<Problem> = problems.iter().cloned().collect();
        for problem in now.difference(&self.0) {
            warn!("{problem}");
        }
        if !self.0.is_empty() && now.is_empty() {
            info!("nothing is wrong with the resources any more");
        }
        self.0 = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;
    use crate::model::findings::field;

    #[test]
    fn files_and_objects_are_spoken_of_alike() {
        let key = ResourceKey { kind: Kind::Service, name: ObjectName::new("shop", "a") };
        let finding = Finding::refusal(field!["spec", "ports", 0], "is bad");
        let file = Origin::File { file: "f.yaml".into(), line: 7, document_line: 5 };
        let object = Origin::Api { generation: Some(3) };
        let said = |origin: &Origin| Problem::new(origin.clone(), Some(&key), &finding);
        assert_eq!(said(&file).to_string(), "f.yaml:7: Service shop/a: spec.ports[0]: is bad");
        assert_eq!(said(&object).to_string(), "Service shop/a: spec.ports[0]: is bad");
        let shown = |origin| serde_json::to_value(said(origin)).unwrap();
        assert_eq!((&shown(&file)["line"], &shown(&file)["field"]), (&7.into(), &"spec.ports[0]".into()));
        assert_eq!(
            (&shown(&object)["generation"], &shown(&object)["severity"]),
            (&3.into(), &"refused".into())
        );
    }
}
