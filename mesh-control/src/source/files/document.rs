//! From the text of a manifest file to resources and problems. No file is touched here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde::de::DeserializeOwned;

use super::tree::{Node, Value};
use crate::model::findings::{FieldPath, Finding, Findings, Segment, Severity, field};
use crate::model::{
    EndpointSlice, Kind, Namespace, Node as ClusterNode, ObjectName, Pod, Resource, ResourceKey, Service,
    ServiceEntry, ServiceEntryObject, WorkloadEntry, WorkloadEntryObject,
};
use crate::source::Problem;

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
                self.problems.push(Problem {
                    file: file.to_owned(),
                    line: error.line.unwrap_or(1) + offset,
                    document_line: document.line,
                    severity: Severity::Refused,
                    resource: None,
                    field: None,
                    reason: error.reason,
                    last_good_served: false,
                });
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
                self.problems.push(object.problem(None, &refusal(FieldPath::default(), reason)));
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
                self.problems.push(list.problem(None, &refusal(field!["items"], "expected a sequence")));
            }
        }
    }

    fn read_resource(&mut self, object: &Object<'_>, kind: Kind, version: &str) {
        let key = object.key(kind);
        let (resource, mut findings) = if kind.versions().contains(&version) {
            read_typed(kind, object.tree)
        } else {
            let versions = kind.versions().join(", ");
            let reason = format!("version {version:?} of {kind} is not known; known are {versions}");
            (None, vec![refusal(field!["apiVersion"], reason)])
        };
        if let Some(first) = key.as_ref().and_then(|key| self.resources.get(key)) {
            let reason = format!("is in this file already, at line {}: this one is not used", first.line);
            findings.push(refusal(FieldPath::default(), reason));
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
            return Err(refusal(FieldPath::default(), "expected an object with apiVersion and kind"));
        }
        let text = |field| {
            self.tree
                .value
                .field(field)
                .and_then(Value::text)
                .filter(|text| !text.is_empty())
                .ok_or_else(|| refusal(field![field], format!("a manifest needs the text field {field}")))
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
        let field = finding.path.to_string();
        Problem {
            file: self.file.to_owned(),
            line: self.offset + self.tree.line_of(&finding.path),
            document_line: self.line,
            severity: finding.severity,
            resource: key.map(ResourceKey::to_string),
            field: (!field.is_empty()).then_some(field),
            reason: finding.reason.clone(),
            last_good_served: false,
        }
    }
}

fn refusal(path: FieldPath, reason: impl Into<String>) -> Finding {
    Finding { path, reason: reason.into(), severity: Severity::Refused }
}

/// Reads an object as its kind. No resource comes with at least one refusal.
fn read_typed(kind: Kind, tree: &Node) -> (Option<Resource>, Vec<Finding>) {
    match kind {
        Kind::Namespace => read_as(tree, |object: core::Namespace, findings| {
            Resource::Namespace(Arc::new(Namespace::read(object, findings)))
        }),
        Kind::Node => read_as(tree, |object: core::Node, findings| {
            Resource::Node(Arc::new(ClusterNode::read(object, findings)))
        }),
        Kind::Pod => {
            read_as(tree, |object: core::Pod, findings| Resource::Pod(Arc::new(Pod::read(object, findings))))
        }
        Kind::Service => read_as(tree, |object: core::Service, findings| {
            Resource::Service(Arc::new(Service::read(object, findings)))
        }),
        Kind::EndpointSlice => read_as(tree, |object: discovery::EndpointSlice, findings| {
            Resource::EndpointSlice(Arc::new(EndpointSlice::read(object, findings)))
        }),
        Kind::ServiceEntry => read_as(tree, |object: ServiceEntryObject, findings| {
            Resource::ServiceEntry(Arc::new(ServiceEntry::read(object, findings)))
        }),
        Kind::WorkloadEntry => read_as(tree, |object: WorkloadEntryObject, findings| {
            Resource::WorkloadEntry(Arc::new(WorkloadEntry::read(object, findings)))
        }),
    }
}

fn read_as<T: DeserializeOwned>(
    tree: &Node,
    read: impl FnOnce(T, &mut Findings) -> Resource,
) -> (Option<Resource>, Vec<Finding>) {
    let mut findings = Findings::default();
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let json = tree.value.to_json();
    let deserializer = serde_path_to_error::Deserializer::new(json, &mut track);
    let object: Result<T, _> =
        serde_ignored::deserialize(deserializer, |field| unknown.push(unknown_path(&field)));
    for field in unknown {
        findings.warn(field, "is not a field of this kind and has no effect: is it misspelt?");
    }
    let resource = match object {
        Ok(object) => Some(read(object, &mut findings)),
        Err(error) => {
            findings.refuse(error_path(&track.path()), error.to_string());
            None
        }
    };
    let resource = resource.filter(|_| !findings.refused());
    (resource, findings.into_vec())
}

fn unknown_path(path: &serde_ignored::Path<'_>) -> FieldPath {
    use serde_ignored::Path;
    match path {
        Path::Root => FieldPath::default(),
        Path::Seq { parent, index } => unknown_path(parent).then(*index),
        Path::Map { parent, key } => unknown_path(parent).then(key),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            unknown_path(parent)
        }
    }
}

fn error_path(path: &serde_path_to_error::Path) -> FieldPath {
    path.iter()
        .filter_map(|segment| match segment {
            serde_path_to_error::Segment::Seq { index } => Some(Segment::Index(*index)),
            serde_path_to_error::Segment::Map { key } => Some(Segment::from(key)),
            serde_path_to_error::Segment::Enum { .. } | serde_path_to_error::Segment::Unknown => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}\n";

    fn parse(text: &str) -> (Manifest, Vec<String>) {
        let manifest = Manifest::parse(Path::new("shop.yaml"), text);
        let problems = manifest.problems.iter().map(ToString::to_string).collect();
        (manifest, problems)
    }

    fn keys(manifest: &Manifest) -> Vec<String> {
        manifest.resources.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn streams_are_split_at_their_marks() {
        let text =
            "%YAML 1.2\n---\n# shop\na: 1\n--- # next\n\nb: |\n  --- no mark\n...\n# end\n--- {c: 3}\n";
        let found: Vec<_> =
            documents(text).into_iter().map(|document| (document.line, document.text)).collect();
        assert_eq!(found, [(4, "a: 1\n"), (7, "b: |\n  --- no mark\n"), (11, "--- {c: 3}\n")]);
        assert!(documents("---\n---\n# nothing\n").is_empty());
    }

    #[test]
    fn a_bad_document_hides_no_other() {
        let text = format!("{SERVICE}---\nkind: [\n---\n{}", SERVICE.replace("web", "api"));
        let (manifest, problems) = parse(&text);
        assert_eq!(keys(&manifest), ["Service shop/api", "Service shop/web"]);
        assert!(manifest.unidentified);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(manifest.problems[0].document_line, 6);
        assert!(manifest.problems[0].line >= 6, "{problems:?}");
    }

    #[test]
    fn problems_name_file_line_resource_field_and_reason() {
        let text = format!(
            "# comment\n---\n{}",
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  selectr:\n    app: web\n  ports:\n    - port: 0\n"
        );
        let (manifest, problems) = parse(&text);
        assert_eq!(
            problems,
            [
                "shop.yaml:8: Service default/web: spec.selectr: is not a field of this kind and has no effect: is it misspelt? (warning)",
                "shop.yaml:11: Service default/web: spec.ports[0].port: expected a port between 1 and 65535, found 0",
            ]
        );
        assert!(manifest.resources.is_empty() && !manifest.unidentified);
        assert_eq!(manifest.refused.len(), 1);
    }

    #[test]
    fn types_are_checked_as_kubernetes_does() {
        let (_, problems) =
            parse("apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels:\n    version: 2\n");
        assert_eq!(
            problems,
            [
                "shop.yaml:6: Pod default/a: metadata.labels.version: invalid type: integer `2`, expected a string"
            ]
        );
        let (manifest, problems) = parse("apiVersion: v1\nkind: Pod\nmetadata:\n  name: 5\n");
        assert!(manifest.unidentified, "{problems:?}");
    }

    #[test]
    fn lists_are_their_items() {
        let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: a}\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: B}\n";
        let (manifest, problems) = parse(text);
        assert_eq!(keys(&manifest), ["Namespace a"]);
        assert_eq!(manifest.problems[0].document_line, 7, "{problems:?}");
        assert_eq!(manifest.problems[0].line, 9, "{problems:?}");
    }

    #[test]
    fn other_kinds_are_left_alone_and_other_versions_refused() {
        let (manifest, problems) = parse(
            "apiVersion: apps/v1\nkind: Deployment\n---\napiVersion: serving.knative.dev/v1\nkind: Service\n",
        );
        assert!(problems.is_empty());
        assert_eq!(manifest.ignored.len(), 2);
        let (_, problems) = parse(&SERVICE.replace("apiVersion: v1", "apiVersion: v2"));
        assert_eq!(
            problems,
            [
                "shop.yaml:1: Service shop/web: apiVersion: version \"v2\" of Service is not known; known are v1"
            ]
        );
    }

    #[test]
    fn a_resource_is_in_a_file_once() {
        let (manifest, problems) = parse(&format!("{SERVICE}---\n{SERVICE}"));
        assert_eq!(keys(&manifest), ["Service shop/web"]);
        assert_eq!(
            problems,
            ["shop.yaml:6: Service shop/web: is in this file already, at line 1: this one is not used"]
        );
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in [
            "just text\n",
            "- 1\n",
            "kind: Pod\n",
            "apiVersion: v1\nkind: 3\n",
            "apiVersion: v1\nkind: Pod\n",
        ] {
            let (manifest, problems) = parse(text);
            assert!(manifest.unidentified && problems.len() == 1, "{text:?}: {problems:?}");
        }
    }
}
