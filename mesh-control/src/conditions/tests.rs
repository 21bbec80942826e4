//! Statuses on an API server, with the clock in the test's hand.

use mesh_lab::api_server::{Answered, ApiServer, ResourceType, Trouble};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;

struct Writer {
    server: ApiServer,
    writer: StatusWriter,
    task: JoinHandle<()>,
}

impl Writer {
    fn start(server: ApiServer) -> Self {
        let writer = StatusWriter::new(client(&server), "istio-system", Arc::default());
        let task = tokio::spawn({
            let writer = writer.clone();
            async move { writer.keep().await }
        });
        Self { server, writer, task }
    }

    /// The condition of the policy, once it is of this generation.
    async fn condition(&self, generation: i64) -> Value {
        loop {
            let object = stored(&self.server);
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

fn client(server: &ApiServer) -> Client {
    Client::new(server.router(), "default")
}

fn istio() -> ApiServer {
    let server = ApiServer::without_socket();
    server.install(authorization_policies("v1"));
    server
}

fn authorization_policies(version: &str) -> ResourceType {
    ResourceType::namespaced("security.istio.io", &[version], "authorizationpolicies", "AuthorizationPolicy")
        .with_status()
}

/// The policy as it is on the server.
fn stored(server: &ApiServer) -> Value {
    server.object("AuthorizationPolicy", "shop", "policy").unwrap()
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
    object["status"] = stored(server)["status"].clone();
    server.apply(object);
}

#[tokio::test(start_paused = true)]
async fn a_policy_says_whether_it_is_in_effect() {
    let server = istio();
    server.apply(policy(1, json!({})));
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
    server.apply(object);
    let writer = Writer::start(server.clone());
    writer.condition(1).await;
    let mut object = stored(&server);
    assert_eq!(object["status"]["conditions"][0], others);
    assert_eq!(object["status"]["observedGeneration"], "1");
    let writes: Vec<_> = server.writes().iter().map(Answered::right).collect();
    assert_eq!(writes, ["patch authorizationpolicies/status.security.istio.io"]);

    // As istiod writes numbers, and with a label: nothing that the condition says has changed.
    object["status"]["conditions"][1]["observedGeneration"] = json!("1");
    object["metadata"]["labels"] = json!({"a": "b"});
    server.apply(object);
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
    let server = ApiServer::without_socket();
    // Istio before it had v1, and a definition without status.
    server.install(authorization_policies("v1beta1"));
    let kind = ("peerauthentications", "PeerAuthentication");
    server.install(ResourceType::namespaced("security.istio.io", &["v1"], kind.0, kind.1));
    server.apply(policy(1, json!({})));
    let writer = Writer::start(server.clone());
    while stored(&server)["status"].is_null() {
        sleep(Duration::from_millis(10)).await;
    }
    let problems = writer.writer.problems();
    assert!(problems["PeerAuthentication"].contains("no status subresource"), "{problems:?}");
    assert!(problems["ServiceEntry"].contains("does not have the kind"), "{problems:?}");
    assert!(!problems.contains_key("AuthorizationPolicy"), "{problems:?}");

    let entries = ResourceType::namespaced("networking.istio.io", &["v1"], "serviceentries", "ServiceEntry");
    server.install(entries.with_status());
    while writer.writer.problems().contains_key("ServiceEntry") {
        sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_written_is_written_later() {
    for trouble in [Trouble::RefusesWrites(500), Trouble::RefusesWrites(403)] {
        let server = istio();
        server.apply(policy(1, json!({})));
        server.set_trouble(trouble);
        let writer = Writer::start(server.clone());
        while !writer.writer.problems().contains_key("AuthorizationPolicy") {
            sleep(Duration::from_millis(100)).await;
        }
        assert!(server.writes().len() <= ATTEMPTS as usize, "{:?}", server.writes());
        server.set_trouble(Trouble::None);
        writer.condition(1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_is_not_put_on_an_object_that_has_changed_meanwhile() {
    let server = istio();
    server.apply(policy(1, json!({})));
    let outdated: DynamicObject = serde_json::from_value(stored(&server)).unwrap();
    server.apply(policy(2, json!({"action": "AUDIT"})));
    let writer = StatusWriter::new(client(&server), "istio-system", Arc::default());
    let resource = writer.find(Kind::AuthorizationPolicy).await.unwrap();
    writer.settle(Kind::AuthorizationPolicy, &resource, &outdated).await.unwrap();
    assert_eq!(server.writes().len(), 1);
    assert!(stored(&server)["status"].is_null());
}
