//! The objects of the stand-in, their history, and what it was asked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::{Value, json};

use super::Trouble;

/// Lists that are being read in pages, at most; a reader of an older one is told that it has expired.
const MAX_LISTS: usize = 64;

/// A kind that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceType {
    /// API group; empty for the core.
    pub group: String,
    /// Versions, the preferred one first. Objects are the same in each.
    pub versions: Vec<String>,
    /// Name in paths.
    pub plural: String,
    /// Name in objects.
    pub kind: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Whether discovery says that their status can be written for itself.
    pub status: bool,
}

impl ResourceType {
    /// A kind whose objects live in namespaces.
    pub fn namespaced(group: &str, versions: &[&str], plural: &str, kind: &str) -> Self {
        let versions = versions.iter().map(|version| (*version).to_owned()).collect();
        let (group, plural, kind) = (group.to_owned(), plural.to_owned(), kind.to_owned());
        Self { group, versions, plural, kind, namespaced: true, status: false }
    }

    /// The same with a status that can be written for itself.
    #[must_use]
    pub fn with_status(self) -> Self {
        Self { status: true, ..self }
    }

    /// A kind of the whole cluster.
    pub fn cluster_wide(group: &str, versions: &[&str], plural: &str, kind: &str) -> Self {
        Self { namespaced: false, ..Self::namespaced(group, versions, plural, kind) }
    }
}

/// A request about a resource and its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// The verb, as RBAC has it: get, list, watch, create, update, patch or delete.
    pub verb: &'static str,
    /// API group.
    pub group: String,
    /// Version of it.
    pub version: String,
    /// Name of the kind in paths, with the subresource after a slash.
    pub resource: String,
    /// Namespace; empty for all.
    pub namespace: String,
    /// Name; empty for all.
    pub name: String,
    /// The query.
    pub query: BTreeMap<String, String>,
    /// What was sent.
    pub body: Value,
    /// The status of the answer.
    pub status: u16,
}

impl Answered {
    /// What it needs the right to.
    pub fn right(&self) -> String {
        right(self.verb, &self.resource, &self.group)
    }
}

/// `verb resource`, or `verb resource.group`.
pub(super) fn right(verb: &str, resource: &str, group: &str) -> String {
    if group.is_empty() { format!("{verb} {resource}") } else { format!("{verb} {resource}.{group}") }
}

/// A kind's group and plural.
pub(super) type Collection = (String, String);

/// A version of an object.
#[derive(Clone)]
pub(super) struct Event {
    pub(super) version: u64,
    /// None: for every watch.
    pub(super) collection: Option<Collection>,
    pub(super) namespace: String,
    pub(super) change: &'static str,
    pub(super) object: Arc<Value>,
}

/// A list that is being read.
pub(super) struct List {
    pub(super) version: u64,
    pub(super) rest: Vec<Arc<Value>>,
}

pub(super) struct State {
    pub(super) version: u64,
    pub(super) types: Vec<ResourceType>,
    /// By kind, namespace and name.
    objects: BTreeMap<(Collection, String, String), Arc<Value>>,
    pub(super) log: Vec<Event>,
    /// The oldest version that a watch may go on from.
    pub(super) horizon: u64,
    /// Watches of an earlier one end.
    pub(super) epoch: u64,
    pub(super) away: bool,
    pub(super) lists: HashMap<String, List>,
    pub(super) trouble: Trouble,
    pub(super) write_errors: Vec<u16>,
    pub(super) reviews: BTreeMap<String, Value>,
    pub(super) answered: Vec<Answered>,
    /// What is answered with 403.
    pub(super) forbidden: BTreeSet<String>,
    /// Items of a page, at most.
    pub(super) page: usize,
}

impl State {
    pub(super) fn with_kubernetes_kinds() -> Self {
        let namespaced = ResourceType::namespaced;
        let cluster_wide = ResourceType::cluster_wide;
        let types = vec![
            namespaced("", &["v1"], "pods", "Pod"),
            namespaced("", &["v1"], "services", "Service"),
            namespaced("", &["v1"], "secrets", "Secret"),
            cluster_wide("", &["v1"], "namespaces", "Namespace"),
            cluster_wide("", &["v1"], "nodes", "Node"),
            namespaced("discovery.k8s.io", &["v1"], "endpointslices", "EndpointSlice"),
            namespaced("coordination.k8s.io", &["v1"], "leases", "Lease"),
            cluster_wide("authentication.k8s.io", &["v1"], "tokenreviews", "TokenReview"),
            cluster_wide(
                "authorization.k8s.io",
                &["v1"],
                "selfsubjectaccessreviews",
                "SelfSubjectAccessReview",
            ),
            namespaced("apps", &["v1"], "daemonsets", "DaemonSet"),
        ];
        Self {
            types,
            version: 0,
            objects: BTreeMap::new(),
            log: Vec::new(),
            horizon: 0,
            epoch: 0,
            away: false,
            lists: HashMap::new(),
            trouble: Trouble::None,
            write_errors: Vec::new(),
            reviews: BTreeMap::new(),
            answered: Vec::new(),
            forbidden: BTreeSet::new(),
            page: usize::MAX,
        }
    }

    pub(super) fn install(&mut self, resource: ResourceType) {
        self.types.retain(|known| known.group != resource.group || known.plural != resource.plural);
        self.types.push(resource);
    }

    pub(super) fn uninstall(&mut self, group: &str, plural: &str) {
        let collection = (group.to_owned(), plural.to_owned());
        self.types.retain(|known| known.group != group || known.plural != plural);
        self.objects.retain(|(of, _, _), _| *of != collection);
        self.epoch += 1;
    }

    pub(super) fn type_at(&self, group: &str, version: &str, plural: &str) -> Option<&ResourceType> {
        let served = |known: &&ResourceType| known.group == group && known.plural == plural;
        self.types.iter().find(served).filter(|known| known.versions.iter().any(|known| known == version))
    }

    /// Creates or replaces an object, whichever version there was.
    pub(super) fn apply(&mut self, mut object: Value) -> Result<Arc<Value>, String> {
        let api_version = text(&object, "apiVersion");
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let kind = text(&object, "kind");
        let served = self.types.iter().find(|known| known.group == group && known.kind == kind);
        let served = served.ok_or_else(|| format!("{api_version} {kind} is not served"))?.clone();
        let namespace = if served.namespaced {
            let namespace = text(&object["metadata"], "namespace");
            if namespace.is_empty() { "default".to_owned() } else { namespace }
        } else {
            String::new()
        };
        let name = text(&object["metadata"], "name");
        if name.is_empty() {
            return Err(format!("an object of kind {kind} needs a name"));
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        if served.namespaced {
            object["metadata"]["namespace"] = namespace.as_str().into();
        }
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}", self.version).into();
        }
        let object = Arc::new(object);
        let collection = (served.group, served.plural);
        let id = (collection.clone(), namespace.clone(), name);
        let old = self.objects.insert(id, Arc::clone(&object));
        let change = if old.is_some() { "MODIFIED" } else { "ADDED" };
        self.record(Some(collection), namespace, change, Arc::clone(&object));
        Ok(object)
    }

    pub(super) fn delete(&mut self, kind: &str, namespace: &str, name: &str) -> Result<(), String> {
        let id = self.id(kind, namespace, name)?;
        let object =
            self.objects.remove(&id).ok_or_else(|| format!("there is no {kind} {namespace}/{name}"))?;
        self.version += 1;
        let mut object = Value::clone(&object);
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.record(Some(id.0), id.1, "DELETED", Arc::new(object));
        Ok(())
    }

    pub(super) fn object(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let id = self.id(kind, namespace, name).ok()?;
        self.objects.get(&id).map(|object| Value::clone(object))
    }

    fn id(&self, kind: &str, namespace: &str, name: &str) -> Result<(Collection, String, String), String> {
        let served = self.types.iter().find(|known| known.kind == kind);
        let served = served.ok_or_else(|| format!("{kind} is not served"))?;
        let collection = (served.group.clone(), served.plural.clone());
        Ok((collection, namespace.to_owned(), name.to_owned()))
    }

    /// The objects of a kind, of one namespace or of all.
    pub(super) fn all(&self, collection: &Collection, namespace: &str) -> Vec<Arc<Value>> {
        let objects = self.objects.range((collection.clone(), String::new(), String::new())..);
        objects
            .take_while(|((of, _, _), _)| of == collection)
            .filter(|((_, of, _), _)| namespace.is_empty() || of == namespace)
            .map(|(_, object)| Arc::clone(object))
            .collect()
    }

    /// Keeps the rest of a list and returns the name of its next page.
    pub(super) fn keep(&mut self, list: List) -> String {
        if self.lists.len() >= MAX_LISTS {
            self.lists.clear();
        }
        let token = format!("{}-{}", list.version, list.rest.len());
        self.lists.insert(token.clone(), list);
        token
    }

    pub(super) fn bookmark(&mut self) {
        let metadata = json!({"resourceVersion": self.version.to_string()});
        let object = Arc::new(json!({"metadata": metadata}));
        self.record(None, String::new(), "BOOKMARK", object);
    }

    pub(super) fn expire(&mut self) {
        self.version += 1;
        self.horizon = self.version;
        self.lists.clear();
        self.epoch += 1;
    }

    pub(super) fn set_away(&mut self, away: bool) {
        self.away = away;
        self.epoch += 1;
    }

    fn record(
        &mut self,
        collection: Option<Collection>,
        namespace: String,
        change: &'static str,
        object: Arc<Value>,
    ) {
        self.log.push(Event { version: self.version, collection, namespace, change, object });
    }
}

pub(super) fn text(object: &Value, field: &str) -> String {
    object[field].as_str().unwrap_or_default().to_owned()
}
