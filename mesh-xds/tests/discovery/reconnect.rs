use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mesh_xds::client::{ClientConfig, Subscription};
use mesh_xds::proto::workload::Workload;
use mesh_xds::server::ServerConfig;
use mesh_xds::transport::{PrepareSocket, Transport};

use super::support::*;

#[tokio::test]
async fn a_client_that_returns_gets_only_the_differences() {
    let first = store(&[("same", "n1"), ("changed", "n1"), ("gone", "n1")]);
    let server = TestServer::start(&first).await;
    let client = TestClient::wildcard(&server);
    client.synced().await;

    let address = server.stop().await;
    client.handle.wait_for(|status| !status.connected).await;
    assert!(client.collector.has(&[("same", "n1"), ("changed", "n1"), ("gone", "n1")]), "the state stays");
    client.collector.clear();

    // A server that was started anew: it knows nothing of the client and numbers its changes from 1 again.
    let second = store(&[("new", "n1"), ("changed", "n2"), ("same", "n1")]);
    let _server = TestServer::start_with(&second, ServerConfig::default(), address, None).await;
    client.synced().await;
    assert!(client.collector.has(&[("same", "n1"), ("changed", "n2"), ("new", "n1")]));
    client.collector.get(|collected| {
        let mut resources = collected.resources.clone();
        resources.sort();
        assert_eq!(
            (resources, collected.removed.clone()),
            (vec!["changed".to_owned(), "new".to_owned()], vec!["gone".to_owned()])
        );
    });
    let status = client.handle.status();
    assert_eq!(status.connections, 2);
    assert!(status.failures >= 1);
}

#[tokio::test]
async fn a_server_with_equal_content_sends_nothing() {
    let content: Vec<(String, String)> = (0..500).map(|n| (format!("w{n}"), "n1".to_owned())).collect();
    let content: Vec<(&str, &str)> = content.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let server = TestServer::start(&store(&content)).await;
    let client = TestClient::wildcard(&server);
    client.synced().await;
    let address = server.stop().await;
    client.handle.wait_for(|status| !status.connected).await;
    client.collector.clear();

    let _server = TestServer::start_with(&store(&content), ServerConfig::default(), address, None).await;
    client.synced().await;
    client.collector.get(|c| assert_eq!((c.resources.len(), c.removed.len(), c.state.len()), (0, 0, 500)));
}

#[tokio::test]
async fn an_on_demand_client_returns_with_its_names() {
    let resources = store(&[("a", "n1"), ("b", "n1")]);
    put(&resources, [aliased("pod", "net/10.0.0.1", "n1")]);
    let server = TestServer::start(&resources).await;
    let client = TestClient::on_demand(&server);
    client.handle.subscribe(&type_url(), ["a".to_owned(), "net/10.0.0.1".to_owned()]).unwrap();
    client.collector.eventually_has(&[("a", "n1"), ("pod", "n1")]).await;
    let address = server.stop().await;
    client.handle.wait_for(|status| !status.connected).await;

    // What changes while it is away, on both sides.
    client.handle.unsubscribe(&type_url(), ["a"]).unwrap();
    client.handle.subscribe(&type_url(), ["b".to_owned()]).unwrap();
    put(&resources, [workload("a", "n2"), aliased("pod", "net/10.0.0.1", "n2")]);
    client.collector.clear();
    let _server = TestServer::start_with(&resources, ServerConfig::default(), address, None).await;
    client.collector.eventually_has(&[("b", "n1"), ("pod", "n2")]).await;
    put(&resources, [workload("a", "n3"), workload("b", "n3")]);
    client.collector.eventually_has(&[("b", "n3"), ("pod", "n2")]).await;
    assert!(!client.collector.get(|collected| collected.resources.contains(&"a".to_owned())));
}

#[tokio::test]
async fn a_client_starts_from_what_a_cache_held() {
    let content = store(&[("same", "n1"), ("changed", "n2")]);
    let version = content
        .snapshot()
        .resource(&type_url(), "same")
        .map(|resource| resource.version().to_owned())
        .unwrap();
    let server = TestServer::start(&content).await;
    let held = [("same", version.as_str()), ("changed", "old"), ("gone", "old")];
    let held = held.iter().map(|(name, version)| ((*name).into(), (*version).into())).collect();
    let subscription = Subscription::wildcard::<Workload>().holding(held);
    let client = TestClient::start(client_config(&[server.uri()], subscription));
    client.synced().await;
    client.collector.get(|collected| {
        assert_eq!(
            (collected.resources.as_slice(), collected.removed.as_slice()),
            (["changed".to_owned()].as_slice(), ["gone".to_owned()].as_slice())
        );
    });
    assert_eq!(client.handle.status().types[type_url().as_str()].resources, 2);
}

#[tokio::test]
async fn servers_are_tried_in_order_and_the_one_that_works_is_kept() {
    let content = store(&[("a", "n1")]);
    let first = TestServer::start(&content).await;
    let second = TestServer::start(&content).await;
    let first_uri = first.uri();
    let second_uri = second.uri();
    let first_address = first.stop().await;

    let config =
        client_config(&[first_uri.clone(), second_uri.clone()], Subscription::wildcard::<Workload>());
    let client = TestClient::start(config);
    client.synced().await;
    assert_eq!(client.handle.status().server, Some(format!("{second_uri}/")));
    assert!(client.last_error().await.contains("refused"), "{}", client.last_error().await);

    // The first one returns; that is no reason to leave the second.
    let first = TestServer::start_with(&content, ServerConfig::default(), first_address, None).await;
    put(&content, [workload("a", "n2")]);
    client.collector.eventually_has(&[("a", "n2")]).await;
    assert_eq!((client.handle.status().connections, first.server.clients().len()), (1, 0));

    second.stop().await;
    eventually("goes over to the first", || {
        let status = client.handle.status();
        status.connected && status.server == Some(format!("{first_uri}/"))
    })
    .await;
    put(&content, [workload("a", "n3")]);
    client.collector.eventually_has(&[("a", "n3")]).await;
}

#[tokio::test]
async fn every_socket_can_be_prepared() {
    let server = TestServer::start(&store(&[("a", "n1")])).await;
    let prepared = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&prepared);
    let prepare_socket: PrepareSocket = Arc::new(move |socket| {
        seen.fetch_add(1, Ordering::Relaxed);
        socket.set_keepalive(true)
    });
    let client = TestClient::start(ClientConfig {
        transport: Transport { prepare_socket: Some(prepare_socket), ..Transport::default() },
        ..client_config(&[server.uri()], Subscription::wildcard::<Workload>())
    });
    client.synced().await;
    assert_eq!(prepared.load(Ordering::Relaxed), 1);
}
