//! The verdict on one object. Nothing is asked and nothing is kept: the same object gets the same verdict everywhere.

use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, Operation};
use serde_json::Value;

use crate::model::findings::{Finding, Severity};
use crate::model::{self, Kind};

/// The kinds that are judged, which are also those whose status says what became of them.
pub(crate) const KINDS: [Kind; 4] =
    [Kind::ServiceEntry, Kind::WorkloadEntry, Kind::AuthorizationPolicy, Kind::PeerAuthentication];

/// Findings that are told of one object; how many more there are is told as well.
const MAX_TOLD: usize = 25;
/// Characters of one of them: it may quote what it is about.
const MAX_LENGTH: usize = 1000;
/// HTTP status of an object that is not valid.
const UNPROCESSABLE: u16 = 422;

/// What is answered to the API server.
#[derive(Debug)]
pub(super) struct Verdict {
    /// The kind, if the mesh reads it.
    pub(super) kind: Option<Kind>,
    pub(super) outcome: Outcome,
    /// Every mistake; empty unless it is denied.
    pub(super) message: String,
    /// What else the user is to know.
    pub(super) warnings: Vec<String>,
}

/// Whether the object may be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Allowed,
    /// It cannot be used, but the request does not make it worse: whoever removes a finalizer or adds a label must be able to.
    Tolerated,
    Denied,
}

impl Outcome {
    /// Its name in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Tolerated => "tolerated",
            Self::Denied => "denied",
        }
    }
}

/// Judges what a request would store.
pub(super) fn judge(request: &AdmissionRequest<DynamicObject>, root_namespace: &str) -> Verdict {
    let kind = Kind::parse(&request.kind.group, &request.kind.kind);
    let allowed = |warnings| Verdict { kind, outcome: Outcome::Allowed, message: String::new(), warnings };
    let writes = matches!(request.operation, Operation::Create | Operation::Update);
    // What a status says has no effect.
    let whole = request.sub_resource.as_deref().is_none_or(str::is_empty);
    let (Some(object), true, true) = (&request.object, writes, whole) else {
        return allowed(Vec::new());
    };
    let Some(kind) = kind else {
        let warning = format!("mesh-control does not read {} and cannot judge it", request.kind.kind);
        return allowed(vec![warning]);
    };
    let findings = findings(kind, object, request, root_namespace);
    if !findings.iter().any(is_refusal) {
        return allowed(told(&findings));
    }
    if is_tolerated(request, object, |old| self::findings(kind, old, request, root_namespace), &findings) {
        let mut warnings =
            vec![format!("this {kind} cannot be used as it stands, which the change leaves as it is")];
        warnings.extend(told(&findings));
        return Verdict { kind: Some(kind), outcome: Outcome::Tolerated, message: String::new(), warnings };
    }
    let (refusals, warnings): (Vec<_>, Vec<_>) = findings.into_iter().partition(is_refusal);
    Verdict {
        kind: Some(kind),
        outcome: Outcome::Denied,
        message: message(&told(&refusals), refusals.len()),
        warnings: told(&warnings),
    }
}

fn findings(
    kind: Kind,
    object: &DynamicObject,
    request: &AdmissionRequest<DynamicObject>,
    root_namespace: &str,
) -> Vec<Finding> {
    let mut object = object.clone();
    object.metadata.managed_fields = None;
    object.metadata.namespace = object.metadata.namespace.or_else(|| request.namespace.clone());
    if object.metadata.name.as_ref().is_none_or(String::is_empty) {
        // The API server chooses the end of such a name later.
        object.metadata.name = object.metadata.generate_name.as_ref().map(|prefix| format!("{prefix}x"));
    }
    match serde_json::to_value(object) {
        Ok(object) => model::judge(kind, object, root_namespace).1,
        Err(error) => vec![Finding::refusal(model::findings::FieldPath::default(), error.to_string())],
    }
}

fn is_tolerated(
    request: &AdmissionRequest<DynamicObject>,
    object: &DynamicObject,
    findings_of: impl Fn(&DynamicObject) -> Vec<Finding>,
    findings: &[Finding],
) -> bool {
    if object.metadata.deletion_timestamp.is_some() {
        return true;
    }
    let Some(old) = request.old_object.as_ref().filter(|_| request.operation == Operation::Update) else {
        return false;
    };
    let spec = |object: &DynamicObject| object.data.get("spec").cloned().unwrap_or(Value::Null);
    if spec(old) != spec(object) {
        return false;
    }
    // Annotations count as well.
    let before = findings_of(old);
    findings.iter().filter(|finding| is_refusal(finding)).all(|finding| before.contains(finding))
}

fn is_refusal(finding: &Finding) -> bool {
    finding.severity == Severity::Refused
}

fn told(findings: &[Finding]) -> Vec<String> {
    findings.iter().take(MAX_TOLD).map(|finding| shortened(finding.to_string())).collect()
}

fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_LENGTH) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

fn message(told: &[String], total: usize) -> String {
    if let ([only], 1) = (told, total) {
        return only.clone();
    }
    let mut text = format!("{total} mistakes:");
    for mistake in told {
        text.push_str("\n- ");
        text.push_str(mistake);
    }
    if total > told.len() {
        text.push_str(&format!("\nand {} more", total - told.len()));
    }
    text
}

impl Verdict {
    /// The answer to `request`.
    pub(super) fn into_response(self, request: &AdmissionRequest<DynamicObject>) -> AdmissionResponse {
        let mut response = AdmissionResponse::from(request);
        if self.outcome == Outcome::Denied {
            response = response.deny(self.message);
            response.result.code = UNPROCESSABLE;
            response.result.reason = "Invalid".to_owned();
        }
        response.warnings = (!self.warnings.is_empty()).then_some(self.warnings);
        response
    }
}

#[cfg(test)]
mod tests;
