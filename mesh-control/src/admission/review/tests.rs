//! Verdicts on objects as the API server sends them.

use serde_json::json;

use super::*;

const PORT: &str = "spec.rules[0].to[0].operation.ports[0]";

fn policy(spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "web", "namespace": "shop"}, "spec": spec,
    })
}

fn bad_port() -> Value {
    json!({"rules": [{"to": [{"operation": {"ports": ["http"]}}]}]})
}

fn request(operation: &str, object: &Value, old: &Value) -> AdmissionRequest<DynamicObject> {
    let (group, version) = object["apiVersion"].as_str().unwrap().split_once('/').unwrap();
    serde_json::from_value(json!({
        "uid": "1", "kind": {"group": group, "version": version, "kind": object["kind"]},
        "resource": {"group": group, "version": version, "resource": "x"},
        "name": object["metadata"]["name"].as_str().unwrap_or(""), "namespace": "shop", "operation": operation,
        "userInfo": {}, "object": object, "oldObject": old, "dryRun": false,
    }))
    .unwrap()
}

fn created(object: &Value) -> Verdict {
    judge(&request("CREATE", object, &Value::Null), "istio-system")
}

fn updated(old: &Value, new: &Value) -> Verdict {
    judge(&request("UPDATE", new, old), "istio-system")
}

#[test]
fn all_mistakes_are_told_at_once_with_their_fields() {
    let verdict = created(&policy(json!({
        "action": "DENY",
        "selektor": {},
        "rules": [
            {"from": [{"source": {"principals": ["a", ""], "ipBlocks": ["10.0.0.0/99"]}}]},
            {"to": [{"operation": {"ports": ["http"]}}]},
        ],
    })));
    assert_eq!(verdict.outcome, Outcome::Denied);
    let lines: Vec<_> = verdict.message.lines().collect();
    assert_eq!(lines[0], "4 mistakes:");
    for field in [
        "spec.selektor: ",
        "spec.rules[0].from[0].source.principals[1]: ",
        "spec.rules[0].from[0].source.ipBlocks[0]: ",
        "spec.rules[1].to[0].operation.ports[0]: ",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(&format!("- {field}"))), "{field}: {lines:?}");
    }
    let one = created(&policy(bad_port()));
    assert!(one.message.starts_with(&format!("{PORT}: expected a port")), "{}", one.message);
}

#[test]
fn what_has_no_effect_is_a_warning() {
    let verdict = created(&policy(json!({"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]})));
    assert_eq!(verdict.outcome, Outcome::Allowed);
    assert!(
        verdict.warnings[0].starts_with("spec.rules[0].to[0].operation.methods: "),
        "{:?}",
        verdict.warnings
    );

    let peer = json!({
        "apiVersion": "security.istio.io/v1beta1", "kind": "PeerAuthentication",
        "metadata": {"name": "x", "namespace": "istio-system"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "mtls": {"mode": "STRICT"}},
    });
    let verdict = created(&peer);
    assert_eq!(verdict.outcome, Outcome::Allowed);
    assert!(verdict.warnings[0].starts_with("spec.selector: selects nobody"), "{:?}", verdict.warnings);
}

#[test]
fn a_bad_object_can_be_labelled_released_and_mended_but_not_changed_otherwise() {
    let bad = policy(bad_port());
    let mut labelled = bad.clone();
    labelled["metadata"]["labels"] = json!({"a": "b"});
    let verdict = updated(&bad, &labelled);
    assert_eq!(verdict.outcome, Outcome::Tolerated);
    assert!(verdict.warnings.iter().any(|warning| warning.starts_with(PORT)), "{:?}", verdict.warnings);

    let mut other = bad.clone();
    other["spec"]["selector"] = json!({"matchLabels": {"app": "web"}});
    assert_eq!(updated(&bad, &other).outcome, Outcome::Denied);
    // The annotation is a part of the policy.
    let mut annotated = bad.clone();
    annotated["metadata"]["annotations"] = json!({"istio.io/dry-run": "perhaps"});
    assert_eq!(updated(&bad, &annotated).outcome, Outcome::Denied);
    assert_eq!(updated(&bad, &policy(json!({}))).outcome, Outcome::Allowed);
    // Its finalizer is being removed.
    let mut ending = other.clone();
    ending["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:00Z");
    assert_eq!(updated(&bad, &ending).outcome, Outcome::Tolerated);
    // An object that was good is not made bad.
    assert_eq!(updated(&policy(json!({})), &bad).outcome, Outcome::Denied);
}

#[test]
fn what_stores_no_object_is_not_judged() {
    let bad = policy(bad_port());
    let mut deletion = request("DELETE", &bad, &bad);
    assert_eq!(judge(&deletion, "istio-system").outcome, Outcome::Allowed);
    deletion.object = None;
    assert_eq!(judge(&deletion, "istio-system").outcome, Outcome::Allowed);
    let mut status = request("UPDATE", &bad, &Value::Null);
    status.sub_resource = Some("status".to_owned());
    assert_eq!(judge(&status, "istio-system").outcome, Outcome::Allowed);
}

#[test]
fn names_that_are_not_chosen_yet_are_no_mistake() {
    let mut object = policy(json!({}));
    object["metadata"] = json!({"generateName": "web-"});
    let verdict = created(&object);
    assert_eq!(verdict.outcome, Outcome::Allowed, "{}", verdict.message);
}

#[test]
fn kinds_that_the_mesh_does_not_read_pass_with_a_word() {
    let gateway = json!({"apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": {"name": "g"}, "spec": {}});
    let verdict = created(&gateway);
    assert_eq!((verdict.outcome, verdict.kind), (Outcome::Allowed, None));
    assert!(verdict.warnings[0].contains("does not read Gateway"));
}

#[test]
fn answers_are_bounded() {
    let long = "x".repeat(100_000);
    let rules = vec![json!({"to": [{"operation": {"ports": [long]}}]}); 300];
    let verdict = created(&policy(json!({"rules": rules})));
    assert!(verdict.message.starts_with("300 mistakes:") && verdict.message.ends_with("and 275 more"));
    assert!(verdict.message.len() < MAX_TOLD * (MAX_LENGTH + 10) + 100);
}

/// Documents with mistakes of every sort, which files and the webhook have to judge alike.
const DOCUMENTS: &str = r#"
kind: AuthorizationPolicy
spec: {action: AUDIT, rules: [{}]}
---
kind: AuthorizationPolicy
spec: {action: CUSTOM, provider: {name: opa}}
---
kind: AuthorizationPolicy
spec: {action: PERHAPS}
---
kind: AuthorizationPolicy
spec: {action: DENY}
---
kind: AuthorizationPolicy
spec: {targetRefs: [{kind: Gateway, name: g}]}
---
kind: AuthorizationPolicy
spec: {selector: {matchLabels: {app: "*"}}, targetRef: {kind: Service, name: g}, provider: {name: x}}
---
kind: AuthorizationPolicy
spec:
  unknown: 1
  rules:
    - from: []
    - from: [{source: {}}]
    - from: [{source: {principals: [""], serviceAccounts: [a/b/c], ipBlocks: [10.0.0.0/33, "fe80::/129"], typo: [x]}}]
      to: [{operation: {}}, {operation: {ports: ["0", "65536", http], notPorts: [-1]}}]
      when: [{key: "", values: [a]}, {key: source.ip}, {key: destination.port, values: [x]}, {key: "request.headers[a]", values: [b]}]
---
kind: AuthorizationPolicy
spec: {rules: 7}
---
kind: PeerAuthentication
spec: {mtls: {mode: SOMETIMES}}
---
kind: PeerAuthentication
spec: {portLevelMtls: {8080: {mode: STRICT}, http: {mode: STRICT}}}
---
kind: PeerAuthentication
spec: {selector: {matchLabels: {app: web}}, portLevelMtls: {}, mlts: {mode: STRICT}}
---
kind: ServiceEntry
spec: {hosts: ["*.a.example", "B"], resolution: DNS, addresses: [10.0.0.0/8, x], ports: [{number: 0, name: a}, {number: 80, name: b}, {number: 80, name: c}]}
---
kind: ServiceEntry
spec: {hosts: [a.example], resolution: STATIC, endpoints: [{address: a.example}, {address: 10.0.0.1}, {address: 10.0.0.1}, {}], exportTo: ["."]}
---
kind: ServiceEntry
spec: {hosts: [], workloadSelector: {labels: {a: b}}, endpoints: [{address: 10.0.0.1}]}
---
kind: ServiceEntry
---
kind: WorkloadEntry
spec: {address: "unix:///x", ports: {http: 70000}, weight: -1}
---
kind: WorkloadEntry
spec: {address: not a name, ports: {http: 70000}, color: red}
"#;

#[test]
fn files_and_the_webhook_give_the_same_reasons() {
    for (number, document) in DOCUMENTS.split("---\n").enumerate() {
        let group = if document.contains("Entry") { "networking" } else { "security" };
        let text = format!(
            "apiVersion: {group}.istio.io/v1\nmetadata: {{name: x, namespace: shop}}\n{}",
            document.trim_start()
        );
        let (_, problems) = crate::source::files::resources(&text);
        let object: Value = serde_saphyr::from_str(&text).unwrap();
        let verdict = created(&object);
        assert_eq!(verdict.outcome, Outcome::Denied, "{text}");
        let lines = verdict.message.lines().filter(|line| !line.ends_with("mistakes:"));
        let lines = lines.map(|line| line.trim_start_matches("- ").to_owned());
        let mut of_webhook: Vec<_> = lines.chain(verdict.warnings).collect();
        let mut of_file: Vec<_> = problems
            .into_iter()
            .map(|problem| problem.field.into_iter().chain([problem.reason]).collect::<Vec<_>>().join(": "))
            .collect();
        of_webhook.sort();
        of_file.sort();
        assert_eq!(of_webhook, of_file, "document {number}");
    }
}
