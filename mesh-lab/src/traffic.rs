//! A traffic generator that remembers who answered: requests over HTTP or TCP, counted by answering pod, source address and error.
//!
//! It understands the [`Answer`](crate::echo::Answer)s of the echo server; other servers are only counted and timed. With a rate,
//! latency counts from when a request was due, not from when it could be sent: a stalled server does not hide behind a stalled
//! client.

mod exchange;
mod report;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::background::Background;
use crate::machine::Machine;

pub use exchange::TargetError;
use exchange::{Client, Target};
pub use report::{Latency, Progress, Report};
use report::{Outcome, Tally};

/// Pause of a connection after a failed request, so that a refused connection is not a busy loop.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);
/// How often something waited for is looked at.
const POLL: Duration = Duration::from_millis(5);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// What to send, how fast, for how long. Without an end it goes on until it is stopped.
#[derive(Debug, Clone)]
pub struct Load {
    target: Target,
    connections: usize,
    rate: Option<f64>,
    requests: Option<u64>,
    duration: Option<Duration>,
    reuse: bool,
    timeout: Duration,
}

impl Load {
    /// GET requests to an `http://` URL.
    ///
    /// # Errors
    /// When it is not such a URL.
    pub fn http(url: &str) -> Result<Self, TargetError> {
        Ok(Self::new(Target::http(url)?))
    }

    /// The line `who` to a TCP server, at `host:port`.
    ///
    /// # Errors
    /// When there is no port.
    pub fn tcp(address: &str) -> Result<Self, TargetError> {
        Ok(Self::new(Target::tcp(address)?))
    }

    fn new(target: Target) -> Self {
        Self {
            target,
            connections: 1,
            rate: None,
            requests: None,
            duration: None,
            reuse: true,
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// Speaks HTTP/2 with prior knowledge instead of HTTP/1.1.
    #[must_use]
    pub fn http2(mut self) -> Self {
        self.target.prefer_http2();
        self
    }

    /// Adds a header to every HTTP request.
    ///
    /// # Errors
    /// When it is not a header.
    pub fn header(mut self, name: &str, value: &str) -> Result<Self, TargetError> {
        self.target.add_header(name, value)?;
        Ok(self)
    }

    /// How many connections at a time, one request at a time on each; 1 unless told otherwise.
    #[must_use]
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(1);
        self
    }

    /// How many requests a second over all connections; as many as possible unless told otherwise.
    #[must_use]
    pub fn rate(mut self, per_second: f64) -> Self {
        self.rate = Some(per_second).filter(|rate| rate.is_finite() && *rate > 0.0);
        self
    }

    /// Ends after so many requests.
    #[must_use]
    pub fn requests(mut self, requests: u64) -> Self {
        self.requests = Some(requests);
        self
    }

    /// Ends after this time.
    #[must_use]
    pub fn duration(mut self, duration: Duration) -> Self {
        self.duration = Some(duration);
        self
    }

    /// Opens a connection for every request.
    #[must_use]
    pub fn new_connection_per_request(mut self) -> Self {
        self.reuse = false;
        self
    }

    /// How long one request may take, its connection included; 5 seconds unless told otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs in the calling thread's namespace until its end or until stopped; requests under way are finished.
    pub async fn run(self, stop: CancellationToken) -> Report {
        let tally = Arc::new(Tally::new(&self.target.to_string()));
        self.run_into(&tally, stop).await;
        tally.report()
    }

    /// Asks one thing again and again, until there is a good answer or it is stopped.
    ///
    /// # Errors
    /// When there is none in time; with what the last one was.
    pub async fn wait_for_an_answer(
        self,
        stop: CancellationToken,
        patience: Duration,
    ) -> Result<(), NotReached> {
        let one = self.connections(1).requests(1);
        let end = Instant::now() + patience;
        while !stop.is_cancelled() {
            let report = one.clone().run(stop.clone()).await;
            if report.succeeded > 0 {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(NotReached { after: patience, report: Box::new(report) });
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// As [`Load::run`], with a word on progress at every interval, and one at the end.
    pub async fn run_with_progress(
        self,
        stop: CancellationToken,
        interval: Duration,
        mut say: impl FnMut(Progress),
    ) -> Report {
        let tally = Arc::new(Tally::new(&self.target.to_string()));
        let run = self.run_into(&tally, stop);
        tokio::pin!(run);
        let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = &mut run => break,
                _ = ticks.tick() => say(tally.progress()),
            }
        }
        say(tally.progress());
        tally.report()
    }

    async fn run_into(self, tally: &Arc<Tally>, stop: CancellationToken) {
        let stop = stop.child_token();
        let schedule = Arc::new(Schedule {
            begin: Instant::now(),
            taken: AtomicU64::new(0),
            rate: self.rate,
            requests: self.requests,
        });
        let mut workers = JoinSet::new();
        for _ in 0..self.connections {
            workers.spawn(work(self.clone(), Arc::clone(tally), Arc::clone(&schedule), stop.clone()));
        }
        let end = async {
            match self.duration {
                Some(duration) => sleep(duration).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = end => stop.cancel(),
            () = async { while workers.join_next().await.is_some() {} } => {}
        }
        while workers.join_next().await.is_some() {}
        tally.end();
    }
}

/// Deals out the requests of a load to its connections.
#[derive(Debug)]
struct Schedule {
    begin: Instant,
    taken: AtomicU64,
    rate: Option<f64>,
    requests: Option<u64>,
}

impl Schedule {
    /// When the next request is due; `None` when all have been dealt.
    fn next(&self) -> Option<Instant> {
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        if self.requests.is_some_and(|requests| number >= requests) {
            return None;
        }
        match self.rate {
            #[allow(clippy::cast_precision_loss, reason = "2^52 requests are more than a run has")]
            Some(rate) => Some(self.begin + Duration::from_secs_f64(number as f64 / rate)),
            None => Some(Instant::now()),
        }
    }
}

/// One connection's part of a load.
async fn work(load: Load, tally: Arc<Tally>, schedule: Arc<Schedule>, stop: CancellationToken) {
    let mut client = Client::new(load.target);
    while let Some(due) = schedule.next() {
        // A timer fires up to a millisecond late. That is not the server's fault: when the connection was free in time, the
        // request begins when it is sent, and only otherwise when it was due.
        let mut begin = due;
        if due > Instant::now() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep_until(due) => begin = Instant::now(),
            }
        } else if stop.is_cancelled() {
            return;
        }
        let outcome = match timeout(load.timeout, client.exchange(load.reuse)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                client.disconnect();
                Outcome::error("timeout")
            }
        };
        let failed = outcome.failed();
        tally.record(outcome, begin.elapsed());
        if failed {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(FAILURE_PAUSE) => {}
            }
        }
    }
}

/// A load that runs in a machine while a test does something else. Dropping it stops it.
#[derive(Debug)]
pub struct Traffic {
    tally: Arc<Tally>,
    run: Background<()>,
}

/// What was waited for has not happened in time.
#[derive(Debug, thiserror::Error)]
#[error("traffic did not get there within {after:?}; until then:\n{report}")]
pub struct NotReached {
    after: Duration,
    report: Box<Report>,
}

impl Traffic {
    /// What has happened until now.
    #[must_use]
    pub fn report(&self) -> Report {
        self.tally.report()
    }

    /// What has happened since this was last asked, and the totals.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.tally.progress()
    }

    /// Waits until the traffic has got somewhere.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_for(
        &self,
        within: Duration,
        reached: impl Fn(&Report) -> bool,
    ) -> Result<Report, NotReached> {
        let deadline = std::time::Instant::now() + within;
        loop {
            let report = self.report();
            if reached(&report) {
                return Ok(report);
            }
            if std::time::Instant::now() > deadline {
                return Err(NotReached { after: within, report: Box::new(report) });
            }
            thread::sleep(POLL);
        }
    }

    /// Ends it and tells what happened.
    #[must_use]
    pub fn stop(self) -> Report {
        self.run.stop();
        self.tally.report()
    }

    /// Waits for its own end and tells what happened.
    #[must_use]
    pub fn finish(self) -> Report {
        self.run.join();
        self.tally.report()
    }
}

impl Machine {
    /// Starts a load from here.
    ///
    /// # Errors
    /// When no thread can work in the machine's namespace.
    pub fn traffic(&self, load: Load) -> io::Result<Traffic> {
        let tally = Arc::new(Tally::new(&load.target.to_string()));
        let into = Arc::clone(&tally);
        let run = Background::start(self.namespace(), "traffic", async move |stop| {
            load.run_into(&into, stop).await
        })?;
        Ok(Traffic { tally, run })
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
