//! What a slow, silent or demanding client costs: itself, and nobody else.

use std::time::Duration;

use mesh_xds::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_xds::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest};
use mesh_xds::server::ServerConfig;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::support::*;

/// A client that does only what the test says.
struct Raw {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Raw {
    async fn connect(server: &TestServer) -> Self {
        let (requests, outgoing) = mpsc::channel(8);
        let mut client = AggregatedDiscoveryServiceClient::connect(server.uri()).await.unwrap();
        let responses =
            client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        Self { requests, responses }
    }

    async fn send(&self, subscribe: &[&str], nonce: &str) {
        let request = DeltaDiscoveryRequest {
            type_url: type_url(),
            resource_names_subscribe: subscribe.iter().map(|name| (*name).to_owned()).collect(),
            response_nonce: nonce.to_owned(),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }
}

fn config() -> ServerConfig {
    ServerConfig { coalesce: Duration::from_millis(1), ..ServerConfig::default() }
}

#[tokio::test]
async fn a_slow_client_gets_one_response_and_then_what_gathered() {
    let content = store(&[("a", "n0")]);
    let server = TestServer::start_with(&content, config(), "127.0.0.1:0", None).await;
    let mut slow = Raw::connect(&server).await;
    slow.send(&["*"], "").await;
    let first = slow.responses.message().await.unwrap().unwrap();
    assert_eq!(first.resources.len(), 1);

    // Meanwhile a client that answers is not held up.
    let quick = TestClient::wildcard(&server);
    for round in 1..=50 {
        let node = format!("n{round}");
        put(&content, [workload("a", &node), workload("b", &node)]);
        quick.collector.eventually_has(&[("a", &node), ("b", &node)]).await;
    }
    let status = |server: &TestServer| {
        let clients = server.server.clients();
        clients.into_iter().find(|client| client.node.is_empty()).unwrap().types[type_url().as_str()].clone()
    };
    assert_eq!(status(&server).responses, 1, "no second response before the first is answered");

    slow.send(&[], &first.nonce).await;
    let second = slow.responses.message().await.unwrap().unwrap();
    assert_eq!((second.resources.len(), second.more), (2, false), "50 changes became one");
    assert_ne!(first.nonce, second.nonce);

    // An answer to an earlier response is not taken for one to this.
    slow.send(&[], &first.nonce).await;
    slow.send(&["b"], "").await;
    tokio::task::yield_now().await;
    assert!(status(&server).in_flight);
    slow.send(&[], &second.nonce).await;
    let third = slow.responses.message().await.unwrap().unwrap();
    assert_eq!(third.resources.len(), 1, "the name that was asked for meanwhile");
}

#[tokio::test]
async fn who_does_not_answer_is_disconnected() {
    let content = store(&[("a", "n0")]);
    let config = ServerConfig { answer_timeout: Duration::from_millis(100), ..config() };
    let server = TestServer::start_with(&content, config, "127.0.0.1:0", None).await;
    let mut silent = Raw::connect(&server).await;
    silent.send(&["*"], "").await;
    silent.responses.message().await.unwrap().unwrap();
    let error = silent.responses.message().await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    eventually("it is off the list", || server.server.clients().is_empty()).await;
}

#[tokio::test]
async fn who_does_not_read_costs_one_response_until_it_is_disconnected() {
    const COUNT: usize = 20_000;
    let content = store(&[]);
    put(&content, (0..COUNT).map(|number| workload(&format!("w{number}"), "n1")));
    let config =
        ServerConfig { answer_timeout: Duration::from_millis(300), response_bytes: 100_000, ..config() };
    let server = TestServer::start_with(&content, config, "127.0.0.1:0", None).await;
    let deaf = Raw::connect(&server).await;
    deaf.send(&["*"], "").await;
    eventually("it is served", || {
        server.server.clients().first().is_some_and(|client| !client.types.is_empty())
    })
    .await;
    assert!(server.server.clients()[0].types[type_url().as_str()].resources < COUNT as u64 / 4);
    eventually("it is disconnected", || server.server.clients().is_empty()).await;
}

#[tokio::test]
async fn too_many_names_and_too_many_clients_are_refused() {
    let config = ServerConfig { max_names: 2, max_clients: 2, ..config() };
    let server = TestServer::start_with(&store(&[]), config, "127.0.0.1:0", None).await;
    let mut greedy = Raw::connect(&server).await;
    let _second = Raw::connect(&server).await;

    let (_requests, outgoing) = mpsc::channel(1);
    let mut third = AggregatedDiscoveryServiceClient::connect(server.uri()).await.unwrap();
    let refused = third.delta_aggregated_resources(ReceiverStream::new(outgoing)).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::ResourceExhausted, "2 clients are connected, the maximum")
    );

    greedy.send(&["a", "b", "c"], "").await;
    let error = greedy.responses.message().await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");

    eventually("it is off the list", || server.server.clients().len() == 1).await;
    let mut verbose = Raw::connect(&server).await;
    verbose.send(&[&"a".repeat(100_000)], "").await;
    let error = verbose.responses.message().await.unwrap_err();
    assert!(error.code() == Code::InvalidArgument && error.message().len() < 1000, "{error}");
}

#[tokio::test]
async fn the_other_protocol_is_refused_with_a_hint() {
    let server = TestServer::start(&store(&[])).await;
    let mut client = AggregatedDiscoveryServiceClient::connect(server.uri()).await.unwrap();
    let request = tokio_stream::once(DiscoveryRequest::default());
    let error = client.stream_aggregated_resources(request).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    assert!(error.message().contains("DELTA_GRPC"), "{error}");
}
