//! From the text of a manifest file to resources and problems. No file is touched here.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::tree::{Node, Value};
use crate::model::findings::{FieldPath, Finding, field};
use crate::model::{self, Kind, ObjectName, Resource, ResourceKey};
use crate::source::{Origin, Problem};

/// Documents, or items of lists, in one file.
const MAX_OBJECTS: usize = 50_000;

/// A resource and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Given {
    pub(super) resource: Resource,
    /// Line its document, or its item of a list, begins at.
    pub(super) line: u64,
}

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Manifest {
    pub(super) resources: BTreeMap<ResourceKey, Given>,
    pub(super) problems: Vec<Problem>,
    /// Resources that are in the file but cannot be used.
    pub(super) refused: BTreeSet<ResourceKey>,
    /// What is served in the place of some of these, unless there is a good version from before.
    pub(super) stand_ins: BTreeMap<ResourceKey, Given>,
    /// A document could not even be told apart: any resource the file had before may be the one.
    pub(super) unidentified: bool,
    /// Kinds that the mesh is not made of, as `apiVersion Kind`, and where they were seen first.
    pub(super) ignored: BTreeMap<String, u64>,
    objects: usize,
}

impl Manifest {
    /// Reads a file's text; `file` is for the problems.
    pub(super) fn parse(file: &Path, text: &str) -> Self {
        let mut manifest = Self::default();
        for document in documents(text) {
            manifest.read_document(file, &document);
        }
        manifest
    }

    /// Stands for a file whose text cannot be had.
    pub(super) fn unreadable(problem: Problem) -> Self {
        Self { unidentified: true, problems: vec![problem], ..Self::default() }
    }

    fn read_document(&mut self, file: &Path, document: &Document<'_>) {
        // Lines of the tree count from the start of the document.
        let offset = document.line - 1;
        match Node::parse(document.text) {
            Ok(None) => {}
            Ok(Some(tree)) => self.read_object(&Object { file, offset, line: document.line, tree: &tree }),
            Err(error) => {
                self.unidentified = true;
                let origin = Origin::File {
                    file: file.to_owned(),
                    line: error.line.unwrap_or(1) + offset,
                    document_line: document.line,
                };
                self.problems.push(Problem::new(
                    origin,
                    None,
                    &Finding::refusal(FieldPath::default(), error.reason),
                ));
            }
        }
    }

    fn read_object(&mut self, object: &Object<'_>) {
        self.objects += 1;
        if self.objects > MAX_OBJECTS {
            self.unidentified = true;
            // Said once, not for each of the rest.
            if self.objects == MAX_OBJECTS + 1 {
                let reason = format!("more than {MAX_OBJECTS} objects in one file: split it");
                self.problems.push(object.problem(None, &Finding::refusal(FieldPath::default(), reason)));
            }
            return;
        }
        match object.kind() {
            Err(finding) => {
                self.unidentified = true;
                self.problems.push(object.problem(None, &finding));
            }
            Ok(ObjectKind::List) => self.read_list(object),
            Ok(ObjectKind::Unknown(kind)) => {
                self.ignored.entry(kind).or_insert(object.line);
            }
            Ok(ObjectKind::Known(kind, version)) => self.read_resource(object, kind, version),
        }
    }

    fn read_list(&mut self, list: &Object<'_>) {
        match list.tree.value.field("items") {
            Some(Value::Sequence(items)) => {
                for item in items {
                    self.read_object(&Object { line: item.line + list.offset, tree: item, ..*list });
                }
            }
            None | Some(Value::Scalar(serde_json::Value::Null)) => {}
            Some(_) => {
                self.unidentified = true;
                self.problems
                    .push(list.problem(None, &Finding::refusal(field!["items"], "expected a sequence")));
            }
        }
    }

    fn read_resource(&mut self, object: &Object<'_>, kind: Kind, version: &str) {
        let key = object.key(kind);
        let (resource, mut findings) = if kind.versions().contains(&version) {
            model::read(kind, object.tree.value.to_json())
        } else {
            let versions = kind.versions().join(", ");
            let reason = format!("version {version:?} of {kind} is not known; known are {versions}");
            (None, vec![Finding::refusal(field!["apiVersion"], reason)])
        };
        if let Some(first) = key.as_ref().and_then(|key| self.resources.get(key)) {
            let reason = format!("is in this file already, at line {}: this one is not used", first.line);
            findings.push(Finding::refusal(FieldPath::default(), reason));
            // The first stays; refusing the key would be about that one.
            self.note(object, key.as_ref(), &findings);
            return;
        }
        self.note(object, key.as_ref(), &findings);
        match (resource, key) {
            (Some(resource), _) => {
                self.resources.insert(resource.key(), Given { resource, line: object.line });
            }
            (None, Some(key)) => {
                if let Some(stand_in) = Resource::stand_in(&key, &object.tree.value.to_json(), &findings) {
                    self.stand_ins.insert(key.clone(), Given { resource: stand_in, line: object.line });
                }
                self.refused.insert(key);
            }
            (None, None) => self.unidentified = true,
        }
    }

    fn note(&mut self, object: &Object<'_>, key: Option<&ResourceKey>, findings: &[Finding]) {
        self.problems.extend(findings.iter().map(|finding| object.problem(key, finding)));
    }
}

/// A document of a file.
#[derive(Debug, PartialEq, Eq)]
struct Document<'a> {
    /// Line it begins at, from 1.
    line: u64,
    text: &'a str,
}

/// Splits a stream at its document marks, before any parsing, so that a mistake in one document does not hide the
/// others. A mark cannot stand at the start of a line anywhere inside a document.
fn documents(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let mut current: Option<(u64, usize)> = None;
    let mut offset = 0;
    let mut close = |current: &mut Option<(u64, usize)>, end: usize| {
        if let Some((line, start)) = current.take() {
            documents.push(Document { line, text: text.get(start..end).unwrap_or_default() });
        }
    };
    for (line, content) in (1..).zip(text.split_inclusive('\n')) {
        let marks = |mark: &str| {
            content
                .strip_prefix(mark)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        if marks("---") || marks("...") {
            close(&mut current, offset);
            // Something may follow the mark on its line; the parser knows the mark itself.
            let follows = content.get(3..).unwrap_or_default().trim();
            if content.starts_with('-') && !follows.is_empty() && !follows.starts_with('#') {
                current = Some((line, offset));
            }
        } else if current.is_none() && is_content(content) {
            current = Some((line, offset));
        }
        offset += content.len();
    }
    close(&mut current, offset);
    documents
}

/// Whether a line between documents begins one. A directive (`%YAML 1.2`) says nothing to us.
fn is_content(line: &str) -> bool {
    let text = line.trim();
    !text.is_empty() && !text.starts_with('#') && !line.starts_with('%')
}

/// An object of a file.
#[derive(Clone, Copy)]
struct Object<'a> {
    file: &'a Path,
    /// Lines of the file before its document.
    offset: u64,
    /// Line it begins at.
    line: u64,
    tree: &'a Node,
}

enum ObjectKind<'a> {
    Known(Kind, &'a str),
    List,
    Unknown(String),
}

impl<'a> Object<'a> {
    fn kind(&self) -> Result<ObjectKind<'a>, Finding> {
        if !matches!(self.tree.value, Value::Mapping(_)) {
            return Err(Finding::refusal(
                FieldPath::default(),
                "expected an object with apiVersion and kind",
            ));
        }
        let text = |field| {
            self.tree.value.field(field).and_then(Value::text).filter(|text| !text.is_empty()).ok_or_else(
                || Finding::refusal(field![field], format!("a manifest needs the text field {field}")),
            )
        };
        let (api_version, kind) = (text("apiVersion")?, text("kind")?);
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Ok(match Kind::parse(group, kind) {
            Some(known) => ObjectKind::Known(known, version),
            // `kubectl get -o yaml` writes List; the API itself PodList and the like.
            None if kind.ends_with("List") && self.tree.value.field("items").is_some() => ObjectKind::List,
            None => ObjectKind::Unknown(format!("{api_version} {kind}")),
        })
    }

    /// The key, as far as kind and name can be told from an object that may be damaged elsewhere.
    fn key(&self, kind: Kind) -> Option<ResourceKey> {
        let metadata = self.tree.value.field("metadata")?;
        let name = metadata.field("name").and_then(Value::text).filter(|name| !name.is_empty())?;
        let namespace = match metadata.field("namespace") {
            _ if !kind.namespaced() => "",
            Some(namespace) => namespace.text()?,
            None => "default",
        };
        Some(ResourceKey { kind, name: ObjectName::new(namespace, name) })
    }

    fn problem(&self, key: Option<&ResourceKey>, finding: &Finding) -> Problem {
        let origin = Origin::File {
            file: self.file.to_owned(),
            line: self.offset + self.tree.line_of(&finding.path),
            document_line: self.line,
        };
        Problem::new(origin, key, finding)
    }
}
