//! Keeps the configuration up to date: from the control server into the store and onto disk.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use mesh_xds::client::{
    Client, ClientConfig, ClientHandle, ConfigError, Handler, Rejection, Status, Subscription, Update,
};
use mesh_xds::proto::Name;
use mesh_xds::proto::discovery::{Node, Resource};
use mesh_xds::proto::workload::Address;
use mesh_xds::transport::Transport;
use tokio::sync::{Notify, mpsc, watch};
use tracing::{error, info, warn};

use super::cache::{Cache, CacheWriter};
use super::convert;
use super::store::{Change, SharedSnapshot, Store};
use crate::settings::RunArgs;

/// The configuration client of an agent, not running yet.
pub struct ConfigClient {
    config: ClientConfig,
    cache: Cache,
    store: Store,
    held: HashMap<String, String>,
    state: watch::Sender<ConfigState>,
}

/// What is known about the state of the configuration, for readiness and `meshctl status`.
#[derive(Debug, Clone, Default)]
pub struct ConfigState {
    /// Where the snapshot came from.
    pub origin: Origin,
    /// Resources read from the last good configuration at start.
    pub cached: usize,
    /// Why there was no last good configuration to start from, if something was wrong with it.
    pub cache_problem: Option<String>,
    client: Option<ClientHandle>,
}

/// Where the snapshot came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// There is none.
    #[default]
    Nothing,
    /// From disk; the control server has not been heard of since the agent started.
    LastGood,
    /// From a control server.
    Server,
}

impl ConfigState {
    /// The state of the connection to the control server, once there is a client.
    pub fn client(&self) -> Option<Status> {
        self.client.as_ref().map(ClientHandle::status)
    }

    /// Whether there is a configuration to serve from.
    pub fn is_ready(&self) -> bool {
        self.origin != Origin::Nothing
    }
}

impl ConfigClient {
    /// Reads the last good configuration and prepares the client.
    ///
    /// # Errors
    /// When the servers cannot be used as they are given. A damaged file is reported and ignored.
    pub fn new(settings: &RunArgs, transport: Transport) -> Result<Self, ConfigError> {
        let cache = Cache::new(&settings.node.state_dir);
        let mut store = Store::new(settings.local_node());
        let mut state = ConfigState::default();
        let held = match restore(&cache, &mut store) {
            Ok(held) => held,
            Err(problem) => {
                error!(%problem, "starting without the last good configuration");
                state.cache_problem = Some(problem);
                if let Err(error) = cache.clear() {
                    warn!(%error, "cannot remove the damaged file");
                }
                HashMap::new()
            }
        };
        if !held.is_empty() {
            state.origin = Origin::LastGood;
            state.cached = held.len();
        }
        let mut config = ClientConfig::new(settings.control_servers.clone(), node(settings), Vec::new());
        config.transport = transport;
        let client = Self { config, cache, store, held, state: watch::Sender::new(state) };
        // Finds mistakes in the settings before anything is touched.
        Client::new(client.subscribed(HashMap::new()), |_: &Update| Vec::new())?;
        Ok(client)
    }

    /// What readers hold.
    pub fn snapshot(&self) -> Arc<SharedSnapshot> {
        self.store.shared()
    }

    /// The state of the configuration.
    pub fn state(&self) -> watch::Receiver<ConfigState> {
        self.state.subscribe()
    }

    /// Follows the control server until `stop` resolves, then brings what is left to disk.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let lost = Arc::new(Notify::new());
        let writer = CacheWriter::new(self.cache.clone());
        let (stop_writer, writer_stopped) = tokio::sync::oneshot::channel::<()>();
        let writing = tokio::spawn(writer.clone().run(async { drop(writer_stopped.await) }, {
            let lost = Arc::clone(&lost);
            move || lost.notify_one()
        }));
        tokio::select! {
            () = self.follow(writer, &lost) => {}
            () = stop => {}
        }
        drop(stop_writer);
        if let Err(error) = writing.await {
            error!(%error, "writing the last good configuration");
        }
    }

    async fn follow(mut self, writer: CacheWriter, lost: &Notify) {
        // The store outlives a client; one that is dropped gives it back.
        let (give_back, mut given_back) = mpsc::channel(1);
        loop {
            let handler = ConfigHandler {
                store: Some(self.store),
                writer: writer.clone(),
                state: self.state.clone(),
                gathered: Vec::new(),
                give_back: give_back.clone(),
            };
            let config = subscribe(&self.config, std::mem::take(&mut self.held));
            let client = match Client::new(config, handler) {
                Ok((client, handle)) => {
                    self.state.send_modify(|state| state.client = Some(handle));
                    client
                }
                Err(error) => {
                    error!(%error, "cannot follow the control server");
                    return;
                }
            };
            tokio::select! {
                () = client.run() => {}
                () = lost.notified() => {}
            }
            let Some(store) = given_back.recv().await else { return };
            self.store = store;
            // Named without versions, everything comes anew, and what is gone is told.
            let snapshot = self.store.shared().load();
            let workloads = snapshot.workloads().map(|workload| workload.uid.to_string());
            let services = snapshot.services().map(|entry| entry.service.id.to_string());
            self.held = workloads.chain(services).map(|name| (name, String::new())).collect();
        }
    }

    fn subscribed(&self, held: HashMap<String, String>) -> ClientConfig {
        subscribe(&self.config, held)
    }
}

fn subscribe(config: &ClientConfig, held: HashMap<String, String>) -> ClientConfig {
    ClientConfig { subscriptions: vec![Subscription::wildcard::<Address>().holding(held)], ..config.clone() }
}

/// Applies the last good configuration and returns the versions it holds.
fn restore(cache: &Cache, store: &mut Store) -> Result<HashMap<String, String>, String> {
    let begin = Instant::now();
    let resources = cache.load().map_err(|error| error.to_string())?;
    let mut held = HashMap::with_capacity(resources.len());
    let mut changes = Vec::with_capacity(resources.len());
    for resource in resources {
        // Written by an agent that understood it; one that does not is asked for again.
        match read(&resource) {
            Ok(change) => {
                changes.push(change);
                held.insert(resource.name, resource.version);
            }
            Err(reason) => {
                warn!(resource = resource.name, %reason, "left out of the last good configuration")
            }
        }
    }
    if !changes.is_empty() {
        store.apply(changes);
        info!(resources = held.len(), elapsed = ?begin.elapsed(), "last good configuration restored");
    }
    Ok(held)
}

fn read(resource: &Resource) -> Result<Change, String> {
    let body = resource.resource.as_ref().ok_or("it is empty")?;
    let address = body.unpack::<Address>().map_err(|error| error.to_string())?;
    convert::change(&resource.name, address).map_err(|error| error.to_string())
}

/// Who the agent is, as Istio's agents say it.
fn node(settings: &RunArgs) -> Node {
    let instance_ip = settings.instance_ip.to_string();
    Node::new(
        &*settings.node_id(),
        [
            ("NAME", settings.pod_name.as_str()),
            ("NAMESPACE", &settings.pod_namespace),
            ("INSTANCE_IPS", &instance_ip),
            ("NODE_NAME", &settings.node.node_name),
            ("CLUSTER_ID", &settings.cluster_id),
            ("NETWORK", &settings.network),
            ("ISTIO_VERSION", env!("CARGO_PKG_VERSION")),
        ],
    )
}

/// Takes in what the control server says.
struct ConfigHandler {
    store: Option<Store>,
    writer: CacheWriter,
    state: watch::Sender<ConfigState>,
    /// Changes of an update that goes on: readers see it complete or not at all.
    gathered: Vec<Change>,
    give_back: mpsc::Sender<Store>,
}

impl Handler for ConfigHandler {
    fn apply(&mut self, update: &Update) -> Vec<Rejection> {
        let mut rejections = Vec::new();
        for resource in &update.resources {
            match read(resource) {
                Ok(change) => {
                    self.gathered.push(change);
                    self.writer.put(resource.clone());
                }
                Err(reason) => {
                    warn!(resource = resource.name, %reason, "refused; its last good version stays");
                    rejections.push(Rejection::new(&resource.name, reason));
                }
            }
        }
        for name in &update.removed {
            self.gathered.push(Change::Remove(name.as_str().into()));
            self.writer.remove(&Address::type_url(), name);
        }
        if !update.more
            && let Some(store) = &mut self.store
        {
            store.apply(self.gathered.drain(..));
            self.state.send_if_modified(|state| {
                let news = state.origin != Origin::Server;
                state.origin = Origin::Server;
                news
            });
        }
        rejections
    }
}

impl Drop for ConfigHandler {
    fn drop(&mut self) {
        if let Some(store) = self.store.take() {
            // Nobody waits for it when the agent ends.
            let _ = self.give_back.try_send(store);
        }
    }
}
