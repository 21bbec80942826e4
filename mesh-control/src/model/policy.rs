//! What Istio's security policies have in common: whom they are for, and what is left of one that cannot be used.

use serde::Deserialize;
use serde_json::Value;

use super::findings::{Finding, Findings, Severity, field};
use super::metadata::{Labels, ObjectName, Selector, is_label, is_subdomain};

/// Annotation of a policy that is only tried out.
const DRY_RUN: &str = "istio.io/dry-run";

/// Workloads by their labels, as they are written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct SelectorSpec {
    match_labels: Labels,
}

impl SelectorSpec {
    /// The selector; none if it names no labels, which to Istio is every workload.
    pub(super) fn read(self, findings: &mut Findings) -> Option<Selector> {
        for (key, value) in &self.match_labels {
            let place = || field!["spec", "selector", "matchLabels", key];
            if key.is_empty() {
                findings.refuse(place(), "a label needs a name");
            }
            if key.contains('*') || value.contains('*') {
                findings.refuse(place(), "labels are compared as they stand: '*' has no meaning here");
            }
        }
        Selector::new(self.match_labels)
    }
}

/// Whether the policy is only tried out, by its annotation.
pub(super) fn dry_run(annotations: Option<&Labels>, findings: &mut Findings) -> bool {
    let Some(text) = annotations.and_then(|all| all.get(DRY_RUN)) else {
        return false;
    };
    parse_bool(text).unwrap_or_else(|| {
        let place = field!["metadata", "annotations", DRY_RUN];
        findings.refuse(place, format!("expected \"true\" or \"false\", found {text:?}"));
        false
    })
}

/// The texts that Istio takes for a truth value.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// What can still be told of a policy that cannot be used: enough to keep closed what it was to protect.
#[derive(Debug)]
pub(super) struct Remains {
    pub(super) name: ObjectName,
    /// None if it has none, and also if it cannot be read: then the policy may be for any workload.
    pub(super) selector: Option<Selector>,
    /// Whether it was only to be tried out.
    pub(super) dry_run: bool,
    /// Whether it is for waypoints or gateways, not for agents.
    pub(super) elsewhere: bool,
    /// Its action, as it is written.
    pub(super) action: String,
    /// Why it cannot be used.
    pub(super) reason: String,
}

impl Remains {
    /// Looks at an object that was refused; nothing is left if not even its name can be used.
    pub(super) fn of(name: &ObjectName, object: &Value, findings: &[Finding]) -> Option<Self> {
        if !is_label(&name.namespace) || !is_subdomain(&name.name) {
            return None;
        }
        let spec = object.get("spec");
        let has = |field: &str| spec.and_then(|spec| spec.get(field)).is_some_and(|value| !is_empty(value));
        let selector = spec.and_then(|spec| spec.get("selector")).cloned().unwrap_or_default();
        let selector = serde_json::from_value::<Option<SelectorSpec>>(selector).ok().flatten();
        let annotation = object.pointer("/metadata/annotations").and_then(|all| all.get(DRY_RUN));
        Some(Self {
            name: name.clone(),
            selector: selector.and_then(|selector| Selector::new(selector.match_labels)),
            dry_run: annotation.and_then(Value::as_str).and_then(parse_bool).unwrap_or(false),
            elsewhere: (has("targetRef") || has("targetRefs")) && !has("selector"),
            action: spec
                .and_then(|spec| spec.get("action"))
                .and_then(Value::as_str)
                .unwrap_or("ALLOW")
                .to_owned(),
            reason: reason(findings),
        })
    }
}

/// Whether a field says nothing.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// The first refusal in full, and how many more there are.
fn reason(findings: &[Finding]) -> String {
    let mut refusals = findings.iter().filter(|finding| finding.severity == Severity::Refused);
    let Some(first) = refusals.next() else {
        return "it was refused".to_owned();
    };
    match refusals.count() {
        0 => first.to_string(),
        more => format!("{first} (and {more} more)"),
    }
}
