//! What a line says, in either format. The keys are those of ztunnel where it has them.

use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::UNIX_EPOCH;

use jiff::Timestamp;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::{AccessLogFormat, Ended};
use crate::telemetry::record::Peer;

/// One line, as pairs in the order they are written.
pub(super) struct Line {
    pairs: Vec<(&'static str, Value)>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    Count(u64),
    Milliseconds(f64),
}

impl Line {
    pub(super) fn of(ended: &Ended) -> Self {
        let Ended { record, end, duration } = ended;
        let mut line = Self { pairs: Vec::with_capacity(24) };
        line.text("time", timestamp(record.opened_at + *duration));
        line.text("direction", record.direction.as_str());
        line.peer(&SOURCE, &record.source);
        if let Some(destination) = &record.destination {
            line.peer(&DESTINATION, destination);
        }
        let leads_to = record.destination.as_ref().map(|peer| peer.address);
        if leads_to != Some(record.original_destination) {
            line.text("dst.original_addr", record.original_destination);
        }
        if let Some(service) = &record.service {
            line.text("dst.service", &service.id.hostname);
        }
        line.text("transport", record.transport.as_str());
        line.text("security", record.security.as_str());
        // As Envoy and ztunnel count: the proxy receives requests and sends responses.
        line.pairs.push(("bytes_sent", Value::Count(record.traffic.received())));
        line.pairs.push(("bytes_recv", Value::Count(record.traffic.sent())));
        line.pairs.push(("duration_ms", Value::Milliseconds(milliseconds(*duration))));
        line.pairs.push(("attempts", Value::Count(record.attempts.into())));
        line.text("response_flags", end.flag.as_str());
        if let Some(detail) = &end.detail {
            line.text("error", detail);
        }
        line
    }

    fn text(&mut self, key: &'static str, value: impl Display) {
        self.pairs.push((key, Value::Text(value.to_string())));
    }

    fn peer(&mut self, keys: &PeerKeys, peer: &Peer) {
        self.text(keys.address, canonical(peer.address));
        if let Some(workload) = &peer.workload {
            self.text(keys.workload, workload.name());
            self.text(keys.namespace, &workload.namespace);
        }
        // Where it is missing, nothing was proved.
        if let Some(identity) = &peer.identity {
            self.text(keys.identity, identity);
        }
    }

    pub(super) fn write(&self, format: AccessLogFormat, out: &mut impl Write) -> io::Result<()> {
        match format {
            AccessLogFormat::Json => serde_json::to_writer(&mut *out, self)?,
            AccessLogFormat::Text => self.write_text(out)?,
        }
        out.write_all(b"\n")
    }

    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        for (index, (key, value)) in self.pairs.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            match value {
                Value::Text(text) if is_plain(text) => write!(out, "{space}{key}={text}")?,
                other => write!(out, "{space}{key}={}", serde_json::to_string(other)?)?,
            }
        }
        Ok(())
    }
}

impl Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.pairs.len()))?;
        for (key, value) in &self.pairs {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// The keys of one end.
struct PeerKeys {
    address: &'static str,
    workload: &'static str,
    namespace: &'static str,
    identity: &'static str,
}

const SOURCE: PeerKeys = PeerKeys {
    address: "src.addr",
    workload: "src.workload",
    namespace: "src.namespace",
    identity: "src.identity",
};

const DESTINATION: PeerKeys = PeerKeys {
    address: "dst.addr",
    workload: "dst.workload",
    namespace: "dst.namespace",
    identity: "dst.identity",
};

/// Whether a value needs no quotes. Everything else is quoted and escaped, so that nobody's name or error can
/// forge a pair or a line.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/[]@%".contains(&byte))
}

/// IPv4 as IPv4, also where the socket was an IPv6 one.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// RFC 3339, UTC, with microseconds.
fn timestamp(time: std::time::SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or_default();
    let nanoseconds = i32::try_from(since.subsec_nanos()).unwrap_or_default();
    Timestamp::new(seconds, nanoseconds).map(|time| format!("{time:.6}")).unwrap_or_default()
}

/// Rounded to microseconds, so that lines stay short.
fn milliseconds(duration: std::time::Duration) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "exact up to 285 years")]
    let microseconds = duration.as_micros() as f64;
    microseconds / 1000.0
}
