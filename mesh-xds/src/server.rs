//! A delta discovery server.
//!
//! A [`ResourceStore`] holds the current resources of every type; the control server's translation writes it, in
//! transactions. [`DiscoveryServer`] is the gRPC service on top: each client's stream (`session`) follows the
//! store at the client's own pace and is sent what changed (`subscription`), never everything again.
//!
//! ```no_run
//! # use mesh_xds::server::*;
//! # use mesh_xds::proto::{Name, workload::Address};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let store = ResourceStore::new();
//! let server = DiscoveryServer::new(store.clone(), ServerConfig::default());
//!
//! let mut change = Transaction::new();
//! change.upsert(&Address::type_url(), StoredResource::new("uid", &Address::default()));
//! store.update(change);
//!
//! DiscoveryServer::transport().add_service(server.service()).serve("[::]:15010".parse()?).await?;
//! # Ok(()) }
//! ```

mod clients;
mod content;
mod observer;
mod service;
mod session;
mod store;
mod subscription;
mod table;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};
use tracing::Instrument;

pub use self::clients::{ClientStatus, TypeStatus};
pub use self::observer::{Observer, SentResponse};
pub use self::service::DiscoveryService;
pub use self::store::{Applied, ResourceStore, Snapshot, Transaction};
pub use self::table::StoredResource;

use self::clients::Clients;
use self::content::Contents;
use self::service::Outgoing;
use self::session::Session;
use crate::proto::discovery::DeltaDiscoveryRequest;

/// Resource types a client may subscribe to on one stream; Envoy knows about a dozen.
const MAX_TYPES: usize = 32;
/// Longest name a client may subscribe to; Kubernetes' own end at 253 bytes a part.
const MAX_NAME_BYTES: usize = 2048;

/// The limits and times of a server.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Name of this server, told to clients. Empty by default.
    pub identifier: String,
    /// Least time between two times at which a client is told of changes: one after a quiet time goes out at once,
    /// what follows soon waits and goes out together. 10 ms by default.
    pub coalesce: Duration,
    /// Size at which a response ends and goes on in the next one; a single resource may be larger. 256 KiB by
    /// default: of each type, a client has one on its way. Many gRPC clients refuse messages of more than 4 MiB.
    pub response_bytes: usize,
    /// Time a client has to answer a response before it is disconnected. 30 s by default.
    pub answer_timeout: Duration,
    /// Largest request that is read; the first one after a reconnect lists all that a client holds. 32 MiB by
    /// default, enough for about 300,000 resources.
    pub max_request_bytes: usize,
    /// Names a client may subscribe to one by one, per type. 100,000 by default.
    pub max_names: usize,
    /// Clients served at the same time. 10,000 by default.
    pub max_clients: usize,
    /// Types whose resources name those of the types before them: a client gets them in this order and loses them in
    /// the other. None by default.
    pub order: Vec<Arc<str>>,
    /// Is told of what is sent and refused. Nobody by default.
    pub observer: Option<Arc<dyn Observer>>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            identifier: String::new(),
            coalesce: Duration::from_millis(10),
            response_bytes: 256 * 1024,
            answer_timeout: Duration::from_secs(30),
            max_request_bytes: 32 * 1024 * 1024,
            max_names: 100_000,
            max_clients: 10_000,
            order: Vec::new(),
            observer: None,
        }
    }
}

/// The discovery service. Clones are the same server.
#[derive(Debug, Clone)]
pub struct DiscoveryServer {
    store: ResourceStore,
    config: Arc<ServerConfig>,
    clients: Clients,
    contents: Contents,
    stopping: watch::Sender<bool>,
}

impl DiscoveryServer {
    /// A server of what `store` holds.
    pub fn new(store: ResourceStore, config: ServerConfig) -> Self {
        Self {
            store,
            config: Arc::new(config),
            clients: Clients::default(),
            contents: Contents::default(),
            stopping: watch::Sender::new(false),
        }
    }

    /// The gRPC service, to be added to a tonic server.
    pub fn service(&self) -> DiscoveryService {
        DiscoveryService(self.clone())
    }

    /// A tonic server that notices clients that went without a word.
    pub fn transport() -> tonic::transport::Server {
        tonic::transport::Server::builder()
            .tcp_nodelay(true)
            .http2_keepalive_interval(Some(session::KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(session::KEEPALIVE_TIMEOUT))
    }

    /// The clients connected now.
    pub fn clients(&self) -> Vec<ClientStatus> {
        self.clients.list()
    }

    /// Ends all streams, and those that begin later, so that a graceful shutdown of the tonic server can finish.
    pub fn shutdown(&self) {
        self.stopping.send_replace(true);
    }

    /// Begins to serve a client; returns what it is sent.
    fn open(
        &self,
        requests: Streaming<DeltaDiscoveryRequest>,
        address: Option<SocketAddr>,
    ) -> Result<mpsc::Receiver<Result<Outgoing, Status>>, Status> {
        let limit = self.config.max_clients;
        let registration = self.clients.register(address, limit).ok_or_else(|| {
            Status::resource_exhausted(format!("{limit} clients are connected, the maximum"))
        })?;
        let (responses, received) = mpsc::channel(session::response_places());
        let snapshots = self.store.subscribe();
        let session =
            Session::new(Arc::clone(&self.config), snapshots, self.contents.clone(), responses, registration);
        let span = tracing::debug_span!("xds client", address = address.map(tracing::field::display));
        tokio::spawn(session.run(requests, self.stopping.subscribe()).instrument(span));
        Ok(received)
    }
}
