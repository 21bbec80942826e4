//! Whether the pods of a DaemonSet may run on a node: its node selector, its required node affinity, and the node's taints.
//!
//! As the scheduler and the DaemonSet controller decide it. What is not understood counts as admitted, since then another
//! agent may well follow.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};
use kube::ResourceExt;

/// Taints that every pod of a DaemonSet tolerates, as its controller adds the tolerations.
const TOLERATED: [&str; 6] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/unschedulable",
];

pub(super) fn admits(pod: &PodSpec, node: &Node) -> bool {
    let selected =
        pod.node_selector.iter().flatten().all(|(key, value)| node.labels().get(key) == Some(value));
    let required = pod
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    // Any of the terms; a term without requirements admits nothing.
    let wanted =
        required.is_none_or(|required| required.node_selector_terms.iter().any(|term| matches(term, node)));
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    // Only this effect ends pods that run.
    let evicts = |taint: &&Taint| taint.effect == "NoExecute" && !TOLERATED.contains(&taint.key.as_str());
    let tolerations = pod.tolerations.as_deref().unwrap_or_default();
    selected && wanted && taints.iter().filter(evicts).all(|taint| tolerated(taint, tolerations))
}

fn matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let (expressions, fields) = (
        term.match_expressions.as_deref().unwrap_or_default(),
        term.match_fields.as_deref().unwrap_or_default(),
    );
    let name = BTreeMap::from([("metadata.name".to_owned(), node.name_any())]);
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|requirement| holds(requirement, node.labels()))
        && fields.iter().all(|requirement| holds(requirement, &name))
}

fn holds(requirement: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let found = labels.get(&requirement.key);
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: &String| text.parse::<i64>().ok();
    let bound = values.first().and_then(number);
    match requirement.operator.as_str() {
        "In" => found.is_some_and(|value| values.contains(value)),
        "NotIn" => found.is_none_or(|value| !values.contains(value)),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => found.and_then(number).zip(bound).is_some_and(|(value, bound)| value > bound),
        "Lt" => found.and_then(number).zip(bound).is_some_and(|(value, bound)| value < bound),
        _ => true,
    }
}

fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| {
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let key = toleration.key.as_deref().unwrap_or_default();
        let exists = toleration.operator.as_deref() == Some("Exists");
        (effect.is_empty() || effect == taint.effect)
            && (key == taint.key || (key.is_empty() && exists))
            && (exists
                || toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn admitted(pod: Value, node: Value) -> bool {
        let mut spec = json!({"containers": []});
        spec.as_object_mut().unwrap().extend(pod.as_object().unwrap().clone());
        admits(&serde_json::from_value(spec).unwrap(), &serde_json::from_value(node).unwrap())
    }

    fn node(labels: Value, taints: Value) -> Value {
        json!({"metadata": {"name": "n1", "labels": labels}, "spec": {"taints": taints}})
    }

    #[test]
    fn a_selector_and_any_term_of_the_affinity_must_match() {
        let linux = || node(json!({"os": "linux", "cores": "8"}), json!([]));
        assert!(admitted(json!({}), linux()));
        assert!(admitted(json!({"nodeSelector": {"os": "linux"}}), linux()));
        assert!(!admitted(json!({"nodeSelector": {"os": "linux", "mesh": "yes"}}), linux()));
        let affinity = |terms: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}});
        let term = |operator: &str, key: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        for (terms, expected) in [
            (json!([term("In", "os", &["linux", "plan9"])]), true),
            (json!([term("NotIn", "os", &["linux"])]), false),
            (json!([term("NotIn", "arch", &["arm64"])]), true),
            (json!([term("Exists", "arch", &[]), term("DoesNotExist", "arch", &[])]), true),
            (json!([term("Gt", "cores", &["4"])]), true),
            (json!([term("Lt", "cores", &["4"])]), false),
            (json!([{}]), false),
            (json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]), true),
            (json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]), false),
        ] {
            assert_eq!(admitted(affinity(terms.clone()), linux()), expected, "{terms}");
        }
    }

    #[test]
    fn only_taints_that_evict_count_and_only_untolerated_ones() {
        let tainted = |effect: &str| node(json!({}), json!([{"key": "gpu", "value": "a", "effect": effect}]));
        assert!(admitted(json!({}), tainted("NoSchedule")));
        assert!(!admitted(json!({}), tainted("NoExecute")));
        for toleration in [
            json!({"operator": "Exists"}),
            json!({"key": "gpu", "operator": "Exists"}),
            json!({"key": "gpu", "value": "a", "effect": "NoExecute"}),
        ] {
            assert!(admitted(json!({"tolerations": [toleration]}), tainted("NoExecute")));
        }
        assert!(!admitted(json!({"tolerations": [{"key": "gpu", "value": "b"}]}), tainted("NoExecute")));
        let away = node(json!({}), json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]));
        assert!(admitted(json!({}), away));
    }
}
