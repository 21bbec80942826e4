//! Changes of all kinds, put together into batches.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tracing::info;

use super::Event;
use super::held::Held;
use crate::memory;
use crate::source::report::Logged;
use crate::source::{Batch, BatchSender, Report};

/// Batches are at least that far apart, so that changes made together are worked in together. A change after a while
/// without any is sent at once.
const COALESCE: Duration = Duration::from_millis(10);
/// A batch is sent when it has so many changes, however young it is.
const MAX_CHANGES: usize = 10_000;

/// What puts batches together.
pub(super) struct Collector {
    held: Held,
    batches: BatchSender,
    report: Arc<Report>,
    logged: Logged,
    /// When the last batch was sent.
    last: Option<Instant>,
    /// Whether a batch with everything was sent.
    begun: bool,
}

impl Collector {
    pub(super) fn new(batches: BatchSender) -> Self {
        let report = Arc::default();
        Self { held: Held::new(), batches, report, logged: Logged::default(), last: None, begun: false }
    }

    /// Runs until the feeds have ended or nobody takes batches any more.
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        while let Some(first) = events.recv().await {
            let noticed = std::time::Instant::now();
            self.held.take(first);
            let began = Instant::now();
            let due = self.last.map_or(began, |last| last + COALESCE);
            // What is there already goes along, even when it is due.
            while self.held.pending() < MAX_CHANGES && began.elapsed() < COALESCE {
                let next = match events.try_recv() {
                    Ok(event) => Some(event),
                    Err(_) => timeout_at(due, events.recv()).await.ok().flatten(),
                };
                match next {
                    Some(event) => self.held.take(event),
                    None => break,
                }
            }
            if !self.send(noticed).await {
                return;
            }
            if self.held.has_listed_many() {
                // It takes milliseconds; nobody waits for it.
                drop(tokio::task::spawn_blocking(memory::give_back));
            }
        }
    }

    /// Sends what is news; `false` if nobody listens.
    async fn send(&mut self, noticed: std::time::Instant) -> bool {
        let news = self.held.report();
        let is_news = news.is_some();
        if let Some(report) = news {
            self.logged.note(&report.problems);
            self.report = Arc::new(report);
        }
        let complete = self.held.is_complete();
        // Half of a mesh would be taken for all of it.
        let changes = if complete { self.held.changes() } else { Vec::new() };
        if changes.is_empty() && !is_news {
            return !self.batches.is_closed();
        }
        if complete && !self.begun {
            self.begun = true;
            info!(
                resources = changes.len(),
                problems = self.report.problems.len(),
                "the Kubernetes API was read"
            );
        }
        self.last = Some(Instant::now());
        let batch = Batch { changes, noticed, report: Arc::clone(&self.report) };
        self.batches.send(batch).await.is_ok()
    }
}
