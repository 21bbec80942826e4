//! Against a Kubernetes API on loopback.

use std::collections::BTreeSet;

use mesh_lab::api_server::ApiServer;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::testing::{api_server, eventually};
use super::*;
use crate::admin::api::{Check, CheckStatus};
use crate::enrolment::kubernetes::{KubernetesSettings, KubernetesSource};
use crate::enrolment::{DesiredPods, PodSource, PodStatus};
use crate::pods::FailureMode;

const TAINT: &str = "mesh-agent/not-ready";

fn cluster() -> (ApiServer, Cluster) {
    let (server, client) = api_server();
    let cluster = Cluster {
        client,
        node: "one".into(),
        namespace: "mesh-system".into(),
        daemon_set: Some("mesh-agent".into()),
        startup_taint: Some(TAINT.into()),
    };
    (server, cluster)
}

fn node(taints: &[&str], labels: Value) -> Value {
    let taints: Vec<_> = taints.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "one", "labels": labels}, "spec": {"taints": taints},
    })
}

fn daemon_set(metadata: Value, selector: Value) -> Value {
    let mut set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "mesh-agent", "namespace": "mesh-system"},
        "spec": {"selector": {}, "template": {"spec": {"containers": [], "nodeSelector": selector}}},
    });
    set["metadata"].as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
    set
}

fn taints(server: &ApiServer) -> Vec<String> {
    let node = server.object("Node", "", "one").unwrap();
    node["spec"]["taints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|taint| taint["key"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn the_startup_taint_goes_once_the_agent_serves_and_whenever_it_comes_back() {
    let (server, cluster) = cluster();
    server.apply(node(&["gpu", TAINT], json!({})));
    let (serving, serves) = watch::channel(false);
    tokio::spawn(taint::remove_when_serving(cluster, serves));
    server.apply(node(&["gpu", TAINT, "other"], json!({})));
    assert_eq!(server.asked(), BTreeSet::new(), "nothing is asked before");
    serving.send_replace(true);
    eventually("the taint is removed, and no other", || taints(&server) == ["gpu", "other"]).await;

    // A node that was made anew, while the API refuses for a while.
    server.forbid("patch nodes");
    server.apply(node(&[TAINT], json!({})));
    eventually("it is tried", || server.asked().contains("patch nodes")).await;
    server.permit("patch nodes");
    eventually("the taint is removed again", || taints(&server).is_empty()).await;
}

#[tokio::test]
async fn another_agent_follows_as_long_as_the_daemon_set_wants_one_here() {
    let (server, cluster) = cluster();
    let follows = async || matches!(succession::ask(&cluster).await, Succession::Follows(_));
    server.apply(node(&[], json!({"mesh": "yes"})));
    assert!(!follows().await, "no DaemonSet");
    server.apply(daemon_set(json!({}), json!({})));
    assert!(follows().await);
    server.apply(daemon_set(json!({}), json!({"mesh": "yes"})));
    assert!(follows().await);
    server.apply(daemon_set(json!({}), json!({"mesh": "no"})));
    assert!(!follows().await, "for other nodes");
    server.apply(daemon_set(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), json!({})));
    assert!(!follows().await, "being deleted");
    server.apply(daemon_set(json!({}), json!({})));
    server.set_away(true);
    assert!(follows().await, "nobody says that it is gone");
    server.set_away(false);
    server.forbid("get daemonsets.apps");
    assert!(!follows().await, "its role went with it");
}

#[tokio::test]
async fn checks_say_what_is_missing_and_what_for() {
    let (server, cluster) = cluster();
    let found = async || {
        let checks = checks::check(&cluster).await;
        checks
            .into_iter()
            .map(|Check { name, status, detail, .. }| (name, status, detail))
            .collect::<Vec<_>>()
    };
    server.apply(node(&[], json!({})));
    let checks = found().await;
    assert!(checks.iter().all(|(_, status, _)| *status == CheckStatus::Ok), "{checks:?}");
    assert_eq!(checks[0].2, "v1.34.4");

    server.apply(node(&[TAINT], json!({})));
    server.forbid("patch nodes");
    server.forbid("get daemonsets.apps");
    let checks = found().await;
    assert_eq!((checks[1].1, checks[2].1), (CheckStatus::Fail, CheckStatus::Warn), "{checks:?}");
    assert!(
        checks[1].2.contains("patch nodes (removing") && checks[1].2.contains("get daemonsets.apps"),
        "{checks:?}"
    );
    assert!(checks[2].2.contains(TAINT), "{checks:?}");

    let tunnel = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "ztunnel-x", "namespace": "istio-system", "labels": {"app": "ztunnel"}},
        "spec": {"containers": [], "nodeName": "one"},
    });
    server.apply(tunnel);
    let others = found().await.into_iter().find(|(name, ..)| name == "other meshes").unwrap();
    assert_eq!(others.1, CheckStatus::Warn);
    assert!(others.2.contains("ztunnel"), "{others:?}");

    server.delete("Node", "", "one");
    assert_eq!(found().await[2].1, CheckStatus::Fail);
    server.set_away(true);
    assert!(matches!(&found().await[..], [(_, CheckStatus::Fail, _)]));
}

/// A whole life of it. That the chart grants the same is tested with the chart.
#[tokio::test]
async fn what_is_asked_of_the_api_is_what_is_listed() {
    let (server, cluster) = cluster();
    server.apply(json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}},
    }));
    server.apply(node(&[TAINT], json!({})));
    server.apply(daemon_set(json!({}), json!({})));
    let statuses = watch::Sender::default();
    let settings =
        KubernetesSettings { node: "one".into(), cluster: "c".into(), failure_mode: FailureMode::Open };
    let source =
        KubernetesSource::new(cluster.client.clone(), settings, DesiredPods::default(), statuses.subscribe());
    let (desired, mut pods) = watch::channel(DesiredPods::default());
    tokio::spawn(PodSource::Kubernetes(Box::new(source)).run(desired));
    server.apply(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "namespace": "shop", "uid": "u", "annotations": {}},
        "spec": {"containers": [], "nodeName": "one"},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
    }));
    let named = pods.wait_for(|desired| !desired.pods.is_empty()).await.unwrap().pods[0].clone();
    let status = PodStatus { pod: Arc::clone(&named), steered_since: Some(1), error: None };
    statuses.send_replace(Arc::new([(Arc::clone(&named.uid), status)].into()));
    let (_serving, serves) = watch::channel(true);
    tokio::spawn(taint::remove_when_serving(cluster.clone(), serves));
    succession::ask(&cluster).await;
    eventually("all is done", || {
        let asked = server.asked();
        ["patch pods", "patch nodes", "watch pods", "watch namespaces", "watch nodes"]
            .iter()
            .all(|what| asked.contains(*what))
    })
    .await;

    let listed: BTreeSet<String> = RIGHTS.iter().map(ToString::to_string).collect();
    assert_eq!(server.asked(), listed);
    // Of the pods and nodes of the cluster, only what is of this node.
    for request in server.answered().iter().filter(|request| ["list", "watch"].contains(&request.verb)) {
        let selector = match request.resource.as_str() {
            "pods" => Some("spec.nodeName=one"),
            "nodes" => Some("metadata.name=one"),
            _ => None,
        };
        assert_eq!(request.query.get("fieldSelector").map(String::as_str), selector, "{request:?}");
    }
}
