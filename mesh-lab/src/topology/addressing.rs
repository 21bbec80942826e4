//! Which addresses a lab uses when its file names none.
//!
//! | what                 | IPv4                     | IPv6                                 |
//! |----------------------|--------------------------|--------------------------------------|
//! | uplink of node *n*   | `10.77.0.n` in `/24`     | `fd4d:4553:4800::n` in `/64`         |
//! | host *h*             | `10.77.0.(199+h)`        | `fd4d:4553:4800::(c7+h)`             |
//! | pods of node *n*     | `10.77.n.0/24`           | `fd4d:4553:4800:n::/64`              |
//! | their gateway        | first address of a range, on bridge nodes only | the same          |
//!
//! Nodes, hosts and pods count from 1, in the order of the file; pods start at `.2`. Each lab is an island of namespaces, so all labs
//! can use the same ranges. (`4d45:5348` spells MESH.)

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// A lab has at most this many nodes: above it, in the last byte of an uplink address, come the hosts.
pub(super) const NODES_MAX: u8 = 199;
/// A lab has at most this many hosts.
pub(super) const HOSTS_MAX: u8 = 50;

/// The network between the nodes, IPv4.
pub(super) fn uplink_v4() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 77, 0, 0), 24)
}

/// The network between the nodes, IPv6.
pub(super) fn uplink_v6() -> Ipv6Net {
    Ipv6Net::new_assert(segments(0, 0), 64)
}

/// The pods of the `node`th node, IPv4.
pub(super) fn pods_v4(node: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 77, node, 0), 24)
}

/// The pods of the `node`th node, IPv6.
pub(super) fn pods_v6(node: u8) -> Ipv6Net {
    Ipv6Net::new_assert(segments(node, 0), 64)
}

fn segments(subnet: u8, last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd4d, 0x4553, 0x4800, subnet.into(), 0, 0, 0, last)
}

/// Hands out addresses of the lab, none of them twice.
#[derive(Debug, Default)]
pub(super) struct Pool {
    taken: HashSet<IpAddr>,
}

impl Pool {
    /// Takes an address named in the file; false when somebody has it.
    pub(super) fn claim(&mut self, address: IpAddr) -> bool {
        self.taken.insert(address)
    }

    /// The first free IPv4 address of a range, `first` addresses into it.
    pub(super) fn next_v4(&mut self, range: Ipv4Net, first: usize) -> Option<Ipv4Addr> {
        // hosts() leaves out the network and the broadcast address, so its first is number 1.
        range.hosts().skip(first - 1).find(|address| self.taken.insert(IpAddr::V4(*address)))
    }

    /// The first free IPv6 address of a range, `first` addresses into it.
    pub(super) fn next_v6(&mut self, range: Ipv6Net, first: usize) -> Option<Ipv6Addr> {
        range.hosts().skip(first).find(|address| self.taken.insert(IpAddr::V6(*address)))
    }
}
