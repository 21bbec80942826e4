//! The way of a connection, put together from the access logs of the agents that carried it.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use mesh_lab::Mesh;
use serde_json::Value;

/// How long a line may take from the end of its connection to the log.
const LINE: Duration = Duration::from_secs(5);

/// A place in the access logs of all nodes.
pub(super) struct Mark {
    lines: Vec<(String, usize)>,
}

/// One connection, as its agents saw it.
pub(super) struct Journey {
    /// The pod that opened it.
    pub(super) client: String,
    /// Where it wanted to go: a service's name, or an address.
    pub(super) wanted: String,
    /// The workload that answered, or its address where the mesh does not know it.
    pub(super) endpoint: String,
    /// The agents it passed.
    pub(super) agents: String,
    /// `IPv4` or `IPv6`.
    pub(super) family: &'static str,
    /// Bytes to and from the server.
    pub(super) bytes: String,
}

/// Remembers where the access logs end now.
pub(super) fn mark(mesh: &Mesh) -> Mark {
    let lines = mesh.nodes().into_iter().map(|node| {
        let count = lines(mesh, &node).len();
        (node, count)
    });
    Mark { lines: lines.collect() }
}

/// The lines of all nodes since `mark`.
pub(super) fn since(mesh: &Mesh, mark: &Mark) -> Vec<(String, Value)> {
    let all = mark.lines.iter().flat_map(|(node, count)| {
        lines(mesh, node).into_iter().skip(*count).map(move |line| (node.clone(), line))
    });
    all.collect()
}

/// The connection that was opened by `client` since `mark`, once it is over.
pub(super) fn wait_for(mesh: &Mesh, mark: &Mark, client: &str) -> Result<Journey> {
    let end = Instant::now() + LINE;
    loop {
        let lines = since(mesh, mark);
        let outbound = lines.iter().find(|(_, line)| {
            text(line, "direction") == "outbound" && text(line, "src.workload").starts_with(client)
        });
        if let Some((node, line)) = outbound {
            // The server's agent may be a moment later.
            let inbound = lines.iter().find(|(_, other)| {
                text(other, "direction") == "inbound" && text(other, "dst.addr") == text(line, "dst.addr")
            });
            if inbound.is_some() || Instant::now() + LINE * 9 / 10 > end {
                return Ok(Journey::new(node, line, inbound.map(|(node, _)| node.as_str())));
            }
        }
        if Instant::now() > end {
            bail!("no agent has logged a connection of {client}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Journey {
    fn new(node: &str, line: &Value, destination: Option<&str>) -> Self {
        let original = match text(line, "dst.original_addr") {
            "" => text(line, "dst.addr"),
            other => other,
        };
        let family = match original.parse::<SocketAddr>().map(|address| address.ip()) {
            Ok(IpAddr::V6(_)) => "IPv6",
            _ => "IPv4",
        };
        let or = |key: &str, other: &str| {
            let value = text(line, key);
            if value.is_empty() { other.to_owned() } else { value.to_owned() }
        };
        let agents = match destination {
            Some(other) if other != node => format!("{node} → {other}"),
            _ => node.to_owned(),
        };
        Self {
            client: text(line, "src.workload").to_owned(),
            wanted: or("dst.service", original),
            endpoint: or("dst.workload", text(line, "dst.addr")),
            agents,
            family,
            bytes: format!("{} / {}", line["bytes_sent"], line["bytes_recv"]),
        }
    }

    /// A row of a table with these columns: [`HEADER`].
    pub(super) fn row(self) -> [String; 6] {
        [self.client, self.wanted, self.endpoint, self.agents, self.family.to_owned(), self.bytes]
    }
}

/// The columns of [`Journey::row`].
pub(super) const HEADER: [&str; 6] = ["client", "wanted", "answered", "agents", "family", "bytes out / in"];

fn text<'a>(line: &'a Value, key: &str) -> &'a str {
    line.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn lines(mesh: &Mesh, node: &str) -> Vec<Value> {
    let text = fs::read_to_string(mesh.access_log(node)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
