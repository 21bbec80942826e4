//! Which of a pod's traffic is steered into the agent.
//!
//! The rules carry the meaning of Istio's traffic annotations
//! (<https://istio.io/latest/docs/reference/config/annotations/>): ports first, then address ranges, and among
//! ranges the longest prefix decides, so that a small hole in a large excluded range can be included again.
//! The kernel takes the same decision from the same rules (`mesh-ebpf`); this side serves `meshctl explain`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use mesh_xds::HBONE_PORT;
use serde::Serialize;

/// The ports that are included.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PortSelection {
    /// Every port (`*`).
    #[default]
    All,
    /// These ports only.
    Only(BTreeSet<u16>),
}

/// The address ranges that are included.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CidrSelection {
    /// Every address (`*`).
    #[default]
    All,
    /// These ranges only.
    Only(BTreeSet<IpNet>),
}

/// A pod's include and exclude rules. The default steers everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Redirection {
    /// Ports of the pod that are steered (`traffic.sidecar.istio.io/includeInboundPorts`).
    pub include_inbound_ports: PortSelection,
    /// Ports of the pod that are not (`.../excludeInboundPorts`).
    pub exclude_inbound_ports: BTreeSet<u16>,
    /// Destination ports steered whatever their address (`.../includeOutboundPorts`).
    pub include_outbound_ports: BTreeSet<u16>,
    /// Destination ports that are not steered (`.../excludeOutboundPorts`).
    pub exclude_outbound_ports: BTreeSet<u16>,
    /// Destination ranges that are steered (`.../includeOutboundIPRanges`).
    pub include_outbound_cidrs: CidrSelection,
    /// Destination ranges that are not (`.../excludeOutboundIPRanges`).
    pub exclude_outbound_cidrs: BTreeSet<IpNet>,
}

/// What the rules say of one connection, and which rule said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Whether the connection is steered into the agent.
    pub captured: bool,
    /// The rule that decided.
    pub reason: Reason,
}

/// The rule that decided a [`Verdict`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// No rule names the connection; the default applies.
    Default,
    /// A port rule names it.
    Port(u16),
    /// The longest matching range decided.
    Cidr(IpNet),
    /// The tunnels of other agents end here, whatever the rules say of the ports behind them.
    Tunnel,
}

impl Redirection {
    /// Decides a connection that the pod opens to `destination:port`.
    pub fn outbound(&self, destination: IpAddr, port: u16) -> Verdict {
        if self.exclude_outbound_ports.contains(&port) {
            return Verdict { captured: false, reason: Reason::Port(port) };
        }
        if self.include_outbound_ports.contains(&port) {
            return Verdict { captured: true, reason: Reason::Port(port) };
        }
        let excluded = longest(&self.exclude_outbound_cidrs, destination);
        let included = match &self.include_outbound_cidrs {
            CidrSelection::All => None,
            CidrSelection::Only(ranges) => longest(ranges, destination),
        };
        match (included, excluded) {
            (Some(range), Some(hole)) if hole.prefix_len() >= range.prefix_len() => {
                Verdict { captured: false, reason: Reason::Cidr(hole) }
            }
            (Some(range), _) => Verdict { captured: true, reason: Reason::Cidr(range) },
            (None, Some(hole)) => Verdict { captured: false, reason: Reason::Cidr(hole) },
            (None, None) => Verdict {
                captured: self.include_outbound_cidrs == CidrSelection::All,
                reason: Reason::Default,
            },
        }
    }

    /// Decides a connection that somebody opens to the pod's `port`.
    pub fn inbound(&self, port: u16) -> Verdict {
        if port == HBONE_PORT {
            return Verdict { captured: true, reason: Reason::Tunnel };
        }
        if self.exclude_inbound_ports.contains(&port) {
            return Verdict { captured: false, reason: Reason::Port(port) };
        }
        match &self.include_inbound_ports {
            PortSelection::All => Verdict { captured: true, reason: Reason::Default },
            PortSelection::Only(ports) if ports.contains(&port) => {
                Verdict { captured: true, reason: Reason::Port(port) }
            }
            PortSelection::Only(_) => Verdict { captured: false, reason: Reason::Default },
        }
    }
}

/// The longest of `ranges` that contains `address`.
fn longest(ranges: &BTreeSet<IpNet>, address: IpAddr) -> Option<IpNet> {
    ranges.iter().filter(|range| range.contains(&address)).max_by_key(|range| range.prefix_len()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(text: &[&str]) -> BTreeSet<IpNet> {
        text.iter().map(|net| net.parse().unwrap()).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn everything_is_steered_by_default() {
        let rules = Redirection::default();
        assert!(rules.outbound(ip("10.0.0.1"), 80).captured);
        assert!(rules.outbound(ip("fd00::1"), 443).captured);
        assert!(rules.inbound(8080).captured);
    }

    #[test]
    fn the_longest_range_decides_and_exclusion_wins_a_tie() {
        let rules = Redirection {
            include_outbound_cidrs: CidrSelection::Only(nets(&["10.0.0.0/8", "10.1.2.0/24", "10.3.0.0/16"])),
            exclude_outbound_cidrs: nets(&["10.1.0.0/16", "10.3.0.0/16"]),
            ..Redirection::default()
        };
        assert!(rules.outbound(ip("10.9.0.1"), 80).captured);
        assert!(!rules.outbound(ip("10.1.9.1"), 80).captured);
        assert!(rules.outbound(ip("10.1.2.1"), 80).captured);
        assert!(!rules.outbound(ip("10.3.0.1"), 80).captured);
        assert!(!rules.outbound(ip("192.0.2.1"), 80).captured);
    }

    #[test]
    fn ports_beat_ranges() {
        let rules = Redirection {
            include_outbound_ports: [443].into(),
            exclude_outbound_ports: [5432].into(),
            exclude_outbound_cidrs: nets(&["0.0.0.0/0"]),
            ..Redirection::default()
        };
        assert!(rules.outbound(ip("192.0.2.1"), 443).captured);
        assert!(!rules.outbound(ip("192.0.2.1"), 5432).captured);
        assert!(!rules.outbound(ip("192.0.2.1"), 80).captured);
        assert!(rules.outbound(ip("2001:db8::1"), 80).captured);
    }

    #[test]
    fn inbound_ports_are_selected() {
        let rules = Redirection {
            include_inbound_ports: PortSelection::Only([80, 81].into()),
            exclude_inbound_ports: [81].into(),
            ..Redirection::default()
        };
        assert!(rules.inbound(80).captured);
        assert!(!rules.inbound(81).captured);
        assert!(!rules.inbound(82).captured);
    }

    #[test]
    fn tunnels_always_reach_the_agent() {
        let rules = Redirection {
            include_inbound_ports: PortSelection::Only([80].into()),
            exclude_inbound_ports: [HBONE_PORT].into(),
            ..Redirection::default()
        };
        assert!(rules.inbound(HBONE_PORT).captured);
    }
}
