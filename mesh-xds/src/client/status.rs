//! What the client is doing, for health checks and people.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

use super::handler::Rejection;
use crate::text::truncated;
use crate::time::unix_millis;

/// Refused resources remembered of each type; the counters go on.
const MAX_REJECTED: usize = 100;

/// State of the client. Times are milliseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Whether a stream to a server is open.
    pub connected: bool,
    /// The server connected to, or being tried.
    pub server: Option<String>,
    /// What the last server that answered calls itself, program and version.
    pub identifier: Option<String>,
    /// Since when it has been connected, or not.
    pub since: u64,
    /// When the last response came.
    pub last_response_at: Option<u64>,
    /// Streams opened so far.
    pub connections: u64,
    /// Streams that failed, and attempts to open one.
    pub failures: u64,
    /// The last failure.
    pub last_error: Option<Failure>,
    /// Subscriptions by type URL.
    pub types: BTreeMap<Arc<str>, TypeStatus>,
}

/// A stream that failed, or an attempt to open one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// When.
    pub at: u64,
    /// Which server.
    pub server: String,
    /// Why.
    pub message: String,
}

/// State of a subscription.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TypeStatus {
    /// Whether it is for all resources.
    pub wildcard: bool,
    /// Names subscribed to one by one.
    pub names: usize,
    /// Whether this stream brought the state up to date once: a complete first answer came.
    pub synced: bool,
    /// Version of the server's state, as it calls it.
    pub server_version: String,
    /// Resources held.
    pub resources: usize,
    /// Responses accepted.
    pub acks: u64,
    /// Responses refused, at least in part.
    pub nacks: u64,
    /// Resources of which the newest version was refused, with the reason; a bounded number of them.
    pub rejected: BTreeMap<String, String>,
}

impl Status {
    /// Whether every subscription for all resources was brought up to date since the stream was opened.
    pub fn is_synced(&self) -> bool {
        self.connected && self.types.values().all(|status| status.synced || !status.wildcard)
    }

    pub(super) fn trying(&mut self, server: String) {
        self.server = Some(server);
    }

    pub(super) fn opened(&mut self) {
        self.connected = true;
        self.since = unix_millis(SystemTime::now());
        self.connections += 1;
        self.types.values_mut().for_each(|status| status.synced = false);
    }

    pub(super) fn failed(&mut self, server: String, message: String) {
        let now = unix_millis(SystemTime::now());
        if std::mem::take(&mut self.connected) || self.failures == 0 {
            self.since = now;
        }
        self.failures += 1;
        self.last_error = Some(Failure { at: now, server, message });
    }
}

impl TypeStatus {
    /// Counts an answered response that was about `names`.
    pub(super) fn answered<'a>(&mut self, names: impl Iterator<Item = &'a str>, rejections: &[Rejection]) {
        for name in names {
            self.rejected.remove(name);
        }
        match rejections {
            [] => self.acks += 1,
            _ => self.nacks += 1,
        }
        for Rejection { name, reason } in rejections {
            if self.rejected.len() < MAX_REJECTED {
                self.rejected.insert(truncated(name).to_owned(), truncated(reason).to_owned());
            }
        }
    }
}
