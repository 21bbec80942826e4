//! How to reach the servers, and what to ask them for.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use prost::Name;
use tokio::net::TcpSocket;

use crate::proto::discovery::Node;

/// Called with every socket before it is connected, for example to set its mark.
pub type PrepareSocket = Arc<dyn Fn(&TcpSocket) -> std::io::Result<()> + Send + Sync>;

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
    /// How to verify `https` servers.
    pub tls: Option<TlsConfig>,
    /// File with a bearer token for `https` servers, read again at every connection.
    pub token_file: Option<PathBuf>,
    /// Time for name resolution, TCP and TLS together. 5 s by default.
    pub connect_timeout: Duration,
    /// Time for the first response, where one is owed: to wildcard subscriptions. 30 s by default.
    pub answer_timeout: Duration,
    /// Silence after which the server is asked whether it is still there. 30 s by default: istiod closes
    /// connections that ask more often than every 15 s.
    pub keepalive_interval: Duration,
    /// Time for the answer to that. 10 s by default.
    pub keepalive_timeout: Duration,
    /// Delay before servers are tried again; the delay is a random part of a bound that doubles from the first of
    /// these to the second. 100 ms and 10 s by default.
    pub backoff: (Duration, Duration),
    /// Largest response that is read. 200 MiB by default: istiod sends all resources of a type in one.
    pub max_response_bytes: usize,
    /// Applied to the sockets of the client.
    pub prepare_socket: Option<PrepareSocket>,
}

/// How a server is verified.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// PEM file of the root certificates, read again at every connection.
    pub roots: PathBuf,
    /// Name in the server's certificate, if it is not the host of the address.
    pub server_name: Option<String>,
}

/// What is wanted of one resource type.
#[derive(Debug, Clone)]
pub struct Subscription {
    pub(super) type_url: Arc<str>,
    pub(super) wildcard: bool,
    pub(super) held: HashMap<String, String>,
}

impl Subscription {
    /// All resources of the message type `M`.
    pub fn wildcard<M: Name>() -> Self {
        Self { type_url: M::type_url().into(), wildcard: true, held: HashMap::new() }
    }

    /// The resources of type `M` that are asked for through the handle.
    pub fn on_demand<M: Name>() -> Self {
        Self { type_url: M::type_url().into(), wildcard: false, held: HashMap::new() }
    }

    /// States which resources are at hand already, name to version (from a cache on disk): the server sends
    /// what differs, and says what is gone.
    pub fn holding(mut self, versions: HashMap<String, String>) -> Self {
        self.held = versions;
        self
    }
}

/// A configuration that cannot work.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No server.
    #[error("no discovery server is given; name at least one, such as http://mesh-control:15010")]
    NoServer,
    /// An unusable address.
    #[error("{0:?} is no address of a discovery server; write http://host:port or https://host:port")]
    BadAddress(String),
    /// No roots.
    #[error("{0:?} needs a root certificate to verify the server with; give one, or use http://")]
    NoRoots(String),
    /// A token would be readable on the network.
    #[error("a token must not be sent to {0:?} in plain text; use https:// or give no token")]
    TokenInTheClear(String),
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
            tls: None,
            token_file: None,
            connect_timeout: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(30),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            backoff: (Duration::from_millis(100), Duration::from_secs(10)),
            max_response_bytes: 200 * 1024 * 1024,
            prepare_socket: None,
        }
    }

    /// The servers' addresses, once all of the configuration has been checked.
    pub(super) fn validate(&self) -> Result<Vec<Uri>, ConfigError> {
        if self.servers.is_empty() {
            return Err(ConfigError::NoServer);
        }
        for (index, subscription) in self.subscriptions.iter().enumerate() {
            if self.subscriptions.iter().skip(index + 1).any(|other| other.type_url == subscription.type_url)
            {
                return Err(ConfigError::DuplicateType(Arc::clone(&subscription.type_url)));
            }
        }
        self.servers.iter().map(|server| self.address(server)).collect()
    }

    fn address(&self, server: &str) -> Result<Uri, ConfigError> {
        let bad = || ConfigError::BadAddress(server.to_owned());
        let uri: Uri = server.parse().map_err(|_| bad())?;
        if uri.host().is_none() || !matches!(uri.path(), "" | "/") {
            return Err(bad());
        }
        match uri.scheme_str() {
            Some("https") if self.tls.is_none() => Err(ConfigError::NoRoots(server.to_owned())),
            Some("https") => Ok(uri),
            Some("http") if self.token_file.is_some() => Err(ConfigError::TokenInTheClear(server.to_owned())),
            Some("http") => Ok(uri),
            _ => Err(bad()),
        }
    }
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ClientConfig")
            .field("servers", &self.servers)
            .field("node", &self.node.id)
            .field("tls", &self.tls)
            .field("token_file", &self.token_file)
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

    fn tls() -> Option<TlsConfig> {
        Some(TlsConfig { roots: "root.pem".into(), server_name: None })
    }

    #[test]
    fn addresses_are_checked() {
        for good in ["http://127.0.0.1:15010", "http://[::1]:15010/", "http://mesh-control:15010"] {
            assert!(config(good).validate().is_ok(), "{good}");
        }
        for bad in ["", "mesh-control", "mesh-control:15010", "ftp://a:1", "http://a:1/path", "http://a b"] {
            assert_eq!(config(bad).validate(), Err(ConfigError::BadAddress(bad.to_owned())));
        }
        assert_eq!(ClientConfig { servers: vec![], ..config("") }.validate(), Err(ConfigError::NoServer));
    }

    #[test]
    fn secrets_need_a_verified_server() {
        let https = config("https://a:1");
        assert_eq!(https.validate(), Err(ConfigError::NoRoots("https://a:1".to_owned())));
        let token_file = Some(PathBuf::from("token"));
        let verified = ClientConfig { tls: tls(), token_file: token_file.clone(), ..https };
        assert!(verified.validate().is_ok());
        let plain = ClientConfig { token_file, tls: tls(), ..config("http://a:1") };
        assert_eq!(plain.validate(), Err(ConfigError::TokenInTheClear("http://a:1".to_owned())));
    }

    #[test]
    fn a_type_is_subscribed_to_once() {
        let mut config = config("http://a:1");
        config.subscriptions.push(Subscription::on_demand::<Address>());
        assert_eq!(config.validate(), Err(ConfigError::DuplicateType(Address::type_url().into())));
    }
}
