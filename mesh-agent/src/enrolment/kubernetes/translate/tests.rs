use serde_json::{Value, json};

use super::*;
use crate::pods::FailureMode;

fn translate(pods: &[Value], namespace_mode: Option<&str>) -> DesiredPods {
    let settings =
        KubernetesSettings { node: "one".into(), cluster: "c".into(), failure_mode: FailureMode::Open };
    let labels =
        namespace_mode.map(|mode| (DATAPLANE_MODE.to_owned(), mode.to_owned())).into_iter().collect();
    let pods: Vec<_> =
        pods.iter().map(|pod| Arc::new(serde_json::from_value(pod.clone()).unwrap())).collect();
    Translator::new(settings).translate(&pods, &HashMap::from([("shop".to_owned(), labels)]))
}

fn pod(name: &str, metadata: Value, spec: Value, status: Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"containers": [], "serviceAccountName": "clerk"},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
    });
    for (part, changes) in [("metadata", metadata), ("spec", spec), ("status", status)] {
        for (key, value) in changes.as_object().unwrap() {
            pod[part][key] = value.clone();
        }
    }
    pod
}

#[test]
fn a_pod_is_taken_over_as_it_is() {
    let desired = translate(&[pod("a", json!({}), json!({}), json!({}))], Some("ambient"));
    let found = &desired.pods[0];
    assert!(desired.complete && desired.problems.is_empty() && found.enrolled);
    assert_eq!((&*found.uid, &*found.service_account), ("c//Pod/shop/a", "clerk"));
    assert_eq!(
        found.addresses,
        ["10.0.0.1".parse::<std::net::IpAddr>().unwrap(), "fd00::1".parse().unwrap()]
    );
}

#[test]
fn labels_of_the_pod_count_before_those_of_the_namespace() {
    let labelled = |mode: &str| pod("a", json!({"labels": {DATAPLANE_MODE: mode}}), json!({}), json!({}));
    let enrolled = |pod: Value, namespace| translate(&[pod], namespace).pods[0].enrolled;
    let unlabelled = || pod("a", json!({}), json!({}), json!({}));
    assert!(!enrolled(unlabelled(), None));
    assert!(!enrolled(unlabelled(), Some("none")));
    assert!(enrolled(labelled("ambient"), None));
    assert!(!enrolled(labelled("none"), Some("ambient")));

    let odd = translate(&[labelled("Ambient")], Some("ambient"));
    assert!(odd.pods[0].enrolled);
    assert!(odd.problems["c//Pod/shop/a"].contains("found \"Ambient\""), "{:?}", odd.problems);
}

#[test]
fn pods_without_a_network_of_their_own_are_no_local_pods() {
    let pods = [
        pod("host", json!({}), json!({"hostNetwork": true}), json!({})),
        pod("done", json!({}), json!({}), json!({"phase": "Succeeded"})),
        pod("crashed", json!({}), json!({}), json!({"phase": "Failed"})),
        pod("starting", json!({}), json!({}), json!({"podIPs": []})),
    ];
    assert_eq!(translate(&pods, Some("ambient")).pods, []);
}

#[test]
fn a_pod_with_a_sidecar_is_known_but_not_enrolled() {
    let injected = pod("a", json!({"annotations": {SIDECAR_STATUS: "{}"}}), json!({}), json!({}));
    assert!(!translate(&[injected], Some("ambient")).pods[0].enrolled);
}
