use mesh_lab::ApiServer;
use serde_json::json;

use super::*;
use crate::authority::tests::client;

fn status(user: &str, node: Option<&str>) -> serde_json::Value {
    let extra = node.map(|node| json!({NODE_NAME: [node]}));
    json!({
        "authenticated": true, "audiences": ["istio-ca"], "user": {"username": user, "extra": extra},
    })
}

const AGENT: &str = "system:serviceaccount:mesh-system:mesh-agent";

/// How often the server was asked, each time for the right audience.
fn reviewed(server: &ApiServer) -> usize {
    let reviews: Vec<_> =
        server.answered().into_iter().filter(|answered| answered.resource == "tokenreviews").collect();
    for review in &reviews {
        assert_eq!(review.body["spec"]["audiences"], json!(["istio-ca"]));
    }
    reviews.len()
}

#[tokio::test]
async fn only_agents_whose_node_is_known_are_accepted() {
    let server = ApiServer::start().unwrap();
    let reviews =
        TokenReviews::new(client(&server), "istio-ca", ["mesh-system/mesh-agent".to_owned()].into());
    let mut other_audience = status(AGENT, Some("n1"));
    other_audience["audiences"] = json!([]);
    for (token, status) in [
        ("good", status(AGENT, Some("n1"))),
        ("pod", status("system:serviceaccount:shop:web", Some("n1"))),
        ("user", status("mesh-system/mesh-agent", Some("n1"))),
        ("unbound", status(AGENT, None)),
        ("empty", status(AGENT, Some(""))),
        ("other audience", other_audience),
        ("error", json!({"authenticated": false, "error": "[token has expired]"})),
    ] {
        server.set_review(token, status);
    }
    let agent = Agent { name: AGENT.into(), node: "n1".into() };
    assert_eq!(reviews.agent("good").await, Ok(agent.clone()));
    assert_eq!(reviews.agent("good").await, Ok(agent));
    assert_eq!(reviewed(&server), 1, "remembered");
    for (token, reason) in [
        ("pod", "system:serviceaccount:shop:web is not an agent"),
        ("user", "mesh-system/mesh-agent is not an agent"),
        ("unbound", "does not name a node"),
        ("empty", "does not name a node"),
        ("other audience", "its audience is not istio-ca"),
        ("error", "token has expired"),
        ("never seen", "not authentic"),
    ] {
        let error = reviews.agent(token).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{token}: {error}");
    }
    let before = reviewed(&server);
    assert!(reviews.agent("never seen").await.is_err());
    assert_eq!(reviewed(&server), before + 1, "what was refused may be good by now");
}

#[tokio::test]
async fn an_api_server_that_is_away_is_not_the_agents_fault() {
    let closed = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    let config = kube::Config::new(format!("http://{closed}").parse().unwrap());
    let client = Client::try_from(config).unwrap();
    let reviews = TokenReviews::new(client, "istio-ca", BTreeSet::new());
    assert!(matches!(reviews.agent("any").await, Err(AgentError::Unavailable(_))));
}
