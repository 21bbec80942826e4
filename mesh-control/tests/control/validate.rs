//! `mesh-control validate` as pipelines run it.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

const MANIFESTS: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: good, namespace: shop}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: http, namespace: shop}
spec:
  rules:
    - {}
    - to: [{operation: {methods: [GET]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: bad, namespace: shop}
spec:
  rules:
    - to:
        - operation:
            ports: [http]
";

/// Whether it succeeds, and what it says and complains of.
fn validate(arguments: &[&str], input: &str) -> (bool, String, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_mesh-control"))
        .arg("validate")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    program.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = program.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn what_comes_from_a_pipe_is_judged_with_its_lines() {
    let (succeeded, out, err) = validate(&["-"], MANIFESTS);
    assert!(!succeeded);
    let lines: Vec<_> = out.lines().collect();
    assert!(
        lines[0].starts_with("-:15: AuthorizationPolicy shop/http: spec.rules[1].to[0].operation.methods: "),
        "{out}"
    );
    assert!(lines[0].ends_with("(warning)"), "{out}");
    assert!(
        lines[1].starts_with("-:24: AuthorizationPolicy shop/bad: spec.rules[0].to[0].operation.ports[0]: "),
        "{out}"
    );
    assert_eq!(err, "2 accepted (1 in part), 1 mistake; not what the mesh is made of: apps/v1 Deployment\n");
}

#[test]
fn json_has_what_is_accepted_ignored_and_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shop.yaml");
    std::fs::write(&file, MANIFESTS).unwrap();
    for path in [&file, directory.path()] {
        let (succeeded, out, err) = validate(&["-o", "json", path.to_str().unwrap()], "");
        assert!(!succeeded && err.is_empty(), "{err}");
        let said: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            said["accepted"],
            json!([
                {"file": file, "line": 5, "resource": "AuthorizationPolicy shop/good", "in_part": false},
                {"file": file, "line": 9, "resource": "AuthorizationPolicy shop/http", "in_part": true},
            ])
        );
        assert_eq!(said["ignored"], json!({"apps/v1 Deployment": {"file": file, "line": 1}}));
        let problems = said["problems"].as_array().unwrap();
        let severities: Vec<_> = problems.iter().map(|problem| &problem["severity"]).collect();
        assert_eq!(severities, ["warning", "refused"]);
        assert_eq!(problems[1]["line"], 24);
    }
}

#[test]
fn what_is_right_succeeds() {
    let good = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n";
    assert_eq!(validate(&["-"], good), (true, String::new(), "1 accepted, 0 mistakes\n".to_owned()));
    let (succeeded, out, _) = validate(&["/nowhere.yaml"], "");
    assert!(!succeeded && out.starts_with("/nowhere.yaml: cannot be read"), "{out}");
}
