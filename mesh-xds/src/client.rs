//! A delta discovery client.
//!
//! [`Client::run`] keeps one stream to one of the servers, hands what comes to a [`Handler`] and answers the
//! server: accepted, or which resources were refused and why. What it holds, and at which versions, outlives a
//! stream, so that the next one, to the same server or another, brings only the differences.
//!
//! ```no_run
//! # use mesh_xds::client::*;
//! # use mesh_xds::proto::{discovery::Node, workload::Address};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Node::new("ztunnel~10.0.0.1~agent.mesh-system~mesh-system.svc.cluster.local", [("NODE_NAME", "n1")]);
//! let servers = vec!["http://127.0.0.1:15010".to_owned()];
//! let config = ClientConfig::new(servers, node, vec![Subscription::wildcard::<Address>()]);
//! let (client, handle) = Client::new(config, |update: &Update| {
//!     let mut refused = Vec::new();
//!     for (resource, address) in update.decode::<Address>(&mut refused) {
//!         println!("{} is now {address:?}", resource.name);
//!     }
//!     refused
//! })?;
//! tokio::spawn(client.run());
//! println!("{:?}", handle.status());
//! # Ok(()) }
//! ```

mod config;
mod handler;
mod session;
mod status;
mod types;
mod version;

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

pub use self::config::{ClientConfig, ConfigError, Subscription};
pub use self::handler::{Handler, Rejection, Update};
pub use self::status::{Failure, Status, TypeStatus};
pub use self::version::{Version, Versions};

use self::session::Session;
use self::types::{Names, Types};
use crate::backoff::Backoff;

/// A stream that lived this long and brought something was a good one: after it, waiting begins anew.
const HEALTHY_AFTER: Duration = Duration::from_secs(5);
/// Names that may be wanted of one type.
const MAX_NAMES: usize = 100_000;

/// The client.
pub struct Client<H> {
    config: ClientConfig,
    servers: Vec<Uri>,
    types: Types,
    handler: H,
    wanted: watch::Sender<Names>,
    status: watch::Sender<Status>,
}

impl<H: Handler> Client<H> {
    /// A client that does nothing yet, and a handle to it.
    pub fn new(config: ClientConfig, handler: H) -> Result<(Self, ClientHandle), ConfigError> {
        let servers = config.validate()?;
        let types = Types::new(config.subscriptions.clone());
        let mut status = Status::default();
        let mut names = Names::new();
        for (type_url, state) in types.iter() {
            let of_type = TypeStatus {
                wildcard: state.is_wildcard(),
                resources: state.held_count(),
                ..TypeStatus::default()
            };
            status.types.insert(Arc::clone(type_url), of_type);
            names.insert(Arc::clone(type_url), imbl::OrdSet::new());
        }
        let (wanted, status) = (watch::Sender::new(names), watch::Sender::new(status));
        let handle = ClientHandle { wanted: wanted.clone(), status: status.subscribe() };
        Ok((Self { config, servers, types, handler, wanted, status }, handle))
    }

    /// Keeps a stream open, for ever: drop the future to end it.
    pub async fn run(mut self) {
        let mut wanted = self.wanted.subscribe();
        let mut backoff = Backoff::new(self.config.backoff, fastrand::Rng::new());
        let mut failures_in_a_row: usize = 0;
        for server in self.servers.iter().cycle() {
            self.status.send_modify(|status| status.trying(server.to_string()));
            let began = Instant::now();
            let mut session = Session {
                config: &self.config,
                types: &mut self.types,
                handler: &mut self.handler,
                wanted: &mut wanted,
                status: &self.status,
                responses: 0,
            };
            let Err(error) = session.run(server).await;
            tracing::warn!(%server, %error, "no stream to the discovery server; the last good state stays");
            self.status.send_modify(|status| status.failed(server.to_string(), error.to_string()));

            if session_was_healthy(&session, began) {
                backoff.reset();
                failures_in_a_row = 0;
            }
            failures_in_a_row += 1;
            // Another server may well be there: only a round that found none is worth a long wait.
            let round_failed = failures_in_a_row.is_multiple_of(self.servers.len());
            sleep(if round_failed { backoff.delay() } else { backoff.pause() }).await;
        }
    }
}

fn session_was_healthy<H>(session: &Session<'_, H>, began: Instant) -> bool {
    session.responses > 0 && began.elapsed() >= HEALTHY_AFTER
}

/// Steers and observes a running client. Clones are handles to the same client.
#[derive(Debug, Clone)]
pub struct ClientHandle {
    wanted: watch::Sender<Names>,
    status: watch::Receiver<Status>,
}

/// A subscription that is not possible.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// The client was not made for this type.
    #[error("the client has no subscription of type {0:?}")]
    UnknownType(String),
    /// Too many names.
    #[error("more than {MAX_NAMES} names of type {0:?} are wanted; use a wildcard subscription")]
    TooMany(String),
}

impl ClientHandle {
    /// Asks for resources by name; also again for one that is asked for already, which does nothing.
    pub fn subscribe(
        &self,
        type_url: &str,
        names: impl IntoIterator<Item = String>,
    ) -> Result<(), SubscribeError> {
        self.change(type_url, |wanted| wanted.extend(names))
    }

    /// Asks for resources by name no longer; the handler is told to drop them.
    pub fn unsubscribe<'a>(
        &self,
        type_url: &str,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), SubscribeError> {
        self.change(type_url, |wanted| {
            for name in names {
                wanted.remove(name);
            }
        })
    }

    /// The state of the client.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Waits until the state is as described.
    pub async fn wait_for(&self, condition: impl FnMut(&Status) -> bool) {
        // An error means that the client was dropped: what is waited for does not come.
        if self.status.clone().wait_for(condition).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn change(
        &self,
        type_url: &str,
        change: impl FnOnce(&mut imbl::OrdSet<String>),
    ) -> Result<(), SubscribeError> {
        let mut result = Ok(());
        self.wanted.send_if_modified(|wanted| {
            let Some(present) = wanted.get_mut(type_url) else {
                result = Err(SubscribeError::UnknownType(type_url.to_owned()));
                return false;
            };
            let mut changed = present.clone();
            change(&mut changed);
            if changed.len() > MAX_NAMES {
                result = Err(SubscribeError::TooMany(type_url.to_owned()));
                return false;
            }
            *present = changed;
            true
        });
        result
    }
}
