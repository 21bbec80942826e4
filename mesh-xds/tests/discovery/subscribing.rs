use mesh_xds::client::SubscribeError;
use mesh_xds::server::ServerConfig;

use super::support::*;

#[tokio::test]
async fn a_wildcard_client_follows_the_store() {
    let store = store(&[("a", "n1"), ("b", "n1")]);
    let server = TestServer::start(&store).await;
    let client = TestClient::wildcard(&server);
    client.synced().await;
    assert!(client.collector.has(&[("a", "n1"), ("b", "n1")]));

    client.collector.clear();
    put(&store, [workload("a", "n2"), workload("c", "n1")]);
    remove(&store, "b");
    client.collector.eventually_has(&[("a", "n2"), ("c", "n1")]).await;
    client.collector.get(|collected| {
        assert_eq!(collected.resources, ["a", "c"], "what did not change is not sent");
        assert_eq!(collected.removed, ["b"]);
    });

    eventually("the server knows that all was accepted", || {
        let clients = server.server.clients();
        let status = &clients[0].types[type_url().as_str()];
        status.wildcard && !status.in_flight && status.acknowledged_version == store.snapshot().version()
    })
    .await;
    assert!(server.server.clients()[0].node.starts_with("ztunnel~"));
    assert!(server.server.clients()[0].address.is_some());
    let status = client.handle.status();
    assert_eq!(status.types[type_url().as_str()].resources, 2);
    assert_eq!((status.connections, status.failures), (1, 0));
    assert!(serde_json::to_string(&status).unwrap().contains("\"connected\":true"));
}

#[tokio::test]
async fn a_client_of_an_empty_store_is_synced_too() {
    let server = TestServer::start(&store(&[])).await;
    let client = TestClient::wildcard(&server);
    client.synced().await;
    assert!(client.collector.has(&[]));
}

#[tokio::test]
async fn changes_close_to_each_other_travel_together() {
    let store = store(&[]);
    let server = TestServer::start(&store).await;
    let client = TestClient::wildcard(&server);
    client.synced().await;
    client.collector.clear();
    for round in 0..100 {
        put(&store, [workload("a", &format!("n{round}"))]);
    }
    client.collector.eventually_has(&[("a", "n99")]).await;
    let sent = client.collector.get(|collected| collected.resources.len());
    assert!(sent <= 10, "100 changes of one resource were sent {sent} times");
}

#[tokio::test]
async fn names_are_asked_for_on_demand() {
    let store = store(&[("a", "n1"), ("b", "n1")]);
    put(&store, [aliased("pod", "net/10.0.0.1", "n1")]);
    let server = TestServer::start(&store).await;
    let client = TestClient::on_demand(&server);
    let subscribe = |names: &[&str]| {
        client.handle.subscribe(&type_url(), names.iter().map(|name| (*name).to_owned())).unwrap();
    };

    subscribe(&["a", "net/10.0.0.1", "unknown"]);
    client.collector.eventually_has(&[("a", "n1"), ("pod", "n1")]).await;
    eventually("the unknown name is answered", || {
        client.collector.get(|collected| collected.removed == ["unknown"])
    })
    .await;

    put(&store, [workload("b", "n2"), workload("unknown", "n1"), aliased("pod", "net/10.0.0.1", "n2")]);
    client.collector.eventually_has(&[("a", "n1"), ("pod", "n2"), ("unknown", "n1")]).await;

    client.handle.unsubscribe(&type_url(), ["net/10.0.0.1", "a"]).unwrap();
    client.collector.eventually_has(&[("unknown", "n1")]).await;
    eventually("the server has left them", || {
        server.server.clients()[0].types[type_url().as_str()].names == 1
    })
    .await;
    client.collector.clear();
    put(&store, [workload("a", "n3"), aliased("pod", "net/10.0.0.1", "n3")]);
    remove(&store, "unknown");
    client.collector.eventually_has(&[]).await;
    assert_eq!(client.collector.get(|collected| collected.resources.clone()), Vec::<String>::new());

    assert_eq!(
        client.handle.subscribe("other", ["x".to_owned()]),
        Err(SubscribeError::UnknownType("other".to_owned()))
    );
}

#[tokio::test]
async fn works_over_ipv6() {
    let store = store(&[("a", "n1")]);
    let server = TestServer::start_with(&store, ServerConfig::default(), "[::1]:0", None).await;
    let client = TestClient::wildcard(&server);
    client.collector.eventually_has(&[("a", "n1")]).await;
    assert!(server.server.clients()[0].address.unwrap().is_ipv6());
}

#[tokio::test]
async fn one_change_among_twenty_thousand_sends_one_resource() {
    const COUNT: usize = 20_000;
    let store = store(&[]);
    put(&store, (0..COUNT).map(|number| workload(&format!("w{number}"), "n1")));
    let server = TestServer::start(&store).await;
    let client = TestClient::wildcard(&server);
    client.synced().await;
    client.collector.get(|collected| {
        assert_eq!((collected.state.len(), collected.resources.len()), (COUNT, COUNT));
        assert!(collected.updates == collected.unfinished + 1, "the last update, and no other, is the end");
    });

    client.collector.clear();
    put(&store, [workload("w7", "n2")]);
    eventually("the change arrives", || client.collector.get(|c| c.state["w7"] == "n2")).await;
    client.collector.get(|collected| {
        assert_eq!((collected.resources.as_slice(), collected.updates), (["w7".to_owned()].as_slice(), 1));
    });
}
