//! Statuses on an API server, with the clock in the test's hand.

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::api_server::{ApiServer, Trouble};

const POLICY: &str = "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/policy";

struct Writer {
    server: ApiServer,
    writer: StatusWriter,
    task: JoinHandle<()>,
}

impl Writer {
    fn start(server: ApiServer) -> Self {
        let writer = StatusWriter::new(server.client(), "istio-system", Arc::default());
        let task = tokio::spawn({
            let writer = writer.clone();
            async move { writer.keep().await }
        });
        Self { server, writer, task }
    }

    /// The condition of the policy, once it is of this generation.
    async fn condition(&self, generation: i64) -> Value {
        loop {
            let object = self.server.get(POLICY).unwrap();
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let own = conditions.into_iter().find(|condition| condition["type"] == "ZtunnelAccepted");
            match own {
                Some(own) if own["observedGeneration"] == generation => return own,
                _ => sleep(Duration::from_millis(10)).await,
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn istio() -> ApiServer {
    let server = ApiServer::new();
    server.define("security.istio.io/v1", "authorizationpolicies", "AuthorizationPolicy", &["status"]);
    server
}

fn policy(generation: i64, spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "policy", "namespace": "shop", "generation": generation}, "spec": spec,
    })
}

/// Puts a new specification, and leaves the status.
fn respecify(server: &ApiServer, generation: i64, spec: Value) {
    let mut object = policy(generation, spec);
    object["status"] = server.get(POLICY).unwrap()["status"].clone();
    server.put(POLICY, object);
}

#[tokio::test(start_paused = true)]
async fn a_policy_says_whether_it_is_in_effect() {
    let server = istio();
    server.put(POLICY, policy(1, json!({})));
    let writer = Writer::start(server.clone());
    let first = writer.condition(1).await;
    assert_eq!((&first["status"], &first["reason"]), (&json!("True"), &json!("Accepted")));

    let http = json!({"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}, {}]});
    respecify(&server, 2, http);
    let in_part = writer.condition(2).await;
    assert_eq!((&in_part["status"], &in_part["reason"]), (&json!("True"), &json!("UnsupportedValue")));
    assert!(
        in_part["message"].as_str().unwrap().contains("spec.rules[0].to[0].operation.methods"),
        "{in_part}"
    );
    assert_eq!(in_part["lastTransitionTime"], first["lastTransitionTime"], "the status is as before");

    respecify(&server, 3, json!({"action": "CUSTOM", "provider": {"name": "opa"}, "rules": [{}]}));
    let custom = writer.condition(3).await;
    assert_eq!((&custom["status"], &custom["reason"]), (&json!("False"), &json!("UnsupportedValue")));
    assert!(
        custom["message"].as_str().unwrap().starts_with("until it is mended, everything it is for is denied")
    );

    let ports = json!({"rules": [{"to": [{"operation": {"ports": ["many"]}}]}]});
    respecify(&server, 4, ports);
    let invalid = writer.condition(4).await;
    assert_eq!((&invalid["status"], &invalid["reason"]), (&json!("False"), &json!("Invalid")));
    assert!(
        invalid["message"].as_str().unwrap().contains("spec.rules[0].to[0].operation.ports[0]"),
        "{invalid}"
    );
}

#[tokio::test(start_paused = true)]
async fn conditions_of_others_stay_and_nothing_is_written_twice() {
    let server = istio();
    let others = json!({"type": "WaypointAccepted", "status": "False", "reason": "AncestorNotBound"});
    let mut object = policy(1, json!({}));
    object["status"] = json!({"conditions": [others], "observedGeneration": "1"});
    server.put(POLICY, object);
    let writer = Writer::start(server.clone());
    writer.condition(1).await;
    let mut object = server.get(POLICY).unwrap();
    assert_eq!(object["status"]["conditions"][0], others);
    assert_eq!(object["status"]["observedGeneration"], "1");
    assert_eq!(server.writes(), [format!("PATCH {POLICY}/status")]);

    // As istiod writes numbers, and with a label: nothing that the condition says has changed.
    object["status"]["conditions"][1]["observedGeneration"] = json!("1");
    object["metadata"]["labels"] = json!({"a": "b"});
    server.put(POLICY, object);
    sleep(LOOK_AGAIN * 10).await;
    assert_eq!(server.writes().len(), 1);

    // Another leader finds it right.
    drop(writer);
    let _next = Writer::start(server.clone());
    sleep(LOOK_AGAIN * 10).await;
    assert_eq!(server.writes().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn kinds_that_are_missing_or_cannot_be_written_are_said_and_looked_for_again() {
    let server = ApiServer::new();
    // Istio before it had v1, and a definition without status.
    server.define("security.istio.io/v1beta1", "authorizationpolicies", "AuthorizationPolicy", &["status"]);
    server.define("security.istio.io/v1", "peerauthentications", "PeerAuthentication", &[]);
    let path = POLICY.replace("/v1/", "/v1beta1/");
    server.put(&path, policy(1, json!({})));
    let writer = Writer::start(server.clone());
    while server.get(&path).unwrap()["status"].is_null() {
        sleep(Duration::from_millis(10)).await;
    }
    let problems = writer.writer.problems();
    assert!(problems["PeerAuthentication"].contains("no status subresource"), "{problems:?}");
    assert!(problems["ServiceEntry"].contains("does not have the kind"), "{problems:?}");
    assert!(!problems.contains_key("AuthorizationPolicy"), "{problems:?}");

    server.define("networking.istio.io/v1", "serviceentries", "ServiceEntry", &["status"]);
    while writer.writer.problems().contains_key("ServiceEntry") {
        sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_written_is_written_later() {
    for trouble in [Trouble::Refuses(500), Trouble::Refuses(403)] {
        let server = istio();
        server.put(POLICY, policy(1, json!({})));
        server.trouble(trouble);
        let writer = Writer::start(server.clone());
        while !writer.writer.problems().contains_key("AuthorizationPolicy") {
            sleep(Duration::from_millis(100)).await;
        }
        assert!(server.writes().len() <= ATTEMPTS as usize, "{:?}", server.writes());
        server.trouble(Trouble::None);
        writer.condition(1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_is_not_put_on_an_object_that_has_changed_meanwhile() {
    let server = istio();
    let object = server.put(POLICY, policy(1, json!({})));
    let outdated: DynamicObject = serde_json::from_value(object).unwrap();
    server.put(POLICY, policy(2, json!({"action": "AUDIT"})));
    let writer = StatusWriter::new(server.client(), "istio-system", Arc::default());
    let resource = writer.find(Kind::AuthorizationPolicy).await.unwrap();
    writer.settle(Kind::AuthorizationPolicy, &resource, &outdated).await.unwrap();
    assert_eq!(server.writes().len(), 1);
    assert!(server.get(POLICY).unwrap()["status"].is_null());
}
