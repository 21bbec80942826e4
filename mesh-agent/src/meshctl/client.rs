//! Asks the agent: HTTP/1 over its Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::admin::api::ErrorBody;

/// An agent that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error(
        "no agent answers on {socket}: {source}\n\
         see whether it runs:  systemctl status mesh-agent\n\
         \x20                     kubectl -n mesh-system get pods -o wide -l app.kubernetes.io/name=mesh-agent\n\
         look at the node:     meshctl check\n\
         another socket:       meshctl --socket PATH, or MESH_ADMIN_SOCKET"
    )]
    NotRunning { socket: String, source: io::Error },
    #[error("not allowed to use {socket}: only root and the agent's own user may; try sudo")]
    Permission { socket: String },
    #[error("the agent did not answer within {PATIENCE:?}")]
    TimedOut,
    #[error("the agent hung up: {0} (only root and the agent's own user may ask)")]
    HungUp(hyper::Error),
    #[error("the agent's answer makes no sense: {0}; is meshctl of another version?")]
    Nonsense(String),
    #[error("{0}")]
    Refused(String),
}

/// The agent behind a socket. A connection per question: they are few.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(socket: &Path) -> Self {
        Self { socket: socket.into() }
    }

    /// Asks for `path`.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// Sets what `path` stands for.
    pub(super) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Nonsense(error.to_string()))?;
        self.ask(Method::PUT, path, body.into()).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let answer = timeout(PATIENCE, self.exchange(method, path, body));
        let (status, body) = answer.await.map_err(|_| ClientError::TimedOut)??;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| ClientError::Nonsense(error.to_string()));
        }
        Err(match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(refusal) => ClientError::Refused(refusal.error),
            Err(_) => ClientError::Nonsense(format!("{status}: {}", String::from_utf8_lossy(&body))),
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| self.unreachable(source))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::HungUp)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "mesh-agent")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::Nonsense(error.to_string()))?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            // Hanging up ends the connection's own future.
            drop(sender);
            Ok::<_, hyper::Error>((status, body))
        };
        let (answer, _) = tokio::join!(exchange, connection);
        answer.map_err(ClientError::HungUp)
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        let socket = self.socket.display().to_string();
        match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Permission { socket },
            _ => ClientError::NotRunning { socket, source },
        }
    }
}

/// A value in a query string.
pub(super) fn query_value(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
