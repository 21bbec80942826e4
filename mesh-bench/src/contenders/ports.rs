//! How many ports there are for new connections.
//!
//! Whoever closes a connection first keeps its port in TIME_WAIT for a minute. At thousands of connections a second, the 28,000
//! ports that a machine has by default are used up in seconds: the cliff. Below it, every machine of every contender has
//! room enough. Past it, the client's pod has so few ports that it uses each of them again and again, as soon as the kernel
//! allows, and the nodes are as the contender has left them, but for the kernel's default range, which is made as
//! narrow as the client's: what would take a proxy on such a node some seconds to run into, it runs into at once.

use anyhow::{Context, Result};
use mesh_lab::{Lab, Machine};

use super::{CLIENT, Place};

const RANGE: &str = "ip_local_port_range";
/// Whether ports in TIME_WAIT may be used for new connections: 0 no, 1 yes, 2 (the default) on the loopback device only.
const REUSE: &str = "tcp_tw_reuse";
/// After how many milliseconds; 1000 by default. Not on kernels before 6.15.
const REUSE_DELAY: &str = "tcp_tw_reuse_delay";

const DEFAULT_RANGE: [&str; 2] = ["32768", "60999"];
const WIDE: &str = "1024 65535";
/// 500 ports: with [`SHORT_DELAY`], the client itself is good for 50,000 connections a second.
const NARROW: &str = "32768 33267";
const SHORT_DELAY: &str = "10";

/// The ports of a lab.
pub(super) struct Ports {
    /// The server's pod, which connects to nobody, is as it was.
    nodes: Vec<Node>,
    narrow: Option<bool>,
}

struct Node {
    name: &'static str,
    /// As the contender has left them.
    range: String,
    reuse: String,
    reuse_delay: Option<String>,
}

impl Ports {
    /// To be made when the contender has been started.
    pub(super) fn new(lab: &Lab, place: Place) -> Result<Self> {
        let mut names = vec![CLIENT.1, place.server_node()];
        names.dedup();
        let nodes = names.into_iter().map(|name| {
            let node = lab.node(name)?;
            let range = read(node, RANGE)?;
            let is_default = range.split_whitespace().eq(DEFAULT_RANGE);
            let range = if is_default { NARROW.to_owned() } else { range };
            let reuse_delay = has_delay(node)?.then(|| read(node, REUSE_DELAY)).transpose()?;
            Ok(Node { name, range, reuse: read(node, REUSE)?, reuse_delay })
        });
        Ok(Self { nodes: nodes.collect::<Result<_>>()?, narrow: None })
    }

    /// Room enough for everybody.
    pub(super) fn widen(&mut self, lab: &Lab) -> Result<()> {
        if self.narrow == Some(false) {
            return Ok(());
        }
        let nodes = self.nodes.iter().map(|node| lab.node(node.name));
        for machine in nodes.chain([lab.pod(CLIENT.0)]) {
            let machine = machine?;
            write(machine, RANGE, WIDE)?;
            reuse_at_once(machine)?;
        }
        self.narrow = Some(false);
        Ok(())
    }

    /// Too few for everybody who does nothing about it.
    pub(super) fn narrow(&mut self, lab: &Lab) -> Result<()> {
        if self.narrow == Some(true) {
            return Ok(());
        }
        for Node { name, range, reuse, reuse_delay } in &self.nodes {
            let node = lab.node(name)?;
            write(node, RANGE, range)?;
            write(node, REUSE, reuse)?;
            if let Some(delay) = reuse_delay {
                write(node, REUSE_DELAY, delay)?;
            }
        }
        let client = lab.pod(CLIENT.0)?;
        write(client, RANGE, NARROW)?;
        reuse_at_once(client)?;
        self.narrow = Some(true);
        Ok(())
    }
}

/// Has a machine use ports in TIME_WAIT again. Where the kernel does so after a second at the earliest, figures are lower, for
/// everybody.
fn reuse_at_once(machine: &Machine) -> Result<()> {
    write(machine, REUSE, "1")?;
    if has_delay(machine)? { write(machine, REUSE_DELAY, SHORT_DELAY) } else { Ok(()) }
}

fn has_delay(machine: &Machine) -> Result<bool> {
    Ok(machine.namespace().run(|| std::fs::exists(path(REUSE_DELAY)))??)
}

/// Below /proc/sys/net is what the calling thread's network namespace has.
fn path(name: &str) -> String {
    format!("/proc/sys/net/ipv4/{name}")
}

fn read(machine: &Machine, name: &str) -> Result<String> {
    let text = machine.namespace().run(|| std::fs::read_to_string(path(name)))?;
    Ok(text.with_context(|| format!("read {name} of {}", machine.name()))?.trim().to_owned())
}

fn write(machine: &Machine, name: &str, value: &str) -> Result<()> {
    let written = machine.namespace().run(|| std::fs::write(path(name), value))?;
    written.with_context(|| format!("set {name} of {} to {value}", machine.name()))
}
