//! Who is connected, for metrics, health and people.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::Serialize;

use crate::text::truncated;
use crate::time::unix_millis;

/// Refused resources remembered of each client and type; the counters go on.
const MAX_REJECTED: usize = 32;

/// A connected client.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ClientStatus {
    /// Node id it gave; empty before its first request.
    pub node: String,
    /// Where it connected from.
    pub address: Option<SocketAddr>,
    /// When it connected, milliseconds since 1970.
    pub connected_at: u64,
    /// What it subscribes to, by type URL.
    pub types: BTreeMap<Arc<str>, TypeStatus>,
}

/// A client's subscription to one type.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TypeStatus {
    /// Whether it asks for all resources.
    pub wildcard: bool,
    /// Names it asks for.
    pub names: usize,
    /// Version of the store up to which changes were sent.
    pub sent_version: u64,
    /// Version of the store up to which it answered.
    pub acknowledged_version: u64,
    /// Whether a response waits for its answer.
    pub in_flight: bool,
    /// Responses sent.
    pub responses: u64,
    /// Resources sent.
    pub resources: u64,
    /// Responses accepted.
    pub acks: u64,
    /// Responses refused, at least in part.
    pub nacks: u64,
    /// What it said in the last refusal.
    pub last_error: Option<String>,
    /// Resources it refused and was not sent another version of since, with the reason; a bounded number of them.
    pub rejected: BTreeMap<String, String>,
}

impl TypeStatus {
    pub(super) fn refused(&mut self, message: &str, resources: impl Iterator<Item = (String, String)>) {
        self.nacks += 1;
        self.last_error = Some(truncated(message).to_owned());
        for (name, reason) in resources {
            if self.rejected.len() < MAX_REJECTED || self.rejected.contains_key(&name) {
                self.rejected.insert(truncated(&name).to_owned(), truncated(&reason).to_owned());
            }
        }
    }
}

/// The connected clients.
#[derive(Debug, Clone, Default)]
pub(super) struct Clients(Arc<Mutex<Registry>>);

#[derive(Debug, Default)]
struct Registry {
    next: u64,
    connected: HashMap<u64, Arc<Mutex<ClientStatus>>>,
}

impl Clients {
    /// Registers a client, unless there are `limit` already.
    pub(super) fn register(&self, address: Option<SocketAddr>, limit: usize) -> Option<Registration> {
        let mut registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if registry.connected.len() >= limit {
            return None;
        }
        let status = Arc::new(Mutex::new(ClientStatus {
            address,
            connected_at: unix_millis(SystemTime::now()),
            ..ClientStatus::default()
        }));
        let id = registry.next;
        registry.next += 1;
        registry.connected.insert(id, Arc::clone(&status));
        Some(Registration { clients: self.clone(), id, status })
    }

    pub(super) fn list(&self) -> Vec<ClientStatus> {
        let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        registry
            .connected
            .values()
            .map(|s| s.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .collect()
    }
}

/// A client's place in the list, as long as it is connected.
#[derive(Debug)]
pub(super) struct Registration {
    clients: Clients,
    id: u64,
    status: Arc<Mutex<ClientStatus>>,
}

impl Registration {
    pub(super) fn update(&self, change: impl FnOnce(&mut ClientStatus)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn update_type(&self, type_url: &Arc<str>, change: impl FnOnce(&mut TypeStatus)) {
        self.update(|status| change(status.types.entry(Arc::clone(type_url)).or_default()));
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.clients.0.lock().unwrap_or_else(PoisonError::into_inner).connected.remove(&self.id);
    }
}
