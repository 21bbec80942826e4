//! Istio's TCP metrics: connections opened and closed, bytes sent and received, by who talked to whom.
//!
//! The number of label sets is bounded. What does not fit is counted in one overflow series, so that totals stay
//! right, and sets that nobody used for long make room. A connection finds its counters in an immutable map
//! behind an atomic pointer and holds them to its end; only a label set never seen before takes a lock.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use imbl::HashMap;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::labels::{SeriesLabels, TrafficLabels};
use super::record::ResponseFlag;

#[cfg(test)]
mod tests;

/// How often an overfull table may be searched for label sets that nobody uses any more.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// How much the metrics may remember.
#[derive(Debug, Clone, Copy)]
pub struct SeriesLimits {
    /// Label sets at most.
    pub count: usize,
    /// How long an unused label set is kept.
    pub idle: Duration,
}

impl Default for SeriesLimits {
    fn default() -> Self {
        Self { count: 10_000, idle: Duration::from_secs(3600) }
    }
}

type SeriesMap = HashMap<Arc<TrafficLabels>, Arc<Series>>;

/// All counters, by label set.
#[derive(Debug)]
pub(super) struct TrafficMetrics {
    limits: SeriesLimits,
    started: Instant,
    known: ArcSwap<SeriesMap>,
    /// Held by whoever replaces `known`; holds when it was swept last.
    writer: Mutex<Option<Instant>>,
    overflow: Arc<Series>,
}

/// `Series::users` of a series that has been dropped from the table.
const RETIRED: u32 = u32::MAX;

/// A counter per kind of end.
type ByFlag = [AtomicU64; ResponseFlag::ALL.len()];

/// The counters of one label set.
#[derive(Debug, Default)]
struct Series {
    opened: AtomicU64,
    closed: ByFlag,
    /// Those of the closed that never were open on both sides.
    failed: ByFlag,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    /// Connections that count here now, or [`RETIRED`].
    users: AtomicU32,
    /// When the last of them left, in milliseconds since the table was made.
    left: AtomicU64,
}

impl Series {
    /// Counts one user more; says no once the series is retired.
    fn enter(&self) -> bool {
        let more = |users| (users != RETIRED).then(|| users + 1);
        self.users.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Closes the series for good if nobody used it since `before`.
    fn retire(&self, before: u64) -> bool {
        self.left.load(Ordering::Relaxed) <= before
            && self.users.compare_exchange(0, RETIRED, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// The right of one connection to count in a series, which stays in the table meanwhile.
#[derive(Debug)]
pub(super) struct SeriesUse {
    series: Arc<Series>,
    started: Instant,
}

impl SeriesUse {
    pub(super) fn opened(&self) {
        self.series.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_bytes(&self, request: u64, response: u64) {
        self.series.request_bytes.fetch_add(request, Ordering::Relaxed);
        self.series.response_bytes.fetch_add(response, Ordering::Relaxed);
    }

    pub(super) fn closed(&self, flag: ResponseFlag) {
        increment(&self.series.closed, flag);
    }

    /// A connection was refused: it was never open, but opened and closed connections must balance.
    pub(super) fn failed(&self, flag: ResponseFlag) {
        self.opened();
        increment(&self.series.failed, flag);
        increment(&self.series.closed, flag);
    }
}

impl Drop for SeriesUse {
    fn drop(&mut self) {
        self.series.left.store(milliseconds(self.started.elapsed()), Ordering::Relaxed);
        self.series.users.fetch_sub(1, Ordering::Relaxed);
    }
}

impl TrafficMetrics {
    pub(super) fn new(limits: SeriesLimits) -> Self {
        Self {
            limits,
            started: Instant::now(),
            known: ArcSwap::default(),
            writer: Mutex::default(),
            overflow: Arc::default(),
        }
    }

    /// The counters for `labels`.
    pub(super) fn enter(&self, labels: TrafficLabels) -> SeriesUse {
        let known = self.known.load().get(&labels).filter(|series| series.enter()).map(Arc::clone);
        let series = known.unwrap_or_else(|| self.enter_new(labels));
        SeriesUse { series, started: self.started }
    }

    #[cold]
    fn enter_new(&self, labels: TrafficLabels) -> Arc<Series> {
        let mut swept = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing is retired but under this lock, so what the table has now can be entered.
        let mut table = self.known.load_full();
        if let Some(series) = table.get(&labels)
            && series.enter()
        {
            return Arc::clone(series);
        }
        if table.len() >= self.limits.count && swept.is_none_or(|last| last.elapsed() >= SWEEP_INTERVAL) {
            *swept = Some(Instant::now());
            table = self.without_idle(&table);
            self.known.store(Arc::clone(&table));
        }
        let series = if table.len() < self.limits.count {
            let series = Arc::new(Series::default());
            self.known.store(Arc::new(table.update(Arc::new(labels), Arc::clone(&series))));
            series
        } else {
            Arc::clone(&self.overflow)
        };
        series.enter();
        series
    }

    /// Drops the label sets that nobody used for long.
    pub(super) fn drop_idle(&self) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.known.store(self.without_idle(&self.known.load()));
    }

    fn without_idle(&self, table: &Arc<SeriesMap>) -> Arc<SeriesMap> {
        let Some(before) = self.started.elapsed().checked_sub(self.limits.idle).map(milliseconds) else {
            return Arc::clone(table);
        };
        let idle: Vec<_> =
            table.iter().filter(|(_, series)| series.retire(before)).map(|(key, _)| key).collect();
        if idle.is_empty() {
            return Arc::clone(table);
        }
        let mut rest = SeriesMap::clone(table);
        for labels in idle {
            rest.remove(labels);
        }
        Arc::new(rest)
    }

    /// How many label sets there are.
    pub(super) fn len(&self) -> usize {
        self.known.load().len()
    }

    /// How many connections were counted in the overflow series.
    pub(super) fn overflowed(&self) -> u64 {
        self.overflow.opened.load(Ordering::Relaxed)
    }

    /// Writes the metrics.
    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let table = self.known.load_full();
        let mut series: Vec<_> = table.iter().map(|(labels, series)| (Some(&**labels), &**series)).collect();
        if self.overflowed() > 0 {
            series.push((None, &self.overflow));
        }
        let mut family = |name, help, value: fn(&Series) -> &AtomicU64| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            let mut lines = series.iter();
            lines.try_for_each(|(labels, series)| {
                line(&mut family, *labels, ResponseFlag::None, value(series).load(Ordering::Relaxed))
            })
        };
        family("istio_tcp_connections_opened", "TCP connections opened", |series| &series.opened)?;
        // Istio's words are the proxy's: it receives requests and sends responses.
        family("istio_tcp_received_bytes", "Bytes from clients to servers", |series| &series.request_bytes)?;
        family("istio_tcp_sent_bytes", "Bytes from servers to clients", |series| &series.response_bytes)?;
        let mut by_flag = |name, help, counts: fn(&Series) -> &ByFlag| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, series) in &series {
                for (flag, count) in ResponseFlag::ALL.iter().zip(counts(series)) {
                    let count = count.load(Ordering::Relaxed);
                    if count > 0 {
                        line(&mut family, *labels, *flag, count)?;
                    }
                }
            }
            Ok(())
        };
        by_flag("istio_tcp_connections_closed", "TCP connections closed, by how they ended", |series| {
            &series.closed
        })?;
        by_flag(
            "istio_tcp_connections_failed",
            "TCP connections that never were open on both sides, by the reason",
            |series| &series.failed,
        )
    }
}

fn increment(counts: &ByFlag, flag: ResponseFlag) {
    if let Some(count) = counts.get(flag as usize) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn line(
    family: &mut MetricEncoder<'_>,
    labels: Option<&TrafficLabels>,
    flag: ResponseFlag,
    value: u64,
) -> fmt::Result {
    ConstCounter::new(value).encode(family.encode_family(&SeriesLabels { labels, flag })?)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
