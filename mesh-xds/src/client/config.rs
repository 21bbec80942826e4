//! How to reach the servers, and what to ask them for.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use prost::Name;

use super::version::Versions;
use crate::proto::discovery::Node;
use crate::transport::{AddressError, Transport};

/// What a client needs to know.
#[derive(Clone)]
pub struct ClientConfig {
    /// Servers, `http://host:port` or `https://host:port`. They are tried in order; the one that works is kept
    /// until it fails.
    pub servers: Vec<String>,
    /// Who the client is.
    pub node: Node,
    /// What it wants.
    pub subscriptions: Vec<Subscription>,
    /// How they are reached.
    pub transport: Transport,
    /// Time for the first response, where one is owed: to wildcard subscriptions. 30 s by default.
    pub answer_timeout: Duration,
    /// Delay before servers are tried again; the delay is a random part of a bound that doubles from the first of
    /// these to the second. 100 ms and 10 s by default.
    pub backoff: (Duration, Duration),
    /// Largest response that is read. 200 MiB by default: istiod sends all resources of a type in one.
    pub max_response_bytes: usize,
}

/// What is wanted of one resource type.
#[derive(Debug, Clone)]
pub struct Subscription {
    pub(super) type_url: Arc<str>,
    pub(super) wildcard: bool,
    pub(super) held: Versions,
}

impl Subscription {
    /// All resources of the message type `M`.
    pub fn wildcard<M: Name>() -> Self {
        Self { type_url: M::type_url().into(), wildcard: true, held: Versions::new() }
    }

    /// The resources of type `M` that are asked for through the handle.
    pub fn on_demand<M: Name>() -> Self {
        Self { type_url: M::type_url().into(), wildcard: false, held: Versions::new() }
    }

    /// States which resources are at hand already, name to version (from a cache on disk): the server sends
    /// what differs, and says what is gone.
    pub fn holding(mut self, versions: Versions) -> Self {
        self.held = versions;
        self
    }
}

/// A configuration that cannot work.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Servers that cannot be used as they are given.
    #[error(transparent)]
    Server(#[from] AddressError),
    /// The same type twice.
    #[error("resource type {0} is subscribed to twice")]
    DuplicateType(Arc<str>),
}

impl ClientConfig {
    /// A configuration with default times and limits, without TLS.
    pub fn new(servers: Vec<String>, node: Node, subscriptions: Vec<Subscription>) -> Self {
        Self {
            servers,
            node,
            subscriptions,
            transport: Transport::default(),
            answer_timeout: Duration::from_secs(30),
            backoff: (Duration::from_millis(100), Duration::from_secs(10)),
            max_response_bytes: 200 * 1024 * 1024,
        }
    }

    /// The servers' addresses, once all of the configuration has been checked.
    pub(super) fn validate(&self) -> Result<Vec<Uri>, ConfigError> {
        for (index, subscription) in self.subscriptions.iter().enumerate() {
            if self.subscriptions.iter().skip(index + 1).any(|other| other.type_url == subscription.type_url)
            {
                return Err(ConfigError::DuplicateType(Arc::clone(&subscription.type_url)));
            }
        }
        Ok(self.transport.addresses(&self.servers)?)
    }
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ClientConfig")
            .field("servers", &self.servers)
            .field("node", &self.node.id)
            .field("transport", &self.transport)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::workload::Address;

    fn config(server: &str) -> ClientConfig {
        ClientConfig::new(vec![server.to_owned()], Node::default(), vec![Subscription::wildcard::<Address>()])
    }

    #[test]
    fn a_type_is_subscribed_to_once() {
        let mut config = config("http://a:1");
        config.subscriptions.push(Subscription::on_demand::<Address>());
        assert_eq!(config.validate(), Err(ConfigError::DuplicateType(Address::type_url().into())));
    }
}
