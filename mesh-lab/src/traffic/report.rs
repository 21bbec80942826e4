//! What happened to the requests of a load.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::locked;
use crate::echo::Answer;

/// Latencies are kept in microseconds up to a minute, with three significant digits.
const LATENCY_MAX: u64 = 60_000_000;

/// The end of one request.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// What went wrong, in words that many requests share.
    pub(super) error: Option<String>,
    /// HTTP status.
    pub(super) status: Option<u16>,
    /// What the server said about itself, if it was an echo server.
    pub(super) answer: Option<Answer>,
    /// Length of the body.
    pub(super) bytes: u64,
    /// Whether a connection was opened for it.
    pub(super) connected: bool,
    /// Whether the server ended the connection in good order, without a byte of an answer.
    pub(super) ended_before_answer: bool,
    /// Whether it was sent a second time.
    pub(super) retried: bool,
}

impl Outcome {
    pub(super) fn error(kind: impl Into<String>) -> Self {
        Self { error: Some(kind.into()), ..Self::default() }
    }

    pub(super) fn failed(&self) -> bool {
        self.error.is_some()
    }
}

/// What happened to the requests of a load, or of a part of its time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where they went.
    pub target: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Requests that have ended.
    pub requests: u64,
    /// Those with a good answer.
    pub succeeded: u64,
    /// Those without, or with an HTTP status of 400 or more.
    pub failed: u64,
    /// Those that were sent again because the server had just ended the connection that was kept.
    #[serde(default)]
    pub retried: u64,
    /// Connections opened.
    pub connections: u64,
    /// Bytes of bodies received.
    pub bytes: u64,
    /// Times of the good answers.
    pub latency: Latency,
    /// Answers by pod.
    pub pods: BTreeMap<String, u64>,
    /// Answers by the source address that the server saw.
    pub sources: BTreeMap<String, u64>,
    /// Answers by address family.
    pub families: BTreeMap<String, u64>,
    /// Answers by protocol.
    pub protocols: BTreeMap<String, u64>,
    /// Answers by HTTP status.
    pub statuses: BTreeMap<u16, u64>,
    /// Failed requests by what went wrong.
    pub errors: BTreeMap<String, u64>,
}

/// Quantiles of latency, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "quantiles name themselves")]
pub struct Latency {
    pub mean: f64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

/// What happened lately, and until now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Seconds since the start.
    pub seconds: f64,
    /// Good answers since the start.
    pub succeeded: u64,
    /// Failed requests since the start.
    pub failed: u64,
    /// What happened since the last progress.
    pub lately: Report,
}

impl Report {
    /// Good answers per second.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "2^52 requests are more than a run has")]
    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.succeeded as f64 / self.seconds } else { 0.0 }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, requests, succeeded, failed, retried, connections, seconds, .. } = self;
        writeln!(out, "target     {target}")?;
        writeln!(
            out,
            "requests   {requests} in {seconds:.2} s ({:.0}/s), {connections} connections",
            self.rate()
        )?;
        writeln!(out, "succeeded  {succeeded}")?;
        writeln!(out, "failed     {failed}")?;
        if *retried > 0 {
            writeln!(out, "sent again {retried}, whose kept connection the server had just ended")?;
        }
        let Latency { p50, p90, p99, max, .. } = self.latency;
        let ms = |microseconds: u64| Duration::from_micros(microseconds).as_secs_f64() * 1000.0;
        writeln!(
            out,
            "latency    p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
            ms(p50),
            ms(p90),
            ms(p99),
            ms(max)
        )?;
        counts(out, "answered", &self.pods)?;
        counts(out, "from", &self.sources)?;
        counts(out, "family", &self.families)?;
        counts(out, "protocol", &self.protocols)?;
        counts(out, "status", &self.statuses)?;
        counts(out, "errors", &self.errors)
    }
}

fn counts<K: fmt::Display>(
    out: &mut fmt::Formatter<'_>,
    title: &str,
    counts: &BTreeMap<K, u64>,
) -> fmt::Result {
    for (position, (key, count)) in counts.iter().enumerate() {
        let title = if position == 0 { title } else { "" };
        writeln!(out, "{title:<10} {key}: {count}")?;
    }
    Ok(())
}

/// Counts what happens, for as many connections as there are: one short lock per request, off the data path of anything measured.
#[derive(Debug)]
pub(super) struct Tally {
    counts: Mutex<Both>,
}

#[derive(Debug)]
struct Both {
    total: Counts,
    lately: Counts,
}

/// A report being filled.
#[derive(Debug)]
struct Counts {
    report: Report,
    latency: Option<Histogram<u64>>,
    begin: Instant,
    end: Option<Instant>,
}

impl Counts {
    fn new(target: &str) -> Self {
        let report = Report { target: target.to_owned(), ..Report::default() };
        // The bounds are constants that the histogram accepts; without it there would only be no latencies.
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX, 3).ok();
        Self { report, latency, begin: Instant::now(), end: None }
    }

    fn record(&mut self, outcome: &Outcome, took: Duration) {
        let report = &mut self.report;
        report.requests += 1;
        report.retried += u64::from(outcome.retried);
        report.connections += u64::from(outcome.connected);
        report.bytes += outcome.bytes;
        if let Some(status) = outcome.status {
            *report.statuses.entry(status).or_default() += 1;
        }
        if let Some(error) = &outcome.error {
            report.failed += 1;
            count(&mut report.errors, error);
        } else {
            report.succeeded += 1;
            if let Some(latency) = &mut self.latency {
                latency.saturating_record(u64::try_from(took.as_micros()).unwrap_or(LATENCY_MAX).max(1));
            }
        }
        if let Some(answer) = &outcome.answer {
            count(&mut report.pods, &answer.pod);
            count(&mut report.sources, &answer.source.ip().to_string());
            count(&mut report.families, &answer.family);
            count(&mut report.protocols, &answer.protocol);
        }
    }

    fn finished(&self) -> Report {
        let mut report = self.report.clone();
        report.seconds = self.end.unwrap_or_else(Instant::now).duration_since(self.begin).as_secs_f64();
        if let Some(latency) = self.latency.as_ref().filter(|latency| !latency.is_empty()) {
            let at = |quantile| latency.value_at_quantile(quantile);
            report.latency = Latency {
                mean: latency.mean(),
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: latency.max(),
            };
        }
        report
    }
}

fn count(counts: &mut BTreeMap<String, u64>, key: &str) {
    // Looking first spares a copy of the key for all but the first.
    match counts.get_mut(key) {
        Some(count) => *count += 1,
        None => {
            counts.insert(key.to_owned(), 1);
        }
    }
}

impl Tally {
    pub(super) fn new(target: &str) -> Self {
        Self { counts: Mutex::new(Both { total: Counts::new(target), lately: Counts::new(target) }) }
    }

    pub(super) fn record(&self, outcome: Outcome, took: Duration) {
        let mut counts = locked(&self.counts);
        counts.total.record(&outcome, took);
        counts.lately.record(&outcome, took);
    }

    /// Stops the clock.
    pub(super) fn end(&self) {
        locked(&self.counts).total.end = Some(Instant::now());
    }

    pub(super) fn report(&self) -> Report {
        locked(&self.counts).total.finished()
    }

    pub(super) fn progress(&self) -> Progress {
        let mut counts = locked(&self.counts);
        let Report { seconds, succeeded, failed, target, .. } = counts.total.finished();
        let lately = std::mem::replace(&mut counts.lately, Counts::new(&target)).finished();
        Progress { seconds, succeeded, failed, lately }
    }
}
