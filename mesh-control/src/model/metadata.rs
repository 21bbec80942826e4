//! Names, labels and selectors.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::findings::{Findings, field};

/// Longest DNS subdomain, which is what Kubernetes allows as a name.
const MAX_SUBDOMAIN: usize = 253;
/// Longest DNS label.
const MAX_LABEL: usize = 63;
/// Namespace of a manifest that names none, as with `kubectl apply`.
const DEFAULT_NAMESPACE: &str = "default";

/// Labels of a resource.
pub type Labels = BTreeMap<String, String>;

/// Namespace and name of a resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Namespace; empty for resources of the whole cluster.
    pub namespace: Arc<str>,
    /// Name, unique in the namespace among resources of its kind.
    pub name: Arc<str>,
}

impl ObjectName {
    /// The name of a resource that lives in a namespace.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Reads the name of a resource that lives in a namespace.
    pub(super) fn namespaced(metadata: &ObjectMeta, findings: &mut Findings) -> Self {
        let namespace = metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        if !is_label(namespace) {
            findings.refuse(field!["metadata", "namespace"], not_a_name(namespace));
        }
        Self::new(namespace, read_name(metadata, findings))
    }

    /// Reads the name of a resource of the whole cluster.
    pub(super) fn cluster_wide(metadata: &ObjectMeta, findings: &mut Findings) -> Self {
        Self::new("", read_name(metadata, findings))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            out.write_str(&self.name)
        } else {
            write!(out, "{}/{}", self.namespace, self.name)
        }
    }
}

/// Labels a resource must have to be selected. Never empty: a selector without labels selects nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector(Labels);

impl Selector {
    /// A selector of these labels; `None` if there are none.
    pub fn new(labels: Labels) -> Option<Self> {
        (!labels.is_empty()).then_some(Self(labels))
    }

    /// Whether a resource with `labels` is selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// The labels, at least one.
    pub fn labels(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.iter()
    }
}

/// Whether `text` is a DNS subdomain: labels with dots between them.
pub(crate) fn is_subdomain(text: &str) -> bool {
    text.len() <= MAX_SUBDOMAIN && text.split('.').all(is_label_of_any_length)
}

/// Whether `text` is a DNS label.
pub(crate) fn is_label(text: &str) -> bool {
    text.len() <= MAX_LABEL && is_label_of_any_length(text)
}

fn is_label_of_any_length(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn read_name<'a>(metadata: &'a ObjectMeta, findings: &mut Findings) -> &'a str {
    let name = metadata.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        findings.refuse(field!["metadata", "name"], "a resource needs a name");
    } else if !is_subdomain(name) {
        findings.refuse(field!["metadata", "name"], not_a_name(name));
    }
    name
}

fn not_a_name(text: &str) -> String {
    format!("expected lower case letters, digits, '-' and '.', found {text:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_kubernetes_takes() {
        for name in ["web", "web-7d9f-x2", "a.b", "0"] {
            assert!(is_subdomain(name), "{name}");
        }
        for name in ["", "Web", "a/b", "-a", "a-", "a..b", "a_b", &"a".repeat(254)] {
            assert!(!is_subdomain(name), "{name}");
        }
    }

    #[test]
    fn a_selector_needs_all_its_labels() {
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let selector = Selector::new(labels(&[("app", "web"), ("tier", "front")])).unwrap();
        assert!(selector.matches(&labels(&[("app", "web"), ("tier", "front"), ("more", "x")])));
        assert!(!selector.matches(&labels(&[("app", "web")])));
        assert_eq!(Selector::new(Labels::new()), None);
    }
}
