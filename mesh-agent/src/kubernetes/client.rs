//! The way to the API server.
//!
//! A watch is silent for as long as nothing changes, so a server that is gone without a word (its machine died, a
//! firewall forgot the connection) looks like one that has no news, for minutes. Meanwhile pods start outside the mesh. TCP's own
//! keep-alive finds out in half a minute.

use std::time::Duration;

use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

/// How long a connection may be silent before the other side is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Between two such questions; three without an answer end the connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_QUESTIONS: u32 = 3;
/// How long what was sent may stay unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Neither a pod's service account nor a kubeconfig.
    #[error("neither in a pod nor with a kubeconfig (KUBECONFIG, ~/.kube/config): {0}")]
    NoConfig(#[from] kube::config::InferConfigError),
    /// What they say cannot be used.
    #[error(transparent)]
    Unusable(#[from] kube::Error),
}

/// A client by the pod's service account, or by a kubeconfig. Does not connect yet.
///
/// # Errors
/// When there is neither, or its credentials cannot be used.
pub async fn infer() -> Result<Client, ClientError> {
    Ok(with(Config::infer().await?)?)
}

/// A client by `config`.
pub(crate) fn with(config: Config) -> kube::Result<Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_QUESTIONS));
    connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(HttpClient::builder(TokioExecutor::new()).build::<_, Body>(connector));
    Ok(Client::new(service, config.default_namespace))
}
