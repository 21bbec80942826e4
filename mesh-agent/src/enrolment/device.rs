//! Finds the host-side device of a pod, the one that its packets come in on, whatever the CNI plugin.
//!
//! - **By the route.** Who routes to pods (ptp, Calico's `cali*`, AWS's `eni*`, Cilium's `lxc*` with endpoint routes) has a
//!   host route for each, and the route names the device. An address behind a gateway is of no pod here.
//! - **By the other end** ([`peers`]). Where routes say nothing, because all lead to a bridge or to `cilium_host`, the
//!   kernel knows which addresses the other end of each veth or netkit device has, in the pod's own network namespace. The
//!   pod need not have sent anything.
//! - **By the bridge's tables** ([`survey`]), for a pod that has handed its address on, as to a virtual machine: the
//!   neighbour table knows the MAC address, the forwarding table the port. Only a port whose other end has no address itself.
//!
//! A route is the node's own word. The other two can be forged, by a pod that may give itself addresses (CAP_NET_ADMIN): an
//! address that is found at several devices is of none of them, but for the one that was known to have it before.

mod peers;
mod survey;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::InfoKind;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::time::sleep;
use tracing::{debug, warn};

use self::peers::Peers;
use self::survey::{Survey, Tables};
use super::reconciler::Devices;
use crate::pods::{LocalPod, PodDevice};

#[cfg(test)]
mod tests;

/// Devices come in bursts, several messages each.
const SETTLING: Duration = Duration::from_millis(50);

/// Finds devices through netlink, in the network namespace that it was opened in.
pub struct NetlinkDevices {
    netlink: Handle,
    peers: Peers,
    changes: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

impl NetlinkDevices {
    /// Opens a connection to the kernel and asks to be told of changes to devices.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open() -> std::io::Result<Self> {
        let (connection, netlink, changes) = rtnetlink::new_multicast_connection(&[MulticastGroup::Link])?;
        tokio::spawn(connection);
        Ok(Self { netlink, peers: Peers::open()?, changes })
    }

    /// Where `pod` may be: behind the devices that its routes name or, where they name none, those that its addresses are
    /// found at by other means.
    async fn candidates(&self, pod: &LocalPod, survey: &Survey, found: &mut Found) -> Candidates {
        let mut bridged = Vec::new();
        for address in &pod.addresses {
            let Some(index) = self.route(*address).await.as_ref().and_then(on_link_device) else { continue };
            if survey.leads_elsewhere(index) {
                return Candidates { devices: BTreeSet::from([index]), bridged: Vec::new() };
            }
            if survey.kind(index) == Some(&InfoKind::Bridge) {
                bridged.push((index, *address));
            }
        }
        let peers = found.peers(&self.peers, survey).await;
        let ends: BTreeSet<u32> = pod.addresses.iter().flat_map(|address| peers.at(*address)).collect();
        if !ends.is_empty() || bridged.is_empty() {
            return Candidates { devices: ends, bridged };
        }
        let silent: BTreeSet<u32> =
            survey.ends().map(|end| end.device).filter(|device| !peers.has_any(*device)).collect();
        let tables = found.tables(&self.netlink, survey).await;
        let mut ports = BTreeSet::new();
        for (bridge, address) in &bridged {
            match tables.port(*bridge, *address) {
                Some(port) => ports.extend(Some(port).filter(|port| silent.contains(port))),
                None => provoke(*address),
            }
        }
        Candidates { devices: ports, bridged }
    }

    /// Makes the node ask who has the addresses of pods that have just come to a bridge. For a while it would send to the MAC address
    /// of the pod that had them before; and nobody has that any more, so the bridge would send it to all, in copies without a
    /// socket, by which the kernel programs cannot tell the kubelet from others.
    async fn forget_neighbours(&self, bridged: &HashSet<(u32, IpAddr)>) {
        if let Err(error) = survey::forget(&self.netlink, bridged).await {
            debug!(?bridged, %error, "what the node knows of addresses cannot be removed");
        }
    }

    /// How the node would send to `address`.
    async fn route(&self, address: IpAddr) -> Option<RouteMessage> {
        let query = match address {
            IpAddr::V4(address) => {
                RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build()
            }
            IpAddr::V6(address) => {
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build()
            }
        };
        let mut answers = self.netlink.route().get(query).execute();
        std::pin::pin!(&mut answers).try_next().await.ok().flatten()
    }
}

impl Devices for NetlinkDevices {
    async fn locate(&mut self, pods: &[Arc<LocalPod>]) -> HashMap<Arc<str>, PodDevice> {
        let mut devices = HashMap::new();
        if pods.is_empty() {
            return devices;
        }
        let survey = match Survey::take(&self.netlink).await {
            Ok(survey) => survey,
            Err(error) => {
                debug!(%error, "devices cannot be listed");
                return pods
                    .iter()
                    .filter_map(|pod| Some((Arc::clone(&pod.uid), pod.device.clone()?)))
                    .collect();
            }
        };
        let mut found = Found::default();
        let mut come_to_bridges = HashSet::new();
        for pod in pods {
            let candidates = self.candidates(pod, &survey, &mut found).await;
            if let Some(device) = choose(pod, &candidates.devices, &survey) {
                if pod.device.is_none() {
                    come_to_bridges.extend(candidates.bridged);
                }
                devices.insert(Arc::clone(&pod.uid), device);
            }
        }
        self.forget_neighbours(&come_to_bridges).await;
        devices
    }

    async fn changed(&mut self) {
        if self.changes.next().await.is_none() {
            // The connection is gone; what is known stays.
            return std::future::pending().await;
        }
        sleep(SETTLING).await;
        while self.changes.try_recv().is_ok() {}
    }
}

/// Where a pod may be.
struct Candidates {
    devices: BTreeSet<u32>,
    /// Those of its addresses that are routed to a bridge, with the bridge.
    bridged: Vec<(u32, IpAddr)>,
}

/// The only candidate; of several, or for want of any, the device that the pod had already and that is still there:
/// tables forget, and a device does not change hands.
fn choose(pod: &LocalPod, candidates: &BTreeSet<u32>, survey: &Survey) -> Option<PodDevice> {
    let named = |index: &u32| Some(PodDevice { index: *index, name: survey.name(*index)?.to_owned() });
    let last = pod.device.as_ref().filter(|last| survey.name(last.index) == Some(last.name.as_str()));
    match (candidates.len(), last) {
        (1, _) => candidates.first().and_then(named),
        (0, last) => last.cloned(),
        (_, Some(last)) if candidates.contains(&last.index) => Some(last.clone()),
        _ => {
            let devices: Vec<_> = candidates.iter().filter_map(|index| survey.name(*index)).collect();
            warn!(
                pod = %pod.uid, ?devices, addresses = ?pod.addresses,
                "several devices have addresses of the pod: none of them is believed; does a pod forge addresses?"
            );
            None
        }
    }
}

/// What is asked of the kernel only where routes do not say enough, and then once for all pods.
#[derive(Default)]
struct Found {
    peers: Option<peers::Addresses>,
    tables: Option<Tables>,
}

impl Found {
    async fn peers(&mut self, peers: &Peers, survey: &Survey) -> &peers::Addresses {
        if self.peers.is_none() {
            self.peers = Some(peers.addresses(survey.ends()).await);
        }
        self.peers.get_or_insert_default()
    }

    async fn tables(&mut self, netlink: &Handle, survey: &Survey) -> &Tables {
        if self.tables.is_none() {
            self.tables = Some(Tables::read(netlink, survey).await);
        }
        self.tables.get_or_insert_default()
    }
}

/// The device of a route to somebody next to this node.
fn on_link_device(route: &RouteMessage) -> Option<u32> {
    let via_gateway =
        |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_));
    if route.header.kind != RouteType::Unicast || route.attributes.iter().any(via_gateway) {
        return None;
    }
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

/// Makes the node resolve the address, and whoever has it answer, so that the bridge learns its port.
fn provoke(address: IpAddr) {
    const DISCARD: u16 = 9;
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let sent = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.send_to(&[], (address, DISCARD))
    });
    if let Err(error) = sent {
        debug!(%address, %error, "pod cannot be spoken to");
    }
}
