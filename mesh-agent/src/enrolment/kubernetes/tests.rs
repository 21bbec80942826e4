//! The source against a Kubernetes API on loopback.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_lab::api_server::{Answered, ApiServer};
use mesh_xds::annotation::REDIRECTION;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::*;
use crate::enrolment::PodStatus;
use crate::kubernetes::testing::{api_server, eventually};

struct Setup {
    server: ApiServer,
    desired: watch::Receiver<DesiredPods>,
    statuses: watch::Sender<PodStatuses>,
}

impl Setup {
    fn new(provisional: DesiredPods) -> Self {
        let (server, client) = api_server();
        server.apply(namespace(ambient()));
        Self::over(server, client, provisional)
    }

    fn over(server: ApiServer, client: Client, provisional: DesiredPods) -> Self {
        let settings =
            KubernetesSettings { node: "one".into(), cluster: "c".into(), failure_mode: FailureMode::Open };
        let statuses = watch::Sender::default();
        let source = KubernetesSource::new(client, settings, provisional, statuses.subscribe());
        let (sender, desired) = watch::channel(DesiredPods::default());
        tokio::spawn(source.run(sender));
        Self { server, desired, statuses }
    }

    /// Waits until the enrolled pods are these.
    async fn enrolled(&mut self, names: &[&str]) {
        let wanted = |desired: &DesiredPods| {
            let enrolled = desired.pods.iter().filter(|pod| pod.enrolled).map(|pod| &*pod.name);
            desired.complete && enrolled.eq(names.iter().copied())
        };
        let reached = timeout(Duration::from_secs(20), self.desired.wait_for(wanted)).await.is_ok();
        assert!(reached, "{names:?} are not enrolled: {:?}", self.desired.borrow());
    }

    /// Reports all desired pods as the reconciler would, those that are enrolled as steered.
    fn report(&self) {
        let desired = self.desired.borrow();
        let statuses: BTreeMap<_, _> = desired
            .pods
            .iter()
            .map(|pod| {
                let steered_since = pod.enrolled.then_some(1);
                (Arc::clone(&pod.uid), PodStatus { pod: Arc::clone(pod), steered_since, error: None })
            })
            .collect();
        self.statuses.send_replace(Arc::new(statuses));
    }
}

/// Requests of a verb.
fn requests(server: &ApiServer, verb: &str) -> Vec<Answered> {
    server.answered().into_iter().filter(|request| request.verb == verb).collect()
}

fn annotation(server: &ApiServer, pod: &str) -> Option<String> {
    let pod = server.object("Pod", "shop", pod)?;
    pod["metadata"]["annotations"][REDIRECTION].as_str().map(str::to_owned)
}

fn namespace(labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}})
}

fn ambient() -> Value {
    json!({"istio.io/dataplane-mode": "ambient"})
}

fn pod(name: &str, address: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": labels, "annotations": {}},
        "spec": {"containers": [], "nodeName": "one"},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    })
}

#[tokio::test]
async fn pods_come_change_and_go() {
    let mut setup = Setup::new(DesiredPods::default());
    setup.server.apply(pod("a", "10.0.0.1", json!({})));
    setup.server.apply(pod("b", "10.0.0.2", json!({"istio.io/dataplane-mode": "none"})));
    setup.enrolled(&["a"]).await;
    assert_eq!(setup.desired.borrow().pods.len(), 2);

    // The namespace leaves the mesh, one of its pods stays.
    setup.server.apply(pod("b", "10.0.0.2", ambient()));
    setup.enrolled(&["a", "b"]).await;
    setup.server.apply(namespace(json!({})));
    setup.enrolled(&["b"]).await;

    setup.server.delete("Pod", "shop", "b");
    setup.enrolled(&[]).await;
    assert_eq!(setup.desired.borrow().pods.len(), 1);
}

#[tokio::test]
async fn a_steered_pod_is_annotated_once_and_cleared_when_it_leaves() {
    let mut setup = Setup::new(DesiredPods::default());
    setup.server.apply(pod("a", "10.0.0.1", ambient()));
    setup.enrolled(&["a"]).await;
    assert_eq!(requests(&setup.server, "patch"), []);

    setup.report();
    let server = setup.server.clone();
    eventually("the pod is annotated", || annotation(&server, "a").as_deref() == Some("enabled")).await;
    setup.report();

    let mut leaving = pod("a", "10.0.0.1", json!({"istio.io/dataplane-mode": "none"}));
    leaving["metadata"]["annotations"] = json!({REDIRECTION: "enabled"});
    setup.server.apply(leaving);
    eventually("the annotation is gone", || annotation(&server, "a").is_none()).await;
    assert!(setup.desired.borrow().pods[0].enrolled, "steered until the others have heard of it");
    setup.enrolled(&[]).await;
    // Before its status says so.
    setup.server.apply(pod("b", "10.0.0.2", json!({})));
    setup.enrolled(&["b"]).await;
    setup.report();
    eventually("the other is annotated", || annotation(&server, "b").is_some()).await;
    let patches = requests(&server, "patch").into_iter().filter(|request| request.name == "a");
    let annotated: Vec<_> = patches.map(|request| request.body["metadata"]["annotations"].clone()).collect();
    assert_eq!(annotated, [json!({REDIRECTION: "enabled"}), json!({REDIRECTION: null})]);
}

#[tokio::test]
async fn an_expired_watch_lists_anew_and_a_bookmark_keeps_it_from_expiring() {
    let mut setup = Setup::new(DesiredPods::default());
    setup.server.apply(pod("a", "10.0.0.1", ambient()));
    setup.enrolled(&["a"]).await;

    let lists = requests(&setup.server, "list").len();
    setup.server.expire();
    setup.server.apply(pod("b", "10.0.0.2", ambient()));
    setup.enrolled(&["a", "b"]).await;
    assert!(requests(&setup.server, "list").len() > lists);
    setup.server.bookmark();
    setup.server.apply(pod("c", "10.0.0.3", ambient()));
    setup.enrolled(&["a", "b", "c"]).await;
}

#[tokio::test]
async fn a_list_that_comes_in_pages_is_taken_as_one() {
    let (server, client) = api_server();
    server.set_page(3);
    server.apply(namespace(ambient()));
    for number in 1..=10 {
        server.apply(pod(&format!("p{number:02}"), &format!("10.0.0.{number}"), json!({})));
    }
    let mut setup = Setup::over(server, client, DesiredPods::default());
    setup.enrolled(&["p01", "p02", "p03", "p04", "p05", "p06", "p07", "p08", "p09", "p10"]).await;
    // Four pages of pods, one of namespaces.
    assert_eq!(requests(&setup.server, "list").len(), 5);
}

#[tokio::test]
async fn what_is_known_stays_while_the_api_is_away() {
    let mut setup = Setup::new(DesiredPods::default());
    setup.server.apply(pod("a", "10.0.0.1", ambient()));
    setup.enrolled(&["a"]).await;
    let before = setup.desired.borrow_and_update().clone();

    setup.server.set_away(true);
    setup.server.apply(pod("b", "10.0.0.2", ambient()));
    // Longer than the first attempts to come back take.
    assert!(timeout(Duration::from_secs(2), setup.desired.changed()).await.is_err());
    assert_eq!(*setup.desired.borrow(), before);

    setup.server.set_away(false);
    setup.enrolled(&["a", "b"]).await;
}

#[tokio::test]
async fn provisional_pods_serve_until_the_api_has_answered() {
    let (server, client) = api_server();
    server.set_away(true);
    let settings =
        KubernetesSettings { node: "one".into(), cluster: "c".into(), failure_mode: FailureMode::Open };
    let mut translator = Translator::new(settings.clone());
    let known: Pod = serde_json::from_value(pod("a", "10.0.0.1", ambient())).unwrap();
    let provisional = translator.translate(&[Arc::new(known)], &HashMap::new(), Instant::now());
    let statuses = watch::Sender::default();
    let source = KubernetesSource::new(client, settings, provisional, statuses.subscribe());
    let (sender, mut desired) = watch::channel(DesiredPods::default());
    tokio::spawn(source.run(sender));

    let first = desired.wait_for(|desired| !desired.pods.is_empty()).await.unwrap().clone();
    assert!(!first.complete && first.pods[0].enrolled);
    server.set_away(false);
    let answered = timeout(Duration::from_secs(20), desired.wait_for(|desired| desired.complete)).await;
    assert_eq!(answered.unwrap().unwrap().pods, []);
}
