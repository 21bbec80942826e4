//! One stream, from the first request to its end.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use http::Uri;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use super::config::ClientConfig;
use super::handler::{Handler, Rejection};
use super::status::Status;
use super::types::{Names, Received, Types};
use crate::proto::discovery::DeltaDiscoveryRequest;
use crate::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::text::truncated;
use crate::time::unix_millis;
use crate::transport::{ConnectError, describe};

/// Requests that wait to be sent, besides those that begin the stream.
const WAITING_REQUESTS: usize = 16;

/// Why a stream ended, or was not opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{}", describe(.0))]
    Status(Box<tonic::Status>),
    #[error("the server did not answer within {0:?}")]
    NoAnswer(Duration),
    #[error("the server ended the stream")]
    Ended,
}

impl From<tonic::Status> for SessionError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

pub(super) struct Session<'a, H> {
    pub(super) config: &'a ClientConfig,
    pub(super) types: &'a mut Types,
    pub(super) handler: &'a mut H,
    pub(super) wanted: &'a mut watch::Receiver<Names>,
    pub(super) status: &'a watch::Sender<Status>,
    /// Responses received.
    pub(super) responses: u64,
}

impl<H: Handler> Session<'_, H> {
    /// Opens a stream to `server` and serves it until it fails.
    pub(super) async fn run(&mut self, server: &Uri) -> Result<Infallible, SessionError> {
        let channel = self.config.transport.connect(server).await?;
        let token = self.config.transport.bearer_token().await?;

        let wanted = self.wanted.borrow_and_update().clone();
        // The first requests name what is wanted; nothing else has to be said.
        self.types.want(&wanted, self.handler);
        let first_requests = self.types.first_requests(&self.config.node);
        let (requests, outgoing) = mpsc::channel(first_requests.len() + WAITING_REQUESTS);
        for request in first_requests {
            send(&requests, request).await?;
        }
        let mut request = Request::new(ReceiverStream::new(outgoing));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", token);
        }

        let answer_by = Instant::now() + self.config.answer_timeout;
        let no_answer = || SessionError::NoAnswer(self.config.answer_timeout);
        let mut client = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(self.config.max_response_bytes)
            .max_encoding_message_size(usize::MAX);
        // Servers in Go send their headers with the first response.
        let opened = timeout_at(answer_by, client.delta_aggregated_resources(request)).await;
        let mut responses = opened.map_err(|_| no_answer())??.into_inner();
        tracing::info!(%server, "connected to the discovery server");
        self.status.send_modify(Status::opened);
        self.handler.stream_opened();

        let answer_owed = self.types.iter().any(|(_, state)| state.is_wildcard());
        loop {
            tokio::select! {
                response = responses.message() => {
                    let response = response?.ok_or(SessionError::Ended)?;
                    let version = response.system_version_info.clone();
                    let identifier = response.control_plane.as_ref().map(|server| server.identifier.clone());
                    let received = self.types.receive(response, self.handler);
                    self.responses += 1;
                    self.record(&received, version, identifier);
                    send(&requests, received.answer).await?;
                }
                // The client keeps a sender, so this does not end.
                Ok(()) = self.wanted.changed() => {
                    let wanted = self.wanted.borrow_and_update().clone();
                    for request in self.types.want(&wanted, self.handler) {
                        send(&requests, request).await?;
                    }
                    self.record_names();
                }
                () = sleep_until(answer_by), if answer_owed && self.responses == 0 => return Err(no_answer()),
            }
        }
    }

    fn record(&self, received: &Received, server_version: String, identifier: Option<String>) {
        let Received { update, rejections, .. } = received;
        if let Some(Rejection { name, reason }) = rejections.first() {
            tracing::warn!(
                type_url = %update.type_url,
                refused = rejections.len(),
                first = truncated(name),
                reason = truncated(reason),
                "refused resources; their last good version stays"
            );
        }
        self.status.send_modify(|status| {
            status.last_response_at = Some(unix_millis(SystemTime::now()));
            status.identifier = identifier.filter(|identifier| !identifier.is_empty());
            let Some(status) = status.types.get_mut(&update.type_url) else { return };
            let names = update.resources.iter().map(|resource| &resource.name).chain(&update.removed);
            status.answered(names.map(String::as_str), rejections);
            status.synced |= !update.more;
            status.server_version = server_version;
            status.resources = self.types.get(&update.type_url).map_or(0, |state| state.held_count());
        });
    }

    fn record_names(&self) {
        self.status.send_modify(|status| {
            for (type_url, state) in self.types.iter() {
                if let Some(status) = status.types.get_mut(type_url) {
                    status.names = state.name_count();
                    status.resources = state.held_count();
                }
            }
        });
    }
}

async fn send(
    requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    request: DeltaDiscoveryRequest,
) -> Result<(), SessionError> {
    requests.send(request).await.map_err(|_| SessionError::Ended)
}
