//! Whether policies fit the workloads they are given with: what no document shows by itself.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::document::Given;
use crate::model::findings::{FieldPath, Finding, field};
use crate::model::{Labels, ObjectName, Resource, Selector};
use crate::source::{Origin, Problem};
use crate::translate::Labelled;

/// Warns of policies that are for nobody. Without any workload nothing can be told: the policies are a set by
/// themselves.
pub(super) fn check<'a>(
    given: impl Iterator<Item = (&'a Path, &'a Given)> + Clone,
    root_namespace: &str,
) -> Vec<Problem> {
    let mut workloads = Workloads::default();
    for (_, given) in given.clone() {
        match &given.resource {
            Resource::Pod(pod) => workloads.add(&pod.name, &pod.labels),
            Resource::WorkloadEntry(entry) => workloads.add(&entry.name, &entry.labels),
            _ => {}
        }
    }
    let mut problems = Vec::new();
    for (file, given) in given {
        let (name, selector) = match &given.resource {
            Resource::AuthorizationPolicy(policy) => (&policy.name, &policy.selector),
            Resource::PeerAuthentication(policy) => (&policy.name, &policy.selector),
            _ => continue,
        };
        let root = *name.namespace == *root_namespace;
        let found = match (given.resource.misplaced(root_namespace), selector) {
            (Some(misplaced), _) => Some((misplaced.path, misplaced.reason)),
            (None, Some(selector)) => workloads.selected_by_nobody(name, selector, root),
            (None, None) => workloads.for_nobody(name, root),
        };
        if let Some((path, reason)) = found {
            let origin = Origin::File { file: file.to_owned(), line: given.line, document_line: given.line };
            let finding = Finding::warning(path, reason);
            problems.push(Problem::new(origin, Some(&given.resource.key()), &finding));
        }
    }
    problems.sort();
    problems
}

#[derive(Default)]
struct Workloads {
    by_label: Labelled<ObjectName>,
    labels: HashMap<ObjectName, Labels>,
    namespaces: BTreeSet<Arc<str>>,
}

impl Workloads {
    fn add(&mut self, name: &ObjectName, labels: &Labels) {
        self.by_label.insert(&name.namespace, labels, name);
        self.labels.insert(name.clone(), labels.clone());
        self.namespaces.insert(Arc::clone(&name.namespace));
    }

    fn selected_by_nobody(
        &self,
        policy: &ObjectName,
        selector: &Selector,
        root: bool,
    ) -> Option<(FieldPath, String)> {
        let own = BTreeSet::from([Arc::clone(&policy.namespace)]);
        let namespaces = if root { &self.namespaces } else { &own };
        let selects =
            |name: &ObjectName| self.labels.get(name).is_some_and(|labels| selector.matches(labels));
        let selected = namespaces
            .iter()
            .any(|namespace| self.by_label.candidates(namespace, selector).iter().any(selects));
        let place = if root { "the mesh".to_owned() } else { format!("namespace {}", policy.namespace) };
        let reason = format!("selects no workload of {place}: compare it with the labels of the pods");
        (!selected && !self.namespaces.is_empty()).then_some((field!["spec", "selector"], reason))
    }

    fn for_nobody(&self, policy: &ObjectName, root: bool) -> Option<(FieldPath, String)> {
        let anybody = root || self.namespaces.is_empty() || self.namespaces.contains(&policy.namespace);
        let reason = format!("namespace {} has no workload that the policy could be for", policy.namespace);
        (!anybody).then_some((field!["metadata", "namespace"], reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::files::document::Manifest;

    fn warnings(policies: &str) -> Vec<String> {
        let workloads = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop, labels: {app: web, v: a}}\n---\n";
        let text = format!("{workloads}{policies}");
        let manifest = Manifest::parse(Path::new("f.yaml"), &text);
        assert!(manifest.problems.is_empty(), "{:?}", manifest.problems);
        let given = manifest.resources.values().map(|given| (Path::new("f.yaml"), given));
        check(given, "istio-system").into_iter().map(|problem| problem.to_string()).collect()
    }

    fn policy(kind: &str, namespace: &str, spec: &str) -> String {
        format!(
            "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: x, namespace: {namespace}}}\nspec: {{{spec}}}\n"
        )
    }

    #[test]
    fn policies_for_nobody_are_named() {
        let authorization =
            |namespace: &str, spec: &str| warnings(&policy("AuthorizationPolicy", namespace, spec));
        let web = "selector: {matchLabels: {app: web, v: a}}";
        let other = "selector: {matchLabels: {app: web, v: b}}";
        for (namespace, spec) in [("shop", ""), ("shop", web), ("istio-system", ""), ("istio-system", web)] {
            assert!(authorization(namespace, spec).is_empty(), "{namespace} {spec}");
        }
        assert_eq!(
            authorization("shop", other),
            [
                "f.yaml:5: AuthorizationPolicy shop/x: spec.selector: selects no workload of namespace shop: compare \
                 it with the labels of the pods (warning)"
            ]
        );
        assert!(authorization("istio-system", other)[0].contains("of the mesh"));
        assert!(authorization("elsewhere", "")[0].contains("namespace elsewhere has no workload"));
        assert!(authorization("elsewhere", web)[0].contains("selects no workload"));
        let peer = policy("PeerAuthentication", "istio-system", web);
        assert!(warnings(&peer)[0].contains("in the root namespace"));
    }

    #[test]
    fn policies_by_themselves_are_not_judged() {
        let policy = policy("AuthorizationPolicy", "shop", "selector: {matchLabels: {a: b}}");
        let manifest = Manifest::parse(Path::new("f.yaml"), &policy);
        let given = manifest.resources.values().map(|given| (Path::new("f.yaml"), given));
        assert!(check(given, "istio-system").is_empty());
    }
}
