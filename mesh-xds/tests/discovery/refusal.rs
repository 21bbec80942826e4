use super::support::*;

#[tokio::test]
async fn a_refused_resource_keeps_its_last_good_version() {
    let store = store(&[("a", "n1"), ("b", "n1")]);
    let server = TestServer::start(&store).await;
    let client = TestClient::wildcard(&server);
    client.synced().await;
    let url = type_url();

    // One bad resource does not keep the good one of the same response from being used.
    put(&store, [workload("a", "bad"), workload("b", "n2")]);
    client.collector.eventually_has(&[("a", "n1"), ("b", "n2")]).await;
    eventually("the server was told what was wrong with which", || {
        let status = &server.server.clients()[0].types[url.as_str()];
        status.nacks == 1 && status.rejected.get("a").is_some_and(|reason| reason == "node \"bad\" is bad")
    })
    .await;
    let error = server.server.clients()[0].types[url.as_str()].last_error.clone().unwrap();
    assert_eq!(error, "refused 1 resources: a: node \"bad\" is bad");
    let status = client.handle.status().types[url.as_str()].clone();
    assert_eq!((status.nacks, status.rejected["a"].as_str()), (1, "node \"bad\" is bad"));

    // It is not sent again until it changes.
    client.collector.clear();
    put(&store, [workload("b", "n3")]);
    client.collector.eventually_has(&[("a", "n1"), ("b", "n3")]).await;
    assert_eq!(client.collector.get(|collected| collected.resources.clone()), ["b"]);

    put(&store, [workload("a", "n2")]);
    client.collector.eventually_has(&[("a", "n2"), ("b", "n3")]).await;
    eventually("nothing is refused any more", || {
        let status = &server.server.clients()[0].types[url.as_str()];
        status.rejected.is_empty() && status.nacks == 1 && !status.in_flight
    })
    .await;
    assert!(client.handle.status().types[url.as_str()].rejected.is_empty());
}

#[tokio::test]
async fn a_client_that_returns_is_sent_what_it_refused_again() {
    let store = store(&[("a", "n1"), ("b", "n1")]);
    let server = TestServer::start(&store).await;
    let client = TestClient::wildcard(&server);
    client.synced().await;
    put(&store, [workload("a", "bad")]);
    eventually("refused", || client.handle.status().types[type_url().as_str()].nacks == 1).await;

    client.collector.clear();
    let address = server.stop().await;
    let _server = TestServer::start_with(&store, Default::default(), address, None).await;
    eventually("refused again", || client.handle.status().types[type_url().as_str()].nacks == 2).await;
    assert_eq!(client.collector.get(|collected| collected.resources.clone()), ["a"]);
    assert!(client.collector.has(&[("a", "n1"), ("b", "n1")]));
}
