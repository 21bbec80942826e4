//! Manifests checked without being served: the verdicts of the webhook, with file and line, before anything is applied.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread;

use serde::Serialize;

use super::cross_check;
use super::directory::{Directory, ManifestFile};
use super::document::Given;
use crate::model::ResourceKey;
use crate::model::findings::Severity;
use crate::source::{Origin, Problem};

/// The path that stands for the standard input.
pub const STANDARD_INPUT: &str = "-";

/// What manifests amount to.
#[derive(Debug, Default, Serialize)]
pub struct Validation {
    /// Resources that can be used, in the order of their places.
    pub accepted: Vec<Accepted>,
    /// Everything that is wrong with them, by themselves and together.
    pub problems: Vec<Problem>,
    /// Kinds that the mesh is not made of (`apiVersion Kind`), and the place where each was seen first.
    pub ignored: BTreeMap<String, Place>,
}

/// A resource that can be used.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Accepted {
    /// Where its document begins.
    #[serde(flatten)]
    pub place: Place,
    /// Kind and name.
    pub resource: String,
    /// Whether a part of it has no effect, which is among the problems.
    pub in_part: bool,
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: u64,
}

/// Checks files, the manifests in directories, and, where a path is [`STANDARD_INPUT`], what `input` has.
pub fn validate(paths: &[PathBuf], input: impl Read, root_namespace: &str) -> Validation {
    let (directories, paths): (Vec<_>, Vec<_>) = paths.iter().cloned().partition(|path| path.is_dir());
    let mut input = Some(input);
    let mut files = Vec::new();
    for path in paths {
        // Read once: a second time it is at its end.
        let file = match input.take_if(|_| path == Path::new(STANDARD_INPUT)) {
            Some(input) => ManifestFile::read_from(&path, input),
            None => ManifestFile::read(&path),
        };
        files.push((path, file));
    }
    let mut directory = Directory::new(directories);
    let mut report = None;
    loop {
        let scan = directory.scan(|_| false);
        report = scan.report.or(report);
        match scan.again {
            Some(again) => thread::sleep(again),
            None => break,
        }
    }

    let mut problems: Vec<Problem> = files.iter().flat_map(|(_, file)| file.problems.clone()).collect();
    problems.extend(report.into_iter().flat_map(|report| report.problems));
    let single = files
        .iter()
        .flat_map(|(path, file)| file.resources.iter().map(move |(key, given)| (path.as_path(), key, given)));
    let given = single.chain(directory.served());
    problems.extend(cross_check::check(given.clone().map(|(path, _, given)| (path, given)), root_namespace));

    let in_part = |key: &ResourceKey, path: &Path| {
        let name = key.to_string();
        problems.iter().any(|problem| {
            problem.resource.as_ref() == Some(&name)
                && matches!(&problem.origin, Origin::File { file, .. } if file == path)
        })
    };
    let mut accepted: Vec<Accepted> = given
        .filter(|(_, _, given)| given.resource.stands_in().is_none())
        .map(|(path, key, given): (&Path, &ResourceKey, &Given)| Accepted {
            place: Place { file: path.to_owned(), line: given.line },
            resource: key.to_string(),
            in_part: in_part(key, path),
        })
        .collect();
    accepted.sort();
    let mut ignored = BTreeMap::new();
    for (path, file) in files.iter().map(|(path, file)| (path, file)).chain(directory.files()) {
        for (kind, line) in &file.ignored {
            ignored.entry(kind.clone()).or_insert_with(|| Place { file: path.clone(), line: *line });
        }
    }
    Validation { accepted, problems, ignored }
}

impl Validation {
    /// Whether anything would be refused.
    pub fn refused(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Refused)
    }

    /// What became of everything, in a line.
    pub fn summary(&self) -> impl fmt::Display {
        let in_part = self.accepted.iter().filter(|accepted| accepted.in_part).count();
        let refusals = self.problems.iter().filter(|problem| problem.severity == Severity::Refused).count();
        let mut text = format!("{} accepted", self.accepted.len());
        if in_part > 0 {
            text.push_str(&format!(" ({in_part} in part)"));
        }
        text.push_str(&format!(", {refusals} {}", if refusals == 1 { "mistake" } else { "mistakes" }));
        if !self.ignored.is_empty() {
            let kinds: Vec<_> = self.ignored.keys().map(String::as_str).collect();
            text.push_str(&format!("; not what the mesh is made of: {}", kinds.join(", ")));
        }
        text
    }
}
