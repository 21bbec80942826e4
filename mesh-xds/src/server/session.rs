//! One client's stream, from its first request to its end.
//!
//! Of each type at most one response is on its way until the client has answered it; what changes meanwhile
//! becomes one later response. A slow client therefore costs the server one bounded response per type, and
//! nobody waits for it.
//!
//! Where resources of one type name those of another ([`ServerConfig::order`]), the client gets a resource before it
//! is named, and loses it only when it no longer is: a type waits until those before it are told, and its removals
//! wait until those after it are. A response that is on its way counts as told, since the stream keeps the order.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::clients::Registration;
use super::content::{Content, Contents, ContentsOfType};
use super::observer::SentResponse;
use super::service::Outgoing;
use super::store::Snapshot;
use super::subscription::{Batch, Interest, Removals, Subscription};
use super::table::Table;
use super::{MAX_NAME_BYTES, MAX_TYPES, ServerConfig};
use crate::proto::discovery::{self, ControlPlane, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::proto::mesh::RejectedResource;
use crate::text::truncated;

pub(super) type Responses = mpsc::Sender<Result<Outgoing, Status>>;

pub(super) struct Session {
    config: Arc<ServerConfig>,
    snapshots: watch::Receiver<Snapshot>,
    contents: Contents,
    responses: Responses,
    registration: Registration,
    types: BTreeMap<Arc<str>, TypeState>,
    next_nonce: u64,
}

struct TypeState {
    subscription: Subscription,
    contents: ContentsOfType,
    in_flight: Option<InFlight>,
}

struct InFlight {
    nonce: String,
    content: Arc<Content>,
    overdue_at: Instant,
}

impl Session {
    pub(super) fn new(
        config: Arc<ServerConfig>,
        snapshots: watch::Receiver<Snapshot>,
        contents: Contents,
        responses: Responses,
        registration: Registration,
    ) -> Self {
        Self { config, snapshots, contents, responses, registration, types: BTreeMap::new(), next_nonce: 1 }
    }

    /// Serves the client until it leaves; an error is told to it.
    pub(super) async fn run(
        mut self,
        requests: impl Stream<Item = Result<DeltaDiscoveryRequest, Status>>,
        stopping: watch::Receiver<bool>,
    ) {
        let responses = self.responses.clone();
        if let Err(status) = self.serve(requests, stopping).await {
            tracing::info!(%status, "ended a client's stream");
            // There is one place more than responses can be in flight.
            let _ = responses.try_send(Err(status));
        }
    }

    async fn serve(
        &mut self,
        requests: impl Stream<Item = Result<DeltaDiscoveryRequest, Status>>,
        mut stopping: watch::Receiver<bool>,
    ) -> Result<(), Status> {
        let mut requests = pin!(requests);
        let mut flush_at: Option<Instant> = None;
        let mut quiet_until = Instant::now();
        loop {
            let overdue_at =
                self.types.values().filter_map(|t| t.in_flight.as_ref()).map(|f| f.overdue_at).min();
            tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.receive(request)?,
                    // The client has gone; how, is of no interest.
                    Some(Err(_)) | None => return Ok(()),
                },
                changed = self.snapshots.changed(), if flush_at.is_none() => {
                    changed.map_err(|_| Status::unavailable("the server is stopping"))?;
                    flush_at = Some(quiet_until.max(Instant::now()));
                }
                () = sleep_until(flush_at.unwrap_or_else(Instant::now)), if flush_at.is_some() => {
                    flush_at = None;
                    quiet_until = Instant::now() + self.config.coalesce;
                    self.snapshots.mark_unchanged();
                    self.send_all()?;
                }
                () = sleep_until(overdue_at.unwrap_or_else(Instant::now)), if overdue_at.is_some() => {
                    return Err(Status::deadline_exceeded(format!(
                        "no answer to a response within {:?}",
                        self.config.answer_timeout
                    )));
                }
                _ = stopping.wait_for(|stop| *stop) => {
                    return Err(Status::unavailable("the server is stopping"));
                }
                () = self.responses.closed() => return Ok(()),
            }
        }
    }

    fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        check(&request)?;
        if let Some(node) = request.node {
            self.registration.update(|status| status.node = truncated(&node.id).to_owned());
        }
        let type_url: Arc<str> = request.type_url.into();
        if !self.types.contains_key(&type_url) && self.types.len() >= MAX_TYPES {
            return Err(Status::resource_exhausted(format!(
                "more than {MAX_TYPES} resource types on one stream"
            )));
        }
        let snapshot = self.snapshots.borrow().clone();
        let empty = Table::default();
        let table = snapshot.table(&type_url).unwrap_or(&empty);
        let in_order = self.config.order.contains(&type_url);

        let state = self.types.entry(Arc::clone(&type_url)).or_insert_with(|| TypeState {
            subscription: Subscription::default(),
            contents: self.contents.of(&type_url),
            in_flight: None,
        });
        if let Some(answered) = state.in_flight.take_if(|sent| sent.nonce == request.response_nonce) {
            if let (Some(observer), Some(_)) = (&self.config.observer, &request.error_detail) {
                observer.refused(&type_url);
            }
            self.registration.update_type(&type_url, |status| {
                status.in_flight = false;
                status.acknowledged_version = answered.content.end;
                for name in &answered.content.names {
                    status.rejected.remove(name.as_ref());
                }
                match request.error_detail {
                    None => status.acks += 1,
                    Some(error) => refuse(status, error, &type_url),
                }
            });
        }
        state.subscription.express(
            Interest {
                subscribe: request.resource_names_subscribe,
                unsubscribe: request.resource_names_unsubscribe,
                held: request.initial_resource_versions,
            },
            table,
        );
        if state.subscription.name_count() > self.config.max_names {
            return Err(Status::resource_exhausted(format!(
                "more than {} names subscribed; use a wildcard subscription",
                self.config.max_names
            )));
        }
        if in_order {
            self.send_ordered(&snapshot)
        } else {
            self.send(&type_url, &snapshot, Removals::Announced)
        }
    }

    fn send_all(&mut self) -> Result<(), Status> {
        let snapshot = self.snapshots.borrow().clone();
        self.send_ordered(&snapshot)?;
        let others: Vec<Arc<str>> =
            self.types.keys().filter(|type_url| !self.config.order.contains(type_url)).cloned().collect();
        for type_url in others {
            self.send(&type_url, &snapshot, Removals::Announced)?;
        }
        Ok(())
    }

    /// Sends what there is to say of the types whose resources name each other.
    fn send_ordered(&mut self, snapshot: &Snapshot) -> Result<(), Status> {
        let config = Arc::clone(&self.config);
        let before = |place| config.order.iter().take(place);
        let after = |place| config.order.iter().skip(place + 1);
        for (place, type_url) in config.order.iter().enumerate() {
            if !self.is_behind(before(place), snapshot) {
                let named = self.is_behind(after(place), snapshot);
                self.send(type_url, snapshot, if named { Removals::Held } else { Removals::Announced })?;
            }
        }
        // What went last may have been what removals were waiting for.
        for (place, type_url) in config.order.iter().enumerate().rev() {
            if !self.is_behind(before(place), snapshot) && !self.is_behind(after(place), snapshot) {
                self.send(type_url, snapshot, Removals::Announced)?;
            }
        }
        Ok(())
    }

    /// Whether the client has not been told everything of one of the types.
    fn is_behind<'a>(&self, mut types: impl Iterator<Item = &'a Arc<str>>, snapshot: &Snapshot) -> bool {
        types.any(|type_url| {
            let state = self.types.get(type_url);
            let table = snapshot.table(type_url);
            state.zip(table).is_some_and(|(state, table)| state.subscription.is_behind(table))
        })
    }

    /// Sends what there is to say of a type, unless an earlier response is still on its way.
    fn send(&mut self, type_url: &Arc<str>, snapshot: &Snapshot, removals: Removals) -> Result<(), Status> {
        let empty = Table::default();
        let table = snapshot.table(type_url).unwrap_or(&empty);
        let Some(state) = self.types.get_mut(type_url) else { return Ok(()) };
        if state.in_flight.is_none() {
            let after = state.subscription.cursor();
            let batch = state
                .subscription
                .next_batch(table, self.config.response_bytes, removals, &state.contents)
                .map_err(|error| Status::aborted(error.to_string()))?;
            if let Some(batch) = batch {
                let nonce = self.next_nonce.to_string();
                self.next_nonce += 1;
                let content = Arc::clone(&batch.content);
                self.registration.update_type(type_url, |status| {
                    status.in_flight = true;
                    status.responses += 1;
                    status.resources += content.resources as u64;
                });
                if let Some(observer) = &self.config.observer {
                    observer.sent(&SentResponse {
                        type_url,
                        after,
                        upto: content.end,
                        resources: content.resources,
                        bytes: content.bytes,
                    });
                }
                let response = self.config.response(type_url, nonce.clone(), &batch)?;
                let overdue_at = Instant::now() + self.config.answer_timeout;
                state.in_flight = Some(InFlight { nonce, content, overdue_at });
                // Never full: it has a place for every type.
                let _ = self.responses.try_send(Ok(response));
            }
        }
        let subscription = &state.subscription;
        self.registration.update_type(type_url, |status| {
            status.wildcard = subscription.is_wildcard();
            status.names = subscription.name_count();
            status.sent_version = subscription.cursor();
            if !status.in_flight {
                status.acknowledged_version = status.sent_version;
            }
        });
        Ok(())
    }
}

/// Refuses requests without a type, and names that are no names but a way to fill the server's memory.
fn check(request: &DeltaDiscoveryRequest) -> Result<(), Status> {
    if request.type_url.is_empty() {
        return Err(Status::invalid_argument("a request has to name its type_url"));
    }
    let mut names = std::iter::once(&request.type_url).chain(&request.resource_names_subscribe);
    match names.find(|name| name.len() > MAX_NAME_BYTES) {
        Some(name) => Err(Status::invalid_argument(format!("too long for a name: {:?}...", truncated(name)))),
        None => Ok(()),
    }
}

/// Records what a client refused.
fn refuse(status: &mut super::TypeStatus, error: discovery::Status, type_url: &str) {
    tracing::warn!(type_url, error = truncated(&error.message), "a client refused resources");
    let rejected = error.details.iter().filter_map(|detail| detail.unpack::<RejectedResource>().ok());
    status.refused(&error.message, rejected.map(|rejected| (rejected.name, rejected.reason)));
}

impl ServerConfig {
    fn response(&self, type_url: &str, nonce: String, batch: &Batch) -> Result<Outgoing, Status> {
        let head = DeltaDiscoveryResponse {
            system_version_info: batch.content.end.to_string(),
            type_url: type_url.to_owned(),
            nonce,
            control_plane: Some(ControlPlane { identifier: self.identifier.clone() }),
            more: batch.more,
            ..DeltaDiscoveryResponse::default()
        };
        Outgoing::new(&head, batch.content.encoded.clone())
    }
}

/// One place for each response that may be in flight, and one for the status that ends the stream.
pub(super) const fn response_places() -> usize {
    MAX_TYPES + 1
}

/// How long a stream may wait between two keepalive pings before its peer is asked whether it is still there.
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long the peer has for its answer.
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
