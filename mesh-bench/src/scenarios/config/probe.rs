//! A client that opens one connection after the other and tells when they are decided otherwise.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_lab::Machine;

/// Time between connections: how exactly an effect is seen.
const INTERVAL: Duration = Duration::from_micros(500);
/// A connection that has no answer by then is one that is denied.
const PATIENCE: Duration = Duration::from_secs(1);

/// What becomes of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The server answers.
    Allowed,
    /// The connection is refused, or ended before an answer.
    Denied,
}

/// The first connection with another outcome than the one before.
struct Change {
    outcome: Outcome,
    at: Instant,
    /// How it ended, if it did not end well.
    error: Option<std::io::Error>,
    /// Of all connections.
    number: u64,
}

/// Runs until it is dropped.
pub(super) struct Probe {
    changes: Receiver<Change>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Probe {
    /// Connects from `machine` to an echo server.
    pub(super) fn start(machine: &Machine, to: SocketAddr) -> Result<Self> {
        let (changed, changes) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let work = move || {
            let mut last = None;
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (outcome, error) = connect(to);
                let change = Change { outcome, at: Instant::now(), error, number };
                if last != Some(outcome) && changed.send(change).is_err() {
                    return;
                }
                last = Some(outcome);
                thread::sleep(INTERVAL);
            }
        };
        let thread = machine.namespace().spawn("probe", work).context("the probe")?;
        Ok(Self { changes, stop, thread: Some(thread) })
    }

    /// When all connections until now were decided so, which they were first at `first`.
    ///
    /// # Errors
    /// When the last one was not.
    pub(super) fn settled(&self, outcome: Outcome, first: Instant) -> Result<Instant> {
        match self.changes.try_iter().last() {
            None => Ok(first),
            Some(change) if change.outcome == outcome => Ok(change.at),
            Some(Change { outcome: now, at, error, number }) => bail!(
                "connections that were {outcome:?} are {now:?} again, without a change: number {number}, {:?} after the \
                 first, {error:?}",
                at.duration_since(first)
            ),
        }
    }

    /// Waits until connections are decided so; returns when the first of them was.
    pub(super) fn wait_for(&self, outcome: Outcome, patience: Duration) -> Result<Instant> {
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let change = self.changes.recv_timeout(left);
            let change =
                change.with_context(|| format!("no connection was {outcome:?} within {patience:?}"))?;
            if change.outcome == outcome {
                return Ok(change.at);
            }
        }
    }
}

fn connect(to: SocketAddr) -> (Outcome, Option<std::io::Error>) {
    let exchange = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"?")?;
        let mut answer = [0];
        Ok(stream.read(&mut answer)? == 1)
    };
    match exchange() {
        Ok(true) => (Outcome::Allowed, None),
        Ok(false) => (Outcome::Denied, None),
        Err(error) => (Outcome::Denied, Some(error)),
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed.
            let _ = thread.join();
        }
    }
}
