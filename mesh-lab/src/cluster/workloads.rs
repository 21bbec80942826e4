//! Manifests of what tests and the demo run in pods.

use serde_json::json;

use super::TEST_IMAGE;

/// The port of echo servers.
pub const ECHO_PORT: u16 = 8080;

/// Echo servers in a deployment, on any node or on one, behind a service of the same name at port 80.
#[must_use]
pub fn echo_servers(namespace: &str, name: &str, replicas: u32, node: Option<&str>) -> String {
    let labels = json!({ "app": name });
    let metadata = json!({ "name": name, "namespace": namespace, "labels": labels });
    let selector = node.map(|node| json!({ "kubernetes.io/hostname": node }));
    let pod_name =
        json!({ "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": labels },
            "strategy": { "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "nodeSelector": selector,
                    "terminationGracePeriodSeconds": 20,
                    "containers": [{
                        "name": "echo",
                        "image": TEST_IMAGE,
                        "imagePullPolicy": "Never",
                        "args": ["echo", format!("--listen={ECHO_PORT}")],
                        "env": [pod_name],
                        // Those who call it hear that it will end before it does, as everywhere where no request may be lost.
                        "lifecycle": { "preStop": { "sleep": { "seconds": 3 } } },
                        "readinessProbe": { "httpGet": { "path": "/", "port": ECHO_PORT }, "periodSeconds": 1 },
                    }],
                },
            },
        },
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "selector": labels,
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [{ "name": "http", "port": 80, "targetPort": ECHO_PORT }],
        },
    });
    format!("{deployment}\n---\n{service}\n")
}

/// A pod to run programs in, on any node or on one.
#[must_use]
pub fn client(namespace: &str, name: &str, node: Option<&str>) -> String {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": { "app": name } },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "client",
                "image": TEST_IMAGE,
                "imagePullPolicy": "Never",
                "command": ["sleep", "3600"],
            }],
        },
    });
    format!("{pod}\n")
}
