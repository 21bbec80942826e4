//! A real Envoy as a client of our server: whether we speak the protocol right is for others to say.
//!
//! Needs the program `envoy`: `$MESH_ENVOY`, or the one that `cargo xtask setup` installs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "test code"
)]

mod process;
mod resources;

use std::time::{Duration, Instant};

use mesh_xds::server::{DiscoveryServer, ResourceStore, ServerConfig, Transaction, TypeStatus};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;

use crate::process::Envoy;
use crate::resources::{CLUSTER, ENDPOINTS, cluster, endpoints, unusable_cluster};

const PATIENCE: Duration = Duration::from_secs(30);

struct Server {
    discovery: DiscoveryServer,
    address: String,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(store: &ResourceStore, address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let discovery = DiscoveryServer::new(store.clone(), ServerConfig::default());
        let (stop, stopped) = oneshot::channel();
        let router = DiscoveryServer::transport().add_service(discovery.service());
        let task = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            router.serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped).await.unwrap();
        });
        Self { discovery, address, stop, task }
    }

    async fn stop(self) -> String {
        self.discovery.shutdown();
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
        self.address
    }

    /// What Envoy subscribes to of a type, once it does.
    fn subscription(&self, type_url: &str) -> Option<TypeStatus> {
        self.discovery.clients().first()?.types.get(type_url).cloned()
    }
}

fn update(store: &ResourceStore, change: impl FnOnce(&mut Transaction)) {
    let mut transaction = Transaction::new();
    change(&mut transaction);
    store.update(transaction);
}

/// Asks Envoy for its clusters until `condition` holds of what it says.
async fn clusters(envoy: &Envoy, what: &str, condition: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let clusters = envoy.ask("/clusters").await.unwrap_or_default();
        if condition(&clusters) {
            return clusters;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}\n{clusters}\n{}", envoy.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn eventually(envoy: &Envoy, what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}\n{}", envoy.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn has(clusters: &str, cluster: &str, port: u16) -> bool {
    clusters.contains(&format!("{cluster}::127.0.0.1:{port}::"))
}

#[tokio::test]
async fn envoy_follows_refuses_and_returns() {
    let store = ResourceStore::new();
    update(&store, |change| {
        for (name, port) in [("one", 1001), ("two", 1002)] {
            change.upsert(CLUSTER, cluster(name));
            change.upsert(ENDPOINTS, endpoints(name, port));
        }
    });
    let server = Server::start(&store, "127.0.0.1:0").await;
    let envoy = Envoy::start(&server.address);

    // Clusters by wildcard, their endpoints by name.
    clusters(&envoy, "both clusters have their endpoint", |c| has(c, "one", 1001) && has(c, "two", 1002))
        .await;
    eventually(&envoy, "all is acknowledged", || {
        let quiet = |status: TypeStatus| !status.in_flight && status.acks > 0 && status.nacks == 0;
        server.subscription(CLUSTER).is_some_and(quiet) && server.subscription(ENDPOINTS).is_some_and(quiet)
    })
    .await;
    assert_eq!(server.discovery.clients()[0].node, "test-envoy");
    assert!(server.subscription(CLUSTER).unwrap().wildcard);
    assert_eq!(server.subscription(ENDPOINTS).unwrap().names, 2);

    // One change sends one resource.
    let sent = server.subscription(ENDPOINTS).unwrap().resources;
    update(&store, |change| change.upsert(ENDPOINTS, endpoints("two", 2002)));
    clusters(&envoy, "the endpoint has moved", |c| has(c, "one", 1001) && has(c, "two", 2002)).await;
    assert_eq!(server.subscription(ENDPOINTS).unwrap().resources, sent + 1);

    // What it refuses does not disturb what it has, and is not sent again until it is mended.
    update(&store, |change| {
        change.upsert(CLUSTER, unusable_cluster("one"));
        change.upsert(CLUSTER, cluster("three"));
        change.upsert(ENDPOINTS, endpoints("three", 1003));
    });
    clusters(&envoy, "the good one of the two", |c| has(c, "three", 1003) && has(c, "one", 1001)).await;
    let refused = server.subscription(CLUSTER).unwrap();
    assert_eq!(refused.nacks, 1);
    assert!(refused.last_error.as_ref().is_some_and(|error| error.contains("one")), "{refused:?}");
    update(&store, |change| {
        change.upsert(CLUSTER, cluster("one"));
        change.remove(CLUSTER, "two");
        change.remove(ENDPOINTS, "two");
    });
    clusters(&envoy, "the removed one is gone", |c| !c.contains("two::") && has(c, "one", 1001)).await;
    eventually(&envoy, "the mended one is accepted", || {
        server.subscription(CLUSTER).is_some_and(|status| !status.in_flight && status.nacks == 1)
    })
    .await;

    // A server that was started anew and has the same content has nothing to repeat.
    let same = ResourceStore::new();
    update(&same, |change| {
        for (name, port) in [("one", 1001), ("three", 1003)] {
            change.upsert(CLUSTER, cluster(name));
            change.upsert(ENDPOINTS, endpoints(name, port));
        }
    });
    let address = server.stop().await;
    let server = Server::start(&same, &address).await;
    eventually(&envoy, "Envoy returns", || {
        server.subscription(CLUSTER).is_some_and(|status| status.acks > 0)
            && server.subscription(ENDPOINTS).is_some_and(|status| status.names == 2 && !status.in_flight)
    })
    .await;
    // Except for `three`: Envoy does not note the versions in a response of which it refused a part.
    assert!(server.subscription(CLUSTER).unwrap().resources <= 1);
    assert_eq!(server.subscription(ENDPOINTS).unwrap().resources, 0);
    update(&same, |change| change.upsert(ENDPOINTS, endpoints("three", 3003)));
    clusters(&envoy, "and follows", |c| has(c, "one", 1001) && has(c, "three", 3003)).await;
    server.stop().await;
}
