//! A stand-in for the Kubernetes API server: real HTTP, real semantics of lists, watches and versions, no Kubernetes.
//!
//! Objects are changed through it (`apply`, `delete`) or by requests. Lists come in pages and are of one version; watches
//! go on from a version, with bookmarks, and are answered with 410 when that is too old; writes need the version that was
//! read. It can be away, forget the past, and learn of custom kinds while it runs. What it was asked is remembered, so
//! that a test can compare it with what a role allows, and it can be told to forbid it.
//!
//! Whom a request comes from is not looked at, and nothing is validated or defaulted.

#[allow(
    clippy::indexing_slicing,
    reason = "of a JSON value it gives null, but for a test that sends no object"
)]
mod http;
#[allow(
    clippy::indexing_slicing,
    reason = "of a JSON value it gives null, but for a test that sends no object"
)]
mod state;

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::watch;

use state::State;
pub use state::{Answered, ResourceType};

/// A running server. Its clones are the same server.
#[derive(Clone)]
pub struct ApiServer {
    shared: Arc<Shared>,
    /// None of one that listens nowhere.
    address: Option<SocketAddr>,
}

/// What the server answers instead of what it should.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Trouble {
    /// It answers as it should.
    #[default]
    None,
    /// This status to every write.
    RefusesWrites(u16),
    /// Nothing, to anything.
    Silent,
}

struct Shared {
    state: Mutex<State>,
    /// Counts what watches may want to know.
    changes: watch::Sender<u64>,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ApiServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl ApiServer {
    /// A server on a free port of loopback, on the runtime this is called in, with the kinds of Kubernetes.
    pub fn start() -> io::Result<Self> {
        Self::serve(TcpListener::bind(("127.0.0.1", 0))?)
    }

    /// The same on a socket that listens already.
    pub fn serve(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let server = Self { address: Some(address), ..Self::without_socket() };
        tokio::spawn(axum::serve(listener, server.router()).into_future());
        Ok(server)
    }

    /// A server that listens nowhere and is asked through its [`router`](Self::router): a test may stop the clock meanwhile.
    pub fn without_socket() -> Self {
        let state = Mutex::new(State::with_kubernetes_kinds());
        Self { shared: Arc::new(Shared { state, changes: watch::Sender::new(0) }), address: None }
    }

    /// What answers requests, without a socket.
    pub fn router(&self) -> axum::Router {
        http::router(self.clone())
    }

    /// Where it is, as a client's configuration has it; a name that leads nowhere where it listens nowhere.
    pub fn url(&self) -> String {
        self.address
            .map_or_else(|| "http://api-server.invalid".to_owned(), |address| format!("http://{address}"))
    }

    /// Serves another kind, as a CustomResourceDefinition does.
    pub fn install(&self, resource: ResourceType) {
        self.change(|state| state.install(resource));
    }

    /// Serves a kind no longer: its objects are gone, and so are its watches.
    pub fn uninstall(&self, group: &str, plural: &str) {
        self.change(|state| state.uninstall(group, plural));
    }

    /// Creates or replaces an object of a kind that is served.
    pub fn apply(&self, object: Value) {
        self.change(|state| state.apply(object).map(drop)).unwrap_or_else(|error| panic_in_test(&error));
    }

    /// Deletes an object, by kind, namespace (empty for kinds without) and name.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        self.change(|state| state.delete(kind, namespace, name))
            .unwrap_or_else(|error| panic_in_test(&error));
    }

    /// An object as it is now.
    pub fn object(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state().object(kind, namespace, name)
    }

    /// Tells all watches of the current version.
    pub fn bookmark(&self) {
        self.change(State::bookmark);
    }

    /// Forgets the past and ends all watches, so that going on is answered with 410 Gone.
    pub fn expire(&self) {
        self.change(State::expire);
    }

    /// Ends all watches and answers nothing but 503 until told to come back.
    pub fn set_away(&self, away: bool) {
        self.change(|state| state.set_away(away));
    }

    /// Answers so until told otherwise.
    pub fn set_trouble(&self, trouble: Trouble) {
        self.change(|state| state.trouble = trouble);
    }

    /// The next write is answered with this status and not done.
    pub fn fail_next_write(&self, status: u16) {
        self.change(|state| state.write_errors.push(status));
    }

    /// Answers such requests with 403, named as [`asked`](Self::asked) names them; a SelfSubjectAccessReview says the same.
    pub fn forbid(&self, what: &str) {
        self.change(|state| state.forbidden.insert(what.to_owned()));
    }

    /// No longer.
    pub fn permit(&self, what: &str) {
        self.change(|state| state.forbidden.remove(what));
    }

    /// Sends lists in pages of this many items, whatever the client would take.
    pub fn set_page(&self, items: usize) {
        self.change(|state| state.page = items);
    }

    /// What a TokenReview says of a token; of others it says that they are not authentic.
    pub fn set_review(&self, token: &str, status: Value) {
        self.change(|state| state.reviews.insert(token.to_owned(), status));
    }

    /// What was asked since the start, in order.
    pub fn answered(&self) -> Vec<Answered> {
        self.state().answered.clone()
    }

    /// Those of the answered requests that are to change something, also if they did not.
    pub fn writes(&self) -> Vec<Answered> {
        let writes = |request: &Answered| ["create", "update", "patch", "delete"].contains(&request.verb);
        self.answered().into_iter().filter(writes).collect()
    }

    /// Kinds of requests since the start, as `verb resource` or `verb resource.group`.
    pub fn asked(&self) -> BTreeSet<String> {
        self.state().answered.iter().map(Answered::right).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.shared.changes.send_modify(|changes| *changes += 1);
        result
    }
}

#[allow(clippy::panic, reason = "a test that names an object that cannot be is wrong itself")]
fn panic_in_test(error: &str) -> ! {
    panic!("{error}")
}
