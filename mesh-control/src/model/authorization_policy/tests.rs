use super::*;
use crate::model::findings::Severity;

fn read(spec: Value) -> (AuthorizationPolicy, Vec<Finding>) {
    let object = serde_json::json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "shop"}, "spec": spec,
    });
    let mut findings = Findings::default();
    let policy = AuthorizationPolicy::read(serde_json::from_value(object).unwrap(), &mut findings);
    (policy, findings.into_vec())
}

/// The findings of a severity, as `field: reason`.
fn found(findings: &[Finding], severity: Severity) -> Vec<String> {
    let of = findings.iter().filter(|finding| finding.severity == severity);
    of.map(|finding| format!("{}: {}", finding.path, finding.reason)).collect()
}

fn rule(rule: Value) -> Vec<Finding> {
    read(serde_json::json!({"action": "DENY", "rules": [rule]})).1
}

#[test]
fn what_istio_refuses_is_refused_at_its_field() {
    let source = |source: Value| rule(serde_json::json!({"from": [{"source": source}]}));
    let to = |operation: Value| rule(serde_json::json!({"to": [{"operation": operation}]}));
    let when = |condition: Value| rule(serde_json::json!({"when": [condition]}));
    for (findings, place) in [
        (rule(serde_json::json!({"from": []})), "spec.rules[0].from"),
        (rule(serde_json::json!({"to": []})), "spec.rules[0].to"),
        (source(serde_json::json!({})), "spec.rules[0].from[0].source"),
        (source(serde_json::json!({"principals": []})), "spec.rules[0].from[0].source"),
        (source(serde_json::json!({"principals": ["a", ""]})), "spec.rules[0].from[0].source.principals[1]"),
        (
            source(serde_json::json!({"notIpBlocks": ["10.0.0.300"]})),
            "spec.rules[0].from[0].source.notIpBlocks[0]",
        ),
        (
            source(serde_json::json!({"serviceAccounts": ["a"], "namespaces": ["b"]})),
            "spec.rules[0].from[0].source",
        ),
        (
            source(serde_json::json!({"serviceAccounts": ["a/b/c"]})),
            "spec.rules[0].from[0].source.serviceAccounts[0]",
        ),
        (
            source(serde_json::json!({"notServiceAccounts": ["a/*"]})),
            "spec.rules[0].from[0].source.notServiceAccounts[0]",
        ),
        (to(serde_json::json!({})), "spec.rules[0].to[0].operation"),
        (to(serde_json::json!({"ports": ["0"]})), "spec.rules[0].to[0].operation.ports[0]"),
        (to(serde_json::json!({"notPorts": ["http"]})), "spec.rules[0].to[0].operation.notPorts[0]"),
        (when(serde_json::json!({"key": "source.ip"})), "spec.rules[0].when[0]"),
        (when(serde_json::json!({"values": ["x"]})), "spec.rules[0].when[0].key"),
        (
            when(serde_json::json!({"key": "destination.port", "values": ["65536"]})),
            "spec.rules[0].when[0].values[0]",
        ),
        (read(serde_json::json!({"action": "DENY"})).1, "spec.rules"),
        (read(serde_json::json!({"provider": {"name": "x"}})).1, "spec.provider"),
        (read(serde_json::json!({"selector": {"matchLabels": {"a": "*"}}})).1, "spec.selector.matchLabels.a"),
        (
            read(serde_json::json!({"selector": {}, "targetRef": {"kind": "Gateway", "name": "g"}})).1,
            "spec.targetRef",
        ),
    ] {
        let refused = found(&findings, Severity::Refused);
        assert!(refused.len() == 1 && refused[0].starts_with(&format!("{place}: ")), "{place}: {refused:?}");
    }
}

#[test]
fn what_can_never_match_is_warned_of() {
    let (policy, findings) = read(serde_json::json!({"rules": [
        {"from": [{"source": {"principals": ["spiffe://cluster.local/ns/a/sa/b", "*a*", "a*b", "*", "*a", "a*"]}}]},
        {"when": [{"key": "request.headers[x]", "values": ["v"]}]},
    ]}));
    assert_eq!(
        found(&findings, Severity::Warning),
        [
            "spec.rules[0].from[0].source.principals[0]: matches nobody: write it without spiffe://, \
             \"cluster.local/ns/a/sa/b\"",
            "spec.rules[0].from[0].source.principals[1]: matches nobody: '*' stands for anything at the start or at \
             the end only, not both",
            "spec.rules[0].from[0].source.principals[2]: matches nobody: '*' stands for anything at the start or at \
             the end only, not both",
            "spec.rules[1].when[0].key: request.headers[x] cannot be told without reading HTTP: the rule can never \
             match and is left out",
        ]
    );
    let PolicyBody::Rules { rules, written, .. } = policy.body else { panic!("usable") };
    assert_eq!((rules.len(), written), (1, 2));

    let (_, findings) = read(serde_json::json!({"rules": [{"to": [{"operation": {"hosts": ["h"]}}]}]}));
    let warnings = found(&findings, Severity::Warning);
    assert!(warnings[1].starts_with("spec.rules: no rule is left"), "{warnings:?}");
    let denied = rule(serde_json::json!({"to": [{"operation": {"hosts": ["h"], "ports": ["80"]}}]}));
    assert!(found(&denied, Severity::Warning)[0].contains("denies as if this part of it matched"));
}

#[test]
fn a_dry_run_is_a_truth_value() {
    let with = |text: &str| {
        let annotations = [("istio.io/dry-run".to_owned(), text.to_owned())].into();
        let mut findings = Findings::default();
        (policy::dry_run(Some(&annotations), &mut findings), findings.refused())
    };
    assert_eq!((with("true"), with("False")), ((true, false), (false, false)));
    assert_eq!(with("yes"), (false, true));
}
