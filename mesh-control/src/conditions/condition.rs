//! The condition of one object.
//!
//! | type | status | reason | what it says |
//! |---|---|---|---|
//! | `ZtunnelAccepted` | True | Accepted | all of it is in effect |
//! | | True | UnsupportedValue | it is in effect but for the parts in the message |
//! | | False | UnsupportedValue | it asks for what the mesh does not do |
//! | | False | Invalid | it has mistakes, and nothing or a stand-in for it is in effect |
//!
//! These are the words in which istiod speaks of its node agent, whose place ours takes: what waits for them there
//! (`kubectl wait --for=condition=ZtunnelAccepted`) waits for them here.

use std::time::SystemTime;

use kube::ResourceExt;
use kube::core::DynamicObject;
use serde_json::{Value, json};

use crate::authority::rfc3339;
use crate::model::findings::{Finding, Severity};
use crate::model::{self, Kind, ObjectName, Resource, ResourceKey};

/// The type of the condition.
const TYPE: &str = "ZtunnelAccepted";
/// Findings in a message; how many more there are is told as well.
const MAX_TOLD: usize = 5;
/// Longest message, in characters; the API allows 32,768 bytes.
const MAX_MESSAGE: usize = 4000;

/// What the status of an object is to say.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Condition {
    accepted: bool,
    reason: &'static str,
    message: String,
    generation: i64,
}

impl Condition {
    /// Judges an object.
    pub(super) fn of(kind: Kind, object: &DynamicObject, root_namespace: &str) -> Self {
        let generation = object.metadata.generation.unwrap_or_default();
        let judged = |accepted, reason, message| Self { accepted, reason, message, generation };
        let value = match serde_json::to_value(object) {
            Ok(value) => value,
            Err(error) => return judged(false, "Invalid", error.to_string()),
        };
        let (_, findings) = model::judge(kind, value.clone(), root_namespace);
        let refusals: Vec<_> =
            findings.iter().filter(|finding| finding.severity == Severity::Refused).collect();
        if refusals.is_empty() {
            return match findings.as_slice() {
                [] => judged(true, "Accepted", "in effect".to_owned()),
                findings => judged(
                    true,
                    "UnsupportedValue",
                    message("in effect in part", &findings.iter().collect::<Vec<_>>()),
                ),
            };
        }
        let name = ObjectName::new(object.namespace().unwrap_or_default(), object.name_any());
        let stand_in = Resource::stand_in(&ResourceKey { kind, name }, &value, &findings);
        let effect = stand_in.as_ref().and_then(Resource::stands_in).unwrap_or("not in effect");
        let unsupported = refusals.iter().all(|finding| finding.unsupported);
        judged(false, if unsupported { "UnsupportedValue" } else { "Invalid" }, message(effect, &refusals))
    }

    /// What to change in the object's status, if it does not say so yet. Conditions of others stay, which is sure only
    /// while the object is the one that was read: the patch is for that version alone.
    pub(super) fn patch(&self, object: &DynamicObject, now: SystemTime) -> Option<Value> {
        let status = if self.accepted { "True" } else { "False" };
        let conditions = object.data.pointer("/status/conditions").and_then(Value::as_array);
        let (own, mut all): (Vec<Value>, Vec<Value>) =
            conditions.into_iter().flatten().cloned().partition(|condition| condition["type"] == TYPE);
        let before = own.first();
        let text = |field: &str| before.and_then(|condition| condition.get(field)).and_then(Value::as_str);
        let says_so = text("status") == Some(status)
            && text("reason") == Some(self.reason)
            && text("message") == Some(&self.message)
            && before.and_then(generation_of) == Some(self.generation);
        if says_so && own.len() == 1 {
            return None;
        }
        let since = text("lastTransitionTime").filter(|_| text("status") == Some(status)).map(str::to_owned);
        all.push(json!({
            "type": TYPE,
            "status": status,
            "reason": self.reason,
            "message": self.message,
            "observedGeneration": self.generation,
            "lastTransitionTime": since.unwrap_or_else(|| rfc3339(now)),
        }));
        Some(json!({
            "metadata": {"resourceVersion": object.metadata.resource_version},
            "status": {"conditions": all},
        }))
    }
}

/// istiod writes the number as a text, as its JSON has all numbers of 64 bits.
fn generation_of(condition: &Value) -> Option<i64> {
    let generation = condition.get("observedGeneration")?;
    generation.as_i64().or_else(|| generation.as_str()?.parse().ok())
}

fn message(effect: &str, findings: &[&Finding]) -> String {
    let told: Vec<_> = findings.iter().take(MAX_TOLD).map(ToString::to_string).collect();
    let mut text = format!("{effect}: {}", told.join("; "));
    if findings.len() > told.len() {
        text.push_str(&format!("; and {} more", findings.len() - told.len()));
    }
    if let Some((end, _)) = text.char_indices().nth(MAX_MESSAGE) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}
