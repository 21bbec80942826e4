//! Wires the namespaces of a lab: devices, addresses, routes, sysctls. Everything is asked of the kernel over rtnetlink.
//!
//! ```text
//!   namespace <lab>-switch        bridge sw0, one port per machine
//!        │ veth
//!   namespace <lab>-node1         eth0 (uplink), p-<pod> or cni0 with ports p-<pod>
//!        │ veth
//!   namespace <lab>-<pod>         eth0
//! ```
//!
//! A veth is created with each end in its namespace from the start, so no device ever appears in the machine's own namespace.

mod netlink;

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::netns::Namespace;
use crate::topology::{Addresses, Cidrs, Cni, Host, Node, Pod, Topology};

pub(crate) use netlink::NetlinkError;
use netlink::{Netlink, Route};

/// The first device of every machine: of a pod, its only one; of a node or host, the uplink.
pub const UPLINK: &str = "eth0";
const SWITCH_BRIDGE: &str = "sw0";
/// The bridge of a [`Cni::Bridge`] node.
pub const POD_BRIDGE: &str = "cni0";
/// The gateway of routed pods: never seen on a wire, the same on every device, as with Calico and the `ptp` plugin.
const ROUTED_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const ROUTED_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Prefix length of the uplink network.
const UPLINK_PREFIX: Prefix = Prefix { v4: 24, v6: 64 };
/// Prefix lengths of one address.
const ONE_ADDRESS: Prefix = Prefix { v4: 32, v6: 128 };

/// Duplicate address detection would keep addresses unusable for a second or more.
const NO_DAD: [Sysctl; 2] =
    [("net/ipv6/conf/all/accept_dad", "0"), ("net/ipv6/conf/default/accept_dad", "0")];

/// Path below /proc/sys, and value.
type Sysctl = (&'static str, &'static str);

/// What went wrong while wiring, and where.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A sysctl cannot be written.
    #[error("cannot set {key}={value}")]
    Sysctl {
        /// The sysctl's path below /proc/sys.
        key: &'static str,
        /// The value.
        value: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// The kernel refuses a device, an address or a route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// No thread can work in the namespace.
    #[error("cannot work in the namespace")]
    Namespace(#[from] io::Error),
}

#[derive(Debug, Clone, Copy)]
struct Prefix {
    v4: u8,
    v6: u8,
}

impl Prefix {
    fn of(self, address: IpAddr) -> u8 {
        if address.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// Joins the uplinks of all machines. This has to come first: it makes their `eth0`.
pub(crate) fn connect_switch(
    switch: &Namespace,
    machines: &[(String, &Namespace)],
) -> Result<(), NetworkError> {
    configure(switch, &[], async |netlink| {
        netlink.add_bridge(SWITCH_BRIDGE).await?;
        for (position, (name, namespace)) in machines.iter().enumerate() {
            // Only people read these names; the number keeps them apart when the kernel's limit cuts them short.
            let port: String = format!("{position}-{name}").chars().take(15).collect();
            netlink.add_veth(&port, UPLINK, namespace).await?;
            netlink.add_port(&port, SWITCH_BRIDGE).await?;
        }
        Ok(())
    })
}

/// Configures a node.
pub(crate) fn connect_node(
    topology: &Topology,
    node: &Node,
    namespace: &Namespace,
) -> Result<(), NetworkError> {
    let mut sysctls = vec![("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")];
    if let Some(wanted) = node.bridge_netfilter {
        let value = if wanted { "1" } else { "0" };
        sysctls.extend([
            ("net/bridge/bridge-nf-call-iptables", value),
            ("net/bridge/bridge-nf-call-ip6tables", value),
        ]);
    }
    configure(namespace, &sysctls, async |netlink| {
        connect_uplink(&netlink, &node.uplink).await?;
        route_to_pods(&netlink, topology, Some(node)).await?;
        if node.cni == Cni::Bridge {
            netlink.add_bridge(POD_BRIDGE).await?;
            let gateways = node.pod_cidrs.gateways();
            for (gateway, range) in gateways.iter().zip(node.pod_cidrs.iter()) {
                netlink.add_address(POD_BRIDGE, gateway, range.prefix_len()).await?;
                add_link_local(&netlink, POD_BRIDGE, gateway).await?;
            }
        }
        Ok(())
    })
}

/// Gives a machine a way for what it has no other for. A node's own programs need one to call services: the address of a service is
/// translated only after a route to it was found.
pub(crate) fn route_the_rest(namespace: &Namespace, via: Addresses) -> Result<(), NetworkError> {
    with_netlink(namespace, async |netlink| {
        for gateway in via.iter() {
            let to = default_route(gateway);
            netlink.add_route(&Route { to, via: Some(gateway), device: UPLINK, source: None }).await?;
        }
        Ok(())
    })
}

/// Makes a pod's device on its node, and configures the pod.
pub(crate) fn connect_pod(
    node: &Node,
    node_namespace: &Namespace,
    pod: &Pod,
    namespace: &Namespace,
) -> Result<(), NetworkError> {
    with_netlink(node_namespace, async |netlink| {
        netlink.add_veth(&pod.device, UPLINK, namespace).await?;
        match node.cni {
            Cni::Bridge => netlink.add_port(&pod.device, POD_BRIDGE).await,
            Cni::Routed => route_to_pod(&netlink, node, pod).await,
        }
    })?;
    configure(namespace, &[], async |netlink| {
        netlink.up(UPLINK).await?;
        for address in pod.addresses.iter() {
            let (prefix, gateway) = match node.cni {
                Cni::Routed => (ONE_ADDRESS.of(address), routed_gateway(address)),
                Cni::Bridge => bridge_gateway(&node.pod_cidrs, address),
            };
            netlink.add_address(UPLINK, address, prefix).await?;
            if let Some(gateway) = gateway {
                netlink
                    .add_route(&Route {
                        to: default_route(address),
                        via: Some(gateway),
                        device: UPLINK,
                        source: None,
                    })
                    .await?;
            }
        }
        Ok(())
    })
}

/// Takes a pod's device away from its node; the routes to it and the pod's own end go with it.
pub(crate) fn disconnect_pod(node_namespace: &Namespace, device: &str) -> Result<(), NetworkError> {
    with_netlink(node_namespace, async |netlink| netlink.remove(device).await)
}

/// Configures a host outside the mesh. It knows the way to the pods as a well-configured network would.
pub(crate) fn connect_host(
    topology: &Topology,
    host: &Host,
    namespace: &Namespace,
) -> Result<(), NetworkError> {
    configure(namespace, &[], async |netlink| {
        connect_uplink(&netlink, &host.addresses).await?;
        route_to_pods(&netlink, topology, None).await
    })
}

async fn connect_uplink(netlink: &Netlink, addresses: &Addresses) -> Result<(), NetlinkError> {
    netlink.up(UPLINK).await?;
    for address in addresses.iter() {
        netlink.add_address(UPLINK, address, UPLINK_PREFIX.of(address)).await?;
        add_link_local(netlink, UPLINK, address).await?;
    }
    Ok(())
}

/// Gives a device that forwards a link-local address with the last half of its own. The kernel makes one by itself, but
/// only when it has noticed the carrier, up to a second later, and until then it cannot ask for the neighbours of what
/// it forwards: their solicitations need a link-local source.
async fn add_link_local(netlink: &Netlink, device: &str, own: IpAddr) -> Result<(), NetlinkError> {
    let IpAddr::V6(own) = own else { return Ok(()) };
    let [_, _, _, _, a, b, c, d] = own.segments();
    let address = Ipv6Addr::new(0xfe80, 0, 0, 0, a, b, c, d);
    netlink.add_address(device, address.into(), 64).await
}

/// The ranges of all nodes but this one, each by way of its node.
async fn route_to_pods(
    netlink: &Netlink,
    topology: &Topology,
    own: Option<&Node>,
) -> Result<(), NetlinkError> {
    for node in topology.nodes.iter().filter(|node| own.is_none_or(|own| own.name != node.name)) {
        for (to, via) in node.pod_cidrs.iter().zip(node.uplink.iter()) {
            netlink.add_route(&Route { to, via: Some(via), device: UPLINK, source: None }).await?;
        }
    }
    Ok(())
}

async fn route_to_pod(netlink: &Netlink, node: &Node, pod: &Pod) -> Result<(), NetlinkError> {
    for (address, source) in pod.addresses.iter().zip(node.uplink.iter()) {
        if let Some(gateway) = routed_gateway(address) {
            // The same address on every pod's device: the pod's question "who has the gateway" is answered without proxy ARP,
            // which would need a default route in the node. fe80::/64 is there already.
            let prefix = if gateway.is_ipv4() { 32 } else { 64 };
            netlink.add_address(&pod.device, gateway, prefix).await?;
        }
        // Without a preferred source, the kernel would call the pod from the link-local gateway address.
        netlink
            .add_route(&Route {
                to: IpNet::from(address),
                via: None,
                device: &pod.device,
                source: Some(source),
            })
            .await?;
    }
    Ok(())
}

fn routed_gateway(address: IpAddr) -> Option<IpAddr> {
    Some(if address.is_ipv4() { ROUTED_GATEWAY_V4.into() } else { ROUTED_GATEWAY_V6.into() })
}

fn bridge_gateway(range: &Cidrs, address: IpAddr) -> (u8, Option<IpAddr>) {
    let gateways = range.gateways();
    if address.is_ipv4() {
        (range.v4.map_or(ONE_ADDRESS.v4, |range| range.prefix_len()), gateways.v4.map(IpAddr::V4))
    } else {
        (range.v6.map_or(ONE_ADDRESS.v6, |range| range.prefix_len()), gateways.v6.map(IpAddr::V6))
    }
}

fn default_route(address: IpAddr) -> IpNet {
    if address.is_ipv4() { Ipv4Net::default().into() } else { Ipv6Net::default().into() }
}

/// Does one machine's wiring on a thread in its namespace, after what every machine needs: sysctls first, since the kernel copies
/// the defaults into a device when it is made, and the loopback device up.
fn configure<F>(namespace: &Namespace, sysctls: &[Sysctl], work: F) -> Result<(), NetworkError>
where
    F: AsyncFnOnce(Netlink) -> Result<(), NetlinkError> + Send,
{
    namespace.run(|| NO_DAD.iter().chain(sysctls).try_for_each(set_sysctl))??;
    with_netlink(namespace, async |netlink| {
        netlink.up("lo").await?;
        work(netlink).await
    })
}

/// Sets a sysctl of the calling thread's namespace, which is the one that /proc/sys/net shows it.
fn set_sysctl(&(key, value): &Sysctl) -> Result<(), NetworkError> {
    fs::write(Path::new("/proc/sys").join(key), value).map_err(|source| NetworkError::Sysctl {
        key,
        value,
        source,
    })
}

/// Sends requests from a thread in the namespace.
fn with_netlink<F>(namespace: &Namespace, work: F) -> Result<(), NetworkError>
where
    F: AsyncFnOnce(Netlink) -> Result<(), NetlinkError> + Send,
{
    namespace.block_on(async || Ok(work(Netlink::open()?).await?))?
}
