//! A server, a client that collects what it receives, and patience.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mesh_xds::client::{Client, ClientConfig, ClientHandle, Handler, Rejection, Subscription, Update};
use mesh_xds::proto::discovery::Node;
use mesh_xds::proto::workload::Workload;
use mesh_xds::proto::{Any, Name};
use mesh_xds::server::{DiscoveryServer, ResourceStore, ServerConfig, StoredResource, Transaction};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::ServerTlsConfig;

const PATIENCE: Duration = Duration::from_secs(20);

/// Polls until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The type all these tests use.
pub(crate) fn type_url() -> String {
    Workload::type_url()
}

/// A workload whose node is the content that the tests look at.
pub(crate) fn workload(name: &str, node: &str) -> StoredResource {
    StoredResource::new(name, &Workload { uid: name.to_owned(), node: node.to_owned(), ..Default::default() })
}

pub(crate) fn aliased(name: &str, alias: &str, node: &str) -> StoredResource {
    let message = Workload { uid: name.to_owned(), node: node.to_owned(), ..Default::default() };
    StoredResource::with_aliases(name, [alias], Any::pack(&message))
}

pub(crate) fn put(store: &ResourceStore, resources: impl IntoIterator<Item = StoredResource>) {
    let mut transaction = Transaction::new();
    for resource in resources {
        transaction.upsert(&type_url(), resource);
    }
    store.update(transaction);
}

pub(crate) fn remove(store: &ResourceStore, name: &str) {
    let mut transaction = Transaction::new();
    transaction.remove(&type_url(), name);
    store.update(transaction);
}

/// A store with these (name, node) workloads.
pub(crate) fn store(workloads: &[(&str, &str)]) -> ResourceStore {
    let store = ResourceStore::new();
    put(&store, workloads.iter().map(|(name, node)| workload(name, node)));
    store
}

pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) server: DiscoveryServer,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl TestServer {
    pub(crate) async fn start(store: &ResourceStore) -> Self {
        Self::start_with(store, ServerConfig::default(), "127.0.0.1:0", None).await
    }

    pub(crate) async fn start_with(
        store: &ResourceStore,
        config: ServerConfig,
        address: impl tokio::net::ToSocketAddrs,
        tls: Option<ServerTlsConfig>,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = DiscoveryServer::new(store.clone(), config);
        let (stop, stopped) = oneshot::channel();
        let mut transport = DiscoveryServer::transport();
        if let Some(tls) = tls {
            transport = transport.tls_config(tls).unwrap();
        }
        let router = transport.add_service(server.service());
        let task = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            router.serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped).await.unwrap();
        });
        Self { address, server, stop, task }
    }

    pub(crate) fn uri(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops; afterwards the address is free again.
    pub(crate) async fn stop(self) -> SocketAddr {
        self.server.shutdown();
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
        self.address
    }
}

/// What a client received.
#[derive(Clone, Default)]
pub(crate) struct Collector(Arc<Mutex<Collected>>);

#[derive(Default)]
pub(crate) struct Collected {
    /// The last good state, name to node.
    pub(crate) state: BTreeMap<String, String>,
    /// Names of resources, in the order they came.
    pub(crate) resources: Vec<String>,
    pub(crate) removed: Vec<String>,
    pub(crate) updates: usize,
    pub(crate) unfinished: usize,
}

impl Handler for Collector {
    fn apply(&mut self, update: &Update) -> Vec<Rejection> {
        let mut collected = self.0.lock().unwrap();
        let mut rejections = Vec::new();
        let mut bad = Vec::new();
        for (resource, workload) in update.decode::<Workload>(&mut rejections) {
            collected.resources.push(resource.name.clone());
            if workload.node.starts_with("bad") {
                bad.push(Rejection::new(&resource.name, format!("node {:?} is bad", workload.node)));
            } else {
                collected.state.insert(resource.name.clone(), workload.node);
            }
        }
        rejections.extend(bad);
        for name in &update.removed {
            collected.state.remove(name);
            collected.removed.push(name.clone());
        }
        collected.updates += 1;
        collected.unfinished += usize::from(update.more);
        rejections
    }
}

impl Collector {
    pub(crate) fn get<T>(&self, look: impl FnOnce(&Collected) -> T) -> T {
        look(&self.0.lock().unwrap())
    }

    /// Forgets what came so far, except the state.
    pub(crate) fn clear(&self) {
        let mut collected = self.0.lock().unwrap();
        let state = std::mem::take(&mut collected.state);
        *collected = Collected { state, ..Collected::default() };
    }

    pub(crate) fn has(&self, expected: &[(&str, &str)]) -> bool {
        let expected: BTreeMap<_, _> =
            expected.iter().map(|(name, node)| ((*name).to_owned(), (*node).to_owned())).collect();
        self.get(|collected| collected.state == expected)
    }

    pub(crate) async fn eventually_has(&self, expected: &[(&str, &str)]) {
        eventually(&format!("{expected:?} in {:?}", self.get(|c| c.state.clone())), || self.has(expected))
            .await;
    }
}

/// A running client; it ends with the value.
pub(crate) struct TestClient {
    pub(crate) collector: Collector,
    pub(crate) handle: ClientHandle,
    task: JoinHandle<()>,
}

impl Drop for TestClient {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn client_config(servers: &[String], subscription: Subscription) -> ClientConfig {
    let node = Node::new("ztunnel~127.0.0.1~agent.test~test.svc.cluster.local", [("NODE_NAME", "n1")]);
    ClientConfig {
        backoff: (Duration::from_millis(5), Duration::from_millis(50)),
        ..ClientConfig::new(servers.to_vec(), node, vec![subscription])
    }
}

impl TestClient {
    pub(crate) fn start(config: ClientConfig) -> Self {
        let collector = Collector::default();
        let (client, handle) = Client::new(config, collector.clone()).unwrap();
        Self { collector, handle, task: tokio::spawn(client.run()) }
    }

    pub(crate) fn wildcard(server: &TestServer) -> Self {
        Self::start(client_config(&[server.uri()], Subscription::wildcard::<Workload>()))
    }

    pub(crate) fn on_demand(server: &TestServer) -> Self {
        Self::start(client_config(&[server.uri()], Subscription::on_demand::<Workload>()))
    }

    pub(crate) async fn synced(&self) {
        tokio::time::timeout(PATIENCE, self.handle.wait_for(|status| status.is_synced()))
            .await
            .unwrap_or_else(|_| panic!("not synced: {:?}", self.handle.status()));
    }

    pub(crate) async fn last_error(&self) -> String {
        tokio::time::timeout(PATIENCE, self.handle.wait_for(|status| status.last_error.is_some()))
            .await
            .unwrap();
        self.handle.status().last_error.unwrap().message
    }
}

/// A file that goes away with the directory.
pub(crate) fn file(directory: &tempfile::TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = directory.path().join(name);
    std::fs::write(&path, content).unwrap();
    path
}
