//! What a tunnel and its streams know of each other.

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use h2::Reason;
use thiserror::Error;
use tokio::sync::Notify;

use crate::identity::{Identity, PeerError};

/// Why a tunnel ended. Its streams report it instead of what `h2` makes of it.
#[derive(Debug, Clone, Error)]
pub enum TunnelEnd {
    /// The other agent does not answer pings.
    #[error("the tunnel's peer does not answer any more")]
    Silent,
    /// The peer's certificate was revoked, or its root is not trusted any more.
    #[error("the tunnel's peer is not trusted any more: {0}")]
    Distrusted(PeerError),
    /// The peer does not accept us.
    #[error("{0}")]
    Refused(PeerError),
}

/// The state of one tunnel.
#[derive(Default)]
pub(super) struct TunnelState {
    /// Who is at the other end, proven.
    peer: Option<Arc<Identity>>,
    streams: Cell<usize>,
    end: OnceCell<TunnelEnd>,
    /// Told when the last stream ends and when the first one starts.
    busy: Notify,
}

impl TunnelState {
    /// Of a tunnel whose other end has proved to be `peer`.
    pub(super) fn of(peer: Arc<Identity>) -> Rc<Self> {
        Rc::new(Self { peer: Some(peer), ..Self::default() })
    }

    /// Counts a stream until the guard is dropped.
    pub(super) fn enter(self: &Rc<Self>) -> Guard {
        self.streams.set(self.streams.get() + 1);
        if self.streams.get() == 1 {
            self.busy.notify_one();
        }
        Guard(Rc::clone(self))
    }

    /// Streams that are open or being opened.
    pub(super) fn streams(&self) -> usize {
        self.streams.get()
    }

    /// Waits for the number of streams to become, or to cease to be, zero.
    pub(super) async fn busy_changed(&self) {
        self.busy.notified().await;
    }

    /// Notes why the tunnel is ended.
    pub(super) fn end(&self, end: TunnelEnd) {
        // The first reason is the one.
        let _ = self.end.set(end);
    }

    /// Why it ended, if that was noted.
    pub(super) fn ended(&self) -> Option<&TunnelEnd> {
        self.end.get()
    }

    /// What to tell its streams of why it ended, if that was noted.
    pub(super) fn end_error(&self) -> Option<io::Error> {
        let end = self.end.get()?;
        Some(io::Error::new(io::ErrorKind::ConnectionAborted, end.clone()))
    }

    /// What to tell about an error of one of its streams.
    pub(super) fn broken(&self, error: h2::Error) -> io::Error {
        if let Some(error) = self.end_error() {
            return error;
        }
        if error.is_io() {
            return error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
        }
        let kind = match error.reason() {
            Some(_) if error.is_reset() => io::ErrorKind::ConnectionReset,
            Some(Reason::NO_ERROR) => io::ErrorKind::BrokenPipe,
            _ => io::ErrorKind::ConnectionAborted,
        };
        io::Error::new(kind, StreamError(Arc::new(error)))
    }
}

/// An error of HTTP/2 in few words: `h2` names its own types.
#[derive(Debug, Clone)]
pub(super) struct StreamError(pub(super) Arc<h2::Error>);

impl fmt::Display for StreamError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.0.is_reset() {
            "stream reset"
        } else if self.0.is_go_away() {
            "tunnel closed"
        } else {
            return self.0.fmt(out);
        };
        let who = if self.0.is_remote() { "by the peer" } else { "here" };
        let reason = self.0.reason().unwrap_or(Reason::NO_ERROR);
        write!(out, "{what} {who}: {}", reason.description())
    }
}

impl std::error::Error for StreamError {}

/// One stream of a tunnel.
pub(super) struct Guard(Rc<TunnelState>);

impl Guard {
    /// Who is at the other end.
    pub(super) fn peer(&self) -> Option<&Arc<Identity>> {
        self.0.peer.as_ref()
    }

    /// What to tell about an error of the stream.
    pub(super) fn broken(&self, error: h2::Error) -> io::Error {
        self.0.broken(error)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        if self.0.streams.get() == 0 {
            self.0.busy.notify_one();
        }
    }
}
