use std::time::Duration;

use mesh_xds::annotation::{REDIRECTION, REDIRECTION_ENABLED};
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
    let labels = HashMap::from([("shop".to_owned(), labels)]);
    Translator::new(settings).translate(&pods, &labels, Instant::now())
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
    assert_eq!(found.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
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
    let injected =
        |annotation: &str| pod("a", json!({"annotations": {annotation: "{}"}}), json!({}), json!({}));
    for (annotation, mesh) in SIDECARS {
        let desired = translate(&[injected(annotation)], Some("ambient"));
        assert!(!desired.pods[0].enrolled, "{mesh}");
        assert!(desired.problems["c//Pod/shop/a"].contains(mesh), "{:?}", desired.problems);
        // Where nobody asks for it to be enrolled, nothing is wrong.
        assert!(translate(&[injected(annotation)], None).problems.is_empty());
    }
}

#[test]
fn an_address_is_of_the_pod_that_stays_and_of_the_younger() {
    let created = |name: &str, hour: u32| {
        pod(name, json!({"creationTimestamp": format!("2026-01-01T{hour:02}:00:00Z")}), json!({}), json!({}))
    };
    let deleted = |mut pod: Value| {
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z".into();
        pod
    };
    let owners = |pods: &[Value]| {
        let desired = translate(pods, Some("ambient"));
        desired.pods.iter().map(|pod| pod.name.to_string()).collect::<Vec<_>>()
    };
    for (one, other, owner) in [
        (created("a", 1), created("b", 2), "b"),
        (deleted(created("a", 2)), created("b", 1), "b"),
        (created("a", 1), deleted(created("b", 2)), "a"),
    ] {
        assert_eq!(owners(&[one.clone(), other.clone()]), [owner]);
        assert_eq!(owners(&[other, one]), [owner]);
    }
    // Alone, a pod that terminates still has it.
    assert_eq!(owners(&[deleted(created("a", 1))]), ["a"]);

    // Each family for itself.
    let mut older = created("a", 1);
    older["status"]["podIPs"] = json!([{"ip": "10.0.0.1"}, {"ip": "fd00::2"}]);
    let desired = translate(&[older, created("b", 2)], None);
    assert_eq!(desired.pods[0].addresses, ["fd00::2".parse::<IpAddr>().unwrap()]);
    assert_eq!(desired.pods[1].addresses.len(), 2);
}

#[test]
fn a_pod_leaves_once_the_others_have_heard_of_it() {
    const SECOND: Duration = Duration::from_secs(1);
    let settings =
        KubernetesSettings { node: "one".into(), cluster: "c".into(), failure_mode: FailureMode::Open };
    let mut translator = Translator::new(settings);
    let start = Instant::now();
    let mut say = |marked: bool, mode: &str, kubernetes_uid: &str, at: Duration| {
        let annotations = if marked { json!({REDIRECTION: REDIRECTION_ENABLED}) } else { json!({}) };
        let metadata =
            json!({"annotations": annotations, "labels": {DATAPLANE_MODE: mode}, "uid": kubernetes_uid});
        let pod = serde_json::from_value(pod("a", metadata, json!({}), json!({}))).unwrap();
        let desired = translator.translate(&[Arc::new(pod)], &HashMap::new(), start + at);
        let next = translator.next_departure().map(|next| next - start);
        (desired.pods[0].enrolled, !desired.leaving.is_empty(), next)
    };
    assert_eq!(say(true, "ambient", "1", Duration::ZERO), (true, false, None));
    // The label goes first, then the annotation, then steering.
    assert_eq!(say(true, "none", "1", 10 * SECOND), (true, true, Some(30 * SECOND)));
    assert_eq!(say(false, "none", "1", 11 * SECOND), (true, true, Some(14 * SECOND)));
    assert_eq!(say(false, "none", "1", 13 * SECOND), (true, true, Some(14 * SECOND)));
    assert_eq!(say(false, "none", "1", 14 * SECOND), (false, false, None));
    // Who comes back in between stays.
    assert_eq!(say(true, "ambient", "1", 20 * SECOND), (true, false, None));
    assert_eq!(say(true, "none", "1", 21 * SECOND), (true, true, Some(41 * SECOND)));
    assert_eq!(say(true, "ambient", "1", 22 * SECOND), (true, false, None));
    // An annotation that cannot be taken away keeps nobody in.
    assert_eq!(say(true, "none", "1", 30 * SECOND), (true, true, Some(50 * SECOND)));
    assert_eq!(say(true, "none", "1", 50 * SECOND), (false, false, None));
    // Another pod of the name has nothing to wait for.
    assert_eq!(say(true, "ambient", "1", 60 * SECOND), (true, false, None));
    assert_eq!(say(false, "none", "2", 61 * SECOND), (false, false, None));
}
