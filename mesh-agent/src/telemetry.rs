//! What the agent says about its connections: live ones, metrics and the access log.

pub mod logging;

mod access_log;
mod connections;
mod counters;
pub(crate) mod exposition;
mod labels;
mod process;
mod record;
#[cfg(test)]
pub(crate) mod testing;
mod traffic;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry as MetricsRegistry;

pub use access_log::{AccessLogError, AccessLogFormat, AccessLogOptions, AccessLogTarget};
pub(crate) use process::resident_memory;
pub use record::{
    ConnectFailure, ConnectionEnd, ConnectionObserver, ConnectionRecord, ConnectionSecurity, Direction,
    Incident, Peer, Reporter, ResponseFlag, Traffic, Transport,
};
pub use traffic::SeriesLimits;

use access_log::AccessLog;
use connections::Registry;
use counters::Counters;
use exposition::{counter, gauge, gauges};
use labels::TrafficLabels;
use process::ProcessCollector;
use traffic::TrafficMetrics;

/// What telemetry is kept.
#[derive(Debug, Clone, Default)]
pub struct TelemetryOptions {
    /// How many label sets the metrics may have.
    pub series: SeriesLimits,
    /// The access log; `None` for none.
    pub access_log: Option<AccessLogOptions>,
}

/// Hears of every connection and tells whoever asks.
#[derive(Debug)]
pub struct Telemetry {
    connections: Registry,
    traffic: TrafficMetrics,
    counters: Counters,
    access_log: Option<AccessLog>,
}

impl Telemetry {
    /// Telemetry for connections of data-plane workers `0..workers`.
    pub fn new(workers: usize, options: &TelemetryOptions) -> Result<Arc<Self>, AccessLogError> {
        Ok(Arc::new(Self {
            connections: Registry::new(workers),
            traffic: TrafficMetrics::new(options.series),
            counters: Counters::default(),
            access_log: options.access_log.as_ref().map(AccessLog::start).transpose()?,
        }))
    }

    /// Puts the metrics of connections and of the process into `registry`.
    pub fn register(self: &Arc<Self>, registry: &mut MetricsRegistry) {
        registry.register_collector(Box::new(Arc::clone(self)));
        registry.register_collector(Box::new(ProcessCollector::new()));
    }

    /// The connections that are open now, oldest first.
    pub fn connections(&self) -> Vec<Arc<ConnectionRecord>> {
        let mut records = self.connections.list();
        records.sort_by_key(|record| (record.opened, record.id));
        records
    }

    /// How many connections of a direction are open now.
    pub fn open(&self, direction: Direction) -> usize {
        self.connections.count(direction)
    }

    /// Access log lines that could not be written.
    pub fn dropped_lines(&self) -> u64 {
        self.access_log.as_ref().map_or(0, AccessLog::dropped)
    }

    /// Blocks until the access log is written, or for `timeout`; says whether it was. For the end of the process.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.access_log.as_ref().is_none_or(|log| log.flush(timeout))
    }
}

impl ConnectionObserver for Telemetry {
    fn opened(&self, record: &Arc<ConnectionRecord>) {
        let series = self.traffic.enter(TrafficLabels::of(record));
        series.opened();
        self.connections.insert(record, series);
    }

    fn closed(&self, record: &Arc<ConnectionRecord>, end: &ConnectionEnd) {
        match self.connections.remove(record) {
            Some(series) => series.closed(end.flag),
            None => {
                let series = self.traffic.enter(TrafficLabels::of(record));
                series.add_bytes(record.traffic.sent(), record.traffic.received());
                series.failed(end.flag);
            }
        }
        if let Some(log) = &self.access_log {
            log.ended(record, end);
        }
    }

    fn incident(&self, incident: Incident) {
        self.counters.incident(incident);
    }
}

/// Bytes are counted in the connections' own records while they flow, and added to the metrics when these are
/// read or the connection ends: a scrape is exact, and the relay pays nothing for it.
impl Collector for Telemetry {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.connections.report_traffic();
        self.traffic.drop_idle();
        self.traffic.encode(&mut encoder)?;
        self.counters.encode(&mut encoder)?;
        let open = [Direction::Outbound, Direction::Inbound]
            .map(|direction| (direction.as_str(), u64::try_from(self.open(direction)).unwrap_or(u64::MAX)));
        gauges(&mut encoder, "mesh_agent_connections_open", "Connections open now", "direction", open)?;
        gauge(
            &mut encoder,
            "mesh_agent_metric_series",
            "Label sets of the istio_tcp metrics",
            u64::try_from(self.traffic.len()).unwrap_or(u64::MAX),
        )?;
        counter(
            &mut encoder,
            "mesh_agent_metric_series_overflow_connections",
            "Connections counted in the overflow series because there were too many label sets",
            self.traffic.overflowed(),
        )?;
        counter(
            &mut encoder,
            "mesh_agent_access_log_dropped_lines",
            "Access log lines that could not be written",
            self.dropped_lines(),
        )
    }
}
