//! Keeps the configuration up to date: from the control server into the store and onto disk.
//!
//! Workloads and policies come as two resource types on one stream, in any order. A workload without the policies
//! that are for it would be open to everyone, so nothing that a server says is shown to readers, or written to disk,
//! before it has answered for both types: at the first start, and after every reconnect, when it may be another
//! server. Until then the last good configuration stays. A server that never answers for policies (because it does not
//! know the type) leaves an agent without one not ready, and the agent says why.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_xds::client::{
    Client, ClientConfig, ClientHandle, ConfigError, Handler, Rejection, Status, Subscription, Update,
    Version, Versions,
};
use mesh_xds::proto::discovery::{Node, Resource};
use mesh_xds::proto::security::Authorization;
use mesh_xds::proto::workload::Address;
use mesh_xds::proto::{Any, Name};
use mesh_xds::transport::Transport;
use tokio::sync::{Notify, mpsc, watch};
use tracing::{error, info, warn};

use super::cache::{self, Cache, CacheWriter};
use super::convert;
use super::store::{Change, SharedSnapshot, Store};
use crate::policy;
use crate::settings::RunArgs;

#[cfg(test)]
mod tests;

/// How long a server may answer one half of what is asked of it before people are told.
const PATIENCE: Duration = Duration::from_secs(10);

/// The configuration client of an agent, not running yet.
pub struct ConfigClient {
    config: ClientConfig,
    cache: Cache,
    store: Store,
    held: Held,
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
    /// The server has answered, but not for this resource type: nothing it says is used before.
    pub awaited: Option<Arc<str>>,
    client: Option<ClientHandle>,
}

/// Versions of the resources at hand, by type. Named without a version, a resource comes anew.
#[derive(Debug, Clone, Default)]
struct Held {
    addresses: Versions,
    policies: Versions,
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
            Ok((held, ready)) => {
                state.cached = held.addresses.len() + held.policies.len();
                if ready {
                    state.origin = Origin::LastGood;
                }
                held
            }
            Err(problem) => {
                error!(%problem, "starting without the last good configuration");
                state.cache_problem = Some(problem);
                if let Err(error) = cache.clear() {
                    warn!(%error, "cannot remove the damaged file");
                }
                Held::default()
            }
        };
        let mut config = ClientConfig::new(settings.control_servers.clone(), node(settings), Vec::new());
        config.transport = transport;
        let client = Self { config, cache, store, held, state: watch::Sender::new(state) };
        // Finds mistakes in the settings before anything is touched.
        Client::new(client.subscribed(Held::default()), |_: &Update| Vec::new())?;
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
                answers: Answers::default(),
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
                () = tell_if_incomplete(self.state.subscribe()) => {}
                () = lost.notified() => {}
            }
            let Some(store) = given_back.recv().await else { return };
            self.store = store;
            // Named without versions, everything comes anew, and what is gone is told.
            let known = self.store.next();
            let workloads = known.workloads().map(|workload| Arc::clone(&workload.uid));
            let services = known.services().map(|entry| entry.service.id.to_string().into());
            let policies = known.policies().iter().map(|policy| Arc::clone(&policy.name));
            self.held = Held {
                addresses: workloads.chain(services).map(|name| (name, Version::default())).collect(),
                policies: policies.map(|name| (name, Version::default())).collect(),
            };
        }
    }

    fn subscribed(&self, held: Held) -> ClientConfig {
        subscribe(&self.config, held)
    }
}

fn subscribe(config: &ClientConfig, held: Held) -> ClientConfig {
    let subscriptions = vec![
        Subscription::wildcard::<Address>().holding(held.addresses),
        Subscription::wildcard::<Authorization>().holding(held.policies),
    ];
    ClientConfig { subscriptions, ..config.clone() }
}

/// Says so when a server answers for one type and not for the other. Does not end while there is a configuration.
async fn tell_if_incomplete(mut state: watch::Receiver<ConfigState>) {
    loop {
        let Ok(awaited) = state.wait_for(|state| state.awaited.is_some()).await.map(|s| s.awaited.clone())
        else {
            return;
        };
        let answered = state.wait_for(|state| state.awaited.is_none());
        if tokio::time::timeout(PATIENCE, answered).await.is_ok() {
            continue;
        }
        warn!(
            missing = awaited.as_deref(),
            "the control server has not answered for this resource type: nothing it says is used before, because \
             workloads without their policies would be open to everyone; use a server that serves both"
        );
        if state.wait_for(|state| state.awaited.is_none()).await.is_err() {
            return;
        }
    }
}

/// Applies the last good configuration; returns the versions it holds and whether it can be served from.
fn restore(cache: &Cache, store: &mut Store) -> Result<(Held, bool), String> {
    let begin = Instant::now();
    let mut held = Held::default();
    let mut changes = Vec::new();
    let policies = cache.load(|resource| {
        let is_policy = resource.resource.as_ref().is_some_and(|b| b.type_url == Authorization::type_url());
        let versions = if is_policy { &mut held.policies } else { &mut held.addresses };
        match read(&resource, store) {
            Ok(change) => {
                let name = shared_name(&change).unwrap_or_else(|| resource.name.as_str().into());
                changes.push(change);
                versions.insert(name, Version::from(resource.version));
            }
            // Kept because it denies; named without a version, it is sent again or told to be gone.
            Err(reason) if is_policy => {
                changes.push(unusable(&resource.name, resource.resource.as_ref(), &reason, store));
                versions.insert(resource.name.into(), Version::default());
            }
            // Written by an agent that understood it; one that does not is asked for again.
            Err(reason) => {
                warn!(resource = resource.name, %reason, "left out of the last good configuration")
            }
        }
    });
    let policies = policies.map_err(|error| error.to_string())?;
    let ready = policies == cache::Policies::Complete && !changes.is_empty();
    store.stage(changes);
    if ready {
        store.publish();
        let resources = held.addresses.len() + held.policies.len();
        info!(resources, elapsed = ?begin.elapsed(), "last good configuration restored");
    } else if !held.addresses.is_empty() {
        info!("the last good configuration is without policies: waiting for those of a control server");
    }
    Ok((held, ready))
}

fn read(resource: &Resource, store: &mut Store) -> Result<Change, String> {
    let body = resource.resource.as_ref().ok_or("it is empty")?;
    if body.type_url == Authorization::type_url() {
        let policy = policy::read(&resource.name, body, &mut store.pools().strings)
            .map_err(|error| error.to_string())?;
        return Ok(Change::Policy(Arc::new(policy)));
    }
    let address = body.unpack::<Address>().map_err(|error| error.to_string())?;
    convert::change(&resource.name, address, store.pools()).map_err(|error| error.to_string())
}

/// The name of a resource as the store has it, so that it is there once.
fn shared_name(change: &Change) -> Option<Arc<str>> {
    match change {
        Change::Workload(workload) => Some(Arc::clone(&workload.uid)),
        Change::Policy(policy) => Some(Arc::clone(&policy.name)),
        _ => None,
    }
}

/// What is held in the place of a policy that cannot be read.
fn unusable(name: &str, body: Option<&Any>, reason: &str, store: &mut Store) -> Change {
    Change::Policy(Arc::new(policy::unusable(name, body, reason, &mut store.pools().strings)))
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

/// Which answers the stream has brought so far.
#[derive(Debug, Default)]
struct Answers {
    /// Types of which everything was sent once.
    complete: BTreeSet<Arc<str>>,
    /// Types of which a change goes on in the next response.
    partial: BTreeSet<Arc<str>>,
}

impl Answers {
    fn received(&mut self, type_url: &Arc<str>, more: bool) {
        if more {
            self.partial.insert(Arc::clone(type_url));
        } else {
            self.partial.remove(type_url);
            self.complete.insert(Arc::clone(type_url));
        }
    }

    /// A type that was not answered for, although another one was.
    fn awaited(&self) -> Option<Arc<str>> {
        let mut types = [Authorization::type_url(), Address::type_url()].into_iter();
        let missing = types.find(|url| !self.complete.contains(url.as_str()))?;
        (!self.complete.is_empty()).then(|| missing.into())
    }

    /// Whether readers may see what has come.
    fn are_complete(&self) -> bool {
        self.complete.len() == 2 && self.partial.is_empty()
    }
}

/// Takes in what the control server says.
struct ConfigHandler {
    store: Option<Store>,
    writer: CacheWriter,
    state: watch::Sender<ConfigState>,
    answers: Answers,
    give_back: mpsc::Sender<Store>,
}

impl Handler for ConfigHandler {
    fn stream_opened(&mut self) {
        self.answers = Answers::default();
        self.writer.hold();
        self.state.send_if_modified(|state| state.awaited.take().is_some());
    }

    fn shared_name(&self, name: &str) -> Option<Arc<str>> {
        let known = self.store.as_ref()?.next();
        let workload = known.workload(name).map(|workload| Arc::clone(&workload.uid));
        workload.or_else(|| known.policies().policy(name).map(|policy| Arc::clone(&policy.name)))
    }

    fn apply(&mut self, update: &Update) -> Vec<Rejection> {
        let Some(store) = &mut self.store else { return Vec::new() };
        let are_policies = *update.type_url == *Authorization::type_url();
        let (mut changes, mut rejections) = (Vec::new(), Vec::new());
        for resource in &update.resources {
            match read(resource, store) {
                Ok(change) => {
                    let name = shared_name(&change).unwrap_or_else(|| resource.name.as_str().into());
                    self.writer.put(&update.type_url, name, resource);
                    changes.push(change);
                }
                Err(reason) => {
                    warn!(resource = resource.name, %reason, "refused; its last good version stays");
                    if are_policies && lacks_good_version(store, &resource.name) {
                        changes.push(unusable(&resource.name, resource.resource.as_ref(), &reason, store));
                        self.writer.put(&update.type_url, resource.name.as_str().into(), resource);
                    }
                    rejections.push(Rejection::new(&resource.name, reason));
                }
            }
        }
        for Rejection { name, reason } in &update.unreadable {
            if are_policies && !name.is_empty() && lacks_good_version(store, name) {
                changes.push(unusable(name, None, reason, store));
                self.writer.put(&update.type_url, name.as_str().into(), &nothing_readable(name));
            }
        }
        for name in &update.removed {
            let name: Arc<str> = name.as_str().into();
            self.writer.remove(&update.type_url, &name);
            changes.push(if are_policies { Change::RemovePolicy(name) } else { Change::Remove(name) });
        }
        store.stage(changes);
        self.answers.received(&update.type_url, update.more);
        if self.answers.are_complete() {
            store.publish();
            self.writer.release();
        }
        self.state.send_if_modified(|state| {
            let origin = if self.answers.are_complete() { Origin::Server } else { state.origin };
            let awaited = self.answers.awaited();
            let news = (state.origin, &state.awaited) != (origin, &awaited);
            (state.origin, state.awaited) = (origin, awaited);
            news
        });
        rejections
    }
}

fn lacks_good_version(store: &Store, name: &str) -> bool {
    store.next().policies().policy(name).is_none_or(|policy| policy.unusable.is_some())
}

/// Keeps the name of a policy on disk that came without a body.
fn nothing_readable(name: &str) -> Resource {
    let body = Any { type_url: Authorization::type_url(), value: bytes::Bytes::new() };
    Resource { name: name.to_owned(), resource: Some(body), ..Resource::default() }
}

impl Drop for ConfigHandler {
    fn drop(&mut self) {
        if let Some(store) = self.store.take() {
            // Nobody waits for it when the agent ends.
            let _ = self.give_back.try_send(store);
        }
    }
}
