//! The node's sysctls that the agent's connections from the node's own addresses depend on. What its others need is set in the
//! network namespace they are in ([`super::namespace`]).
//!
//! | sysctl | value | why |
//! |---|---|---|
//! | `net.ipv4.tcp_tw_reuse` | 1 | ports of closed connections must not stay blocked for a minute. Rules IPv6 too. |
//! | `net.ipv4.ip_local_port_range` | 16384-65535 | more connections to one server. Above the ports that node services listen on (kubelet 10250, etcd 2379, ...): a connection on such a port would keep the service from starting. Rules IPv6 too. |
//! | `net.ipv4.ip_local_reserved_ports` | + 30000-32767 | with the wider range, keep out of Kubernetes' NodePorts, which are in the default range's place below 32768. |
//!
//! `ip_forward` is the CNI's business and only checked ([`super::kernel`]).

use std::fmt;
use std::fs;
use std::path::PathBuf;

use tracing::{info, warn};

use super::HostError;
use super::journal::{ChangedSysctl, Journal};

#[cfg(test)]
mod tests;

const REUSE_TIME_WAIT: &str = "net.ipv4.tcp_tw_reuse";
const PORT_RANGE: &str = "net.ipv4.ip_local_port_range";
const RESERVED_PORTS: &str = "net.ipv4.ip_local_reserved_ports";

/// A range of ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl PortRange {
    /// The widest range that stays above the ports node services listen on.
    pub const WIDE: Self = Self { first: 16_384, last: 65_535 };

    /// Kubernetes' default NodePorts.
    const NODE_PORTS: Self = Self { first: 30_000, last: 32_767 };

    /// `first last`, `first-last` or one port.
    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once(['-', ' ']).unwrap_or((text, text));
        Some(Self { first: first.parse().ok()?, last: last.parse().ok()? })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(out, "{}", self.first);
        }
        write!(out, "{}-{}", self.first, self.last)
    }
}

/// Access to the sysctls of the current network namespace.
#[derive(Debug, Clone)]
pub struct Sysctls {
    root: PathBuf,
}

impl Sysctls {
    /// Sysctls under `root`, which is `/proc/sys` or another mount of it.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The current value of a sysctl, words separated by one blank.
    pub fn read(&self, name: &str) -> Result<String, HostError> {
        let path = self.path(name);
        fs::read_to_string(&path)
            .map(|value| normalise(&value))
            .map_err(HostError::file("reading sysctl", &path))
    }

    /// What the sysctls should be, given what they are: ranges only ever grow.
    pub fn wanted(&self, ports: Option<PortRange>) -> Result<Vec<(&'static str, String)>, HostError> {
        let mut wanted = vec![(REUSE_TIME_WAIT, "1".into())];
        if let Some(ports) = ports {
            let value = self.read(PORT_RANGE)?;
            let current = PortRange::parse(&value).ok_or(HostError::SysctlValue {
                name: PORT_RANGE,
                value,
                expected: "range of ports",
            })?;
            // Reserved before the range grows, so that no NodePort is taken meanwhile.
            // A range that held NodePorts before was somebody's choice.
            if current.first > PortRange::NODE_PORTS.last {
                wanted.push((RESERVED_PORTS, self.reserved_ports_with(PortRange::NODE_PORTS)?));
            }
            let first = current.first.min(ports.first);
            let last = current.last.max(ports.last);
            wanted.push((PORT_RANGE, format!("{first} {last}")));
        }
        Ok(wanted)
    }

    /// Sets what is not right yet, each only after its value is in the journal.
    pub fn apply(&self, wanted: &[(&'static str, String)], journal: &mut Journal) -> Result<(), HostError> {
        for (name, ours) in wanted {
            let current = self.read(name)?;
            if current == *ours {
                continue;
            }
            // After a crash the journal knows the value before ours, unless somebody changed it since.
            let original = match journal.sysctls().get(*name) {
                Some(known) if known.ours == current => known.original.clone(),
                _ => current.clone(),
            };
            journal.record_sysctl(name, ChangedSysctl { original, ours: ours.clone() })?;
            self.write(name, ours)?;
            info!(name, from = current, to = ours, "sysctl changed");
        }
        Ok(())
    }

    /// Puts back what the journal names, except what somebody else has changed since. Returns the names of those
    /// that were put back.
    pub fn restore(&self, journal: &mut Journal) -> Result<Vec<String>, HostError> {
        let mut restored = Vec::new();
        // In the order of names, so that NodePorts are reserved for as long as the range is wide.
        for (name, change) in journal.sysctls().clone() {
            let current = self.read(&name)?;
            if current == change.ours {
                self.write(&name, &change.original)?;
                restored.push(name.clone());
            } else if current != change.original {
                warn!(name, current, ours = change.ours, "sysctl was changed by somebody else: left alone");
            }
            journal.forget_sysctl(&name)?;
        }
        Ok(restored)
    }

    /// The reserved ports and `range`, in the form in which the kernel will show them.
    fn reserved_ports_with(&self, range: PortRange) -> Result<String, HostError> {
        let value = self.read(RESERVED_PORTS)?;
        let reserved: Option<Vec<PortRange>> =
            value.split(',').filter(|part| !part.is_empty()).map(PortRange::parse).collect();
        let mut reserved = reserved.ok_or(HostError::SysctlValue {
            name: RESERVED_PORTS,
            value,
            expected: "list of ports and ranges",
        })?;
        reserved.push(range);
        Ok(merge(reserved))
    }

    pub(super) fn write(&self, name: &str, value: &str) -> Result<(), HostError> {
        let path = self.path(name);
        // The line end makes an empty value a value.
        fs::write(&path, format!("{value}\n")).map_err(HostError::file("writing sysctl", &path))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name.replace('.', "/"))
    }
}

fn normalise(value: &str) -> String {
    value.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The union of `ranges` as `a,b-c`.
fn merge(mut ranges: Vec<PortRange>) -> String {
    ranges.sort_by_key(|range| range.first);
    let mut merged: Vec<PortRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.first <= last.last.saturating_add(1) => last.last = last.last.max(range.last),
            _ => merged.push(range),
        }
    }
    let texts: Vec<String> = merged.iter().map(PortRange::to_string).collect();
    texts.join(",")
}
