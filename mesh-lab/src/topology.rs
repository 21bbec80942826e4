//! What a lab consists of: nodes, their pods, hosts outside the mesh, and every address.
//!
//! A [`Topology`] is always complete and consistent: it is parsed as a whole from YAML, every problem is reported at once with its
//! line, and whatever the file leaves out is filled in by [`addressing`]. Building a lab from it never has to decide anything.
//!
//! ```yaml
//! name: shop                  # prefix of everything the lab makes
//! families: dual              # v4, v6 or dual; default dual
//! cni: routed                 # routed or bridge, for nodes that do not say; default routed
//! bridgeNetfilter: true       # bridge-nf-call-iptables, for nodes that do not say; default what the kernel does
//! nodes:
//!   - name: node1
//!     cni: bridge
//!     bridgeNetfilter: false
//!     uplink: [10.77.0.9]     # inside of 10.77.0.0/24 and fd4d:4553:4800::/64
//!     podCidrs: [10.99.0.0/24]
//!     pods:
//!       - name: client        # nodes, pods and hosts share one set of names
//!         namespace: shop     # default "default"
//!         addresses: [10.99.0.9]
//! hosts:                      # outside the mesh
//!   - name: control
//!     addresses: []
//! ```

mod addressing;
mod document;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

pub(crate) use document::SWITCH;

/// Nodes with pods, and hosts outside the mesh, on one switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Name of the lab: the prefix of everything it creates.
    pub name: String,
    /// Address families that every machine has.
    pub families: Families,
    /// Machines that run pods.
    pub nodes: Vec<Node>,
    /// Machines outside the mesh: clients and servers of the external network, control servers.
    pub hosts: Vec<Host>,
}

/// The address families of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both; the default.
    Dual,
}

impl Families {
    /// Whether machines have IPv4 addresses.
    #[must_use]
    pub fn v4(self) -> bool {
        self != Self::V6
    }

    /// Whether machines have IPv6 addresses.
    #[must_use]
    pub fn v6(self) -> bool {
        self != Self::V4
    }
}

/// How a node connects its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cni {
    /// A veth per pod with a host route to it and a link-local gateway, as Calico, Cilium and the `ptp` plugin do.
    Routed,
    /// A bridge `cni0` with the pods' veths as ports, as flannel, kubenet and the `bridge` plugin do.
    Bridge,
}

/// A machine that runs pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Unique name in the lab.
    pub name: String,
    /// How the pods are connected.
    pub cni: Cni,
    /// Whether bridged packets pass the IP netfilter hooks (`bridge-nf-call-iptables`); `None` leaves the kernel's default.
    pub bridge_netfilter: Option<bool>,
    /// Addresses on the uplink.
    pub uplink: Addresses,
    /// The ranges its pods' addresses come from; the other nodes route them here.
    pub pod_cidrs: Cidrs,
    /// The pods of this node.
    pub pods: Vec<Pod>,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Unique name in the lab.
    pub name: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its addresses.
    pub addresses: Addresses,
    /// The name of its veth on the node's side.
    pub device: String,
}

/// A machine outside the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Unique name in the lab.
    pub name: String,
    /// Its addresses, in the uplink network.
    pub addresses: Addresses,
}

/// The addresses of a machine, one per family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// All of them, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.iter().map(|address| address.to_string()).collect();
        out.write_str(&all.join(" "))
    }
}

/// Address ranges, one per family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cidrs {
    /// The IPv4 range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<Ipv4Net>,
    /// The IPv6 range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Ipv6Net>,
}

impl Cidrs {
    /// All of them, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> + use<> {
        self.v4.map(IpNet::V4).into_iter().chain(self.v6.map(IpNet::V6))
    }

    /// The gateway of the pods of a bridge node: the first address of each range.
    #[must_use]
    pub fn gateways(&self) -> Addresses {
        Addresses {
            v4: self.v4.and_then(|range| range.hosts().next()),
            v6: self.v6.and_then(|range| range.hosts().nth(1)),
        }
    }
}

impl Topology {
    /// Parses a topology file.
    ///
    /// # Errors
    /// When the file cannot be read, is not YAML, or describes something impossible; every such problem is in the error.
    pub fn read(path: &Path) -> Result<Self, TopologyError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TopologyError::Read { path: path.to_owned(), source })?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Parses the text of a topology file; `origin` names it in errors.
    ///
    /// # Errors
    /// As [`Topology::read`].
    pub fn parse(origin: &str, text: &str) -> Result<Self, TopologyError> {
        document::parse(text)
            .map_err(|problems| TopologyError::Invalid(Problems { origin: origin.to_owned(), problems }))
    }

    /// The same topology under another name.
    ///
    /// # Errors
    /// When the name cannot be part of a file name.
    pub fn named(mut self, name: &str) -> Result<Self, TopologyError> {
        document::check_name(name, document::LAB_NAME_MAX)
            .map_err(|reason| TopologyError::Name { reason })?;
        name.clone_into(&mut self.name);
        Ok(self)
    }

    /// The same topology under a name that no other lab has: name, process id, counter. For tests, which run in parallel.
    #[must_use]
    pub fn unique(mut self) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        self.name = format!("{}-{}-{}", self.name, std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        self
    }

    /// Adds a pod to a node, with the next free addresses; returns both.
    pub(crate) fn add_pod(&mut self, node: &str, pod: &str) -> Result<(Node, Pod), TopologyError> {
        let refuse = |reason: String| TopologyError::Name { reason };
        document::check_machine_name(pod).map_err(refuse)?;
        if self.machine_names().any(|name| name == pod) {
            return Err(refuse(format!("the name {pod:?} is taken")));
        }
        let node = self.nodes.iter_mut().find(|other| other.name == node);
        let node = node.ok_or_else(|| refuse("there is no such node".to_owned()))?;
        let pod = document::next_pod(node, pod).map_err(refuse)?;
        node.pods.push(pod.clone());
        Ok((node.clone(), pod))
    }

    /// Forgets a pod.
    pub(crate) fn remove_pod(&mut self, pod: &str) {
        for node in &mut self.nodes {
            node.pods.retain(|other| other.name != pod);
        }
    }

    /// The names of all nodes, pods and hosts.
    pub(crate) fn machine_names(&self) -> impl Iterator<Item = &str> {
        let nodes = self.nodes.iter().map(|node| node.name.as_str());
        let pods = self.pods().map(|(_, pod)| pod.name.as_str());
        nodes.chain(pods).chain(self.hosts.iter().map(|host| host.name.as_str()))
    }

    /// All pods with their nodes.
    pub fn pods(&self) -> impl Iterator<Item = (&Node, &Pod)> {
        self.nodes.iter().flat_map(|node| node.pods.iter().map(move |pod| (node, pod)))
    }
}

/// Why there is no topology.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// The file cannot be read.
    #[error("cannot read the topology {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file describes no possible lab.
    #[error(transparent)]
    Invalid(Problems),
    /// A name given later is not a possible one.
    #[error("{reason}")]
    Name {
        /// What is wrong with it.
        reason: String,
    },
}

/// Everything that is wrong with a topology file.
#[derive(Debug, thiserror::Error)]
pub struct Problems {
    /// The file.
    pub origin: String,
    /// What is wrong, in the order of the file.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong with a topology file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where, counted from 1; 0 for the whole file.
    pub line: u64,
    /// What, and what to write instead.
    pub reason: String,
}

impl fmt::Display for Problems {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, problem) in self.problems.iter().enumerate() {
            let separator = if position == 0 { "" } else { "\n" };
            write!(out, "{separator}{}:{}: {}", self.origin, problem.line, problem.reason)?;
        }
        Ok(())
    }
}
