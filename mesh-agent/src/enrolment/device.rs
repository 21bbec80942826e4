//! Finds the host-side device of a pod, the one that its packets come in on.
//!
//! Who routes to pods has a host route for each, and the route names the device. Who bridges has one route to the
//! bridge; then the neighbour table knows the pod's MAC address, and the bridge's forwarding table the port
//! behind which that is. Either may be empty until somebody speaks to the pod: a datagram to its discard port
//! does. An address that leads to anything but a veth or netkit device, or through a gateway, is of no pod here.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::time::sleep;
use tracing::debug;

use super::reconciler::Devices;
use crate::pods::{LocalPod, PodDevice};

#[cfg(test)]
mod tests;

/// Devices come in bursts, several messages each.
const SETTLING: Duration = Duration::from_millis(50);

/// Finds devices through netlink, in the network namespace that it was opened in.
pub struct NetlinkDevices {
    netlink: Handle,
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
        Ok(Self { netlink, changes })
    }

    async fn find(&self, pod: &LocalPod, survey: &Survey) -> Option<PodDevice> {
        for address in &pod.addresses {
            if let Some(index) = self.index_of(*address, survey).await {
                let name = survey.links.get(&index)?.name.clone();
                return Some(PodDevice { index, name });
            }
        }
        // Tables forget; a device that is still there has not changed hands.
        pod.device
            .clone()
            .filter(|last| survey.links.get(&last.index).is_some_and(|link| link.name == last.name))
    }

    async fn index_of(&self, address: IpAddr, survey: &Survey) -> Option<u32> {
        let index = on_link_device(&self.route(address).await?)?;
        match survey.links.get(&index)?.kind.as_ref()? {
            InfoKind::Veth | InfoKind::Netkit => Some(index),
            InfoKind::Bridge => {
                let port = survey
                    .neighbours
                    .get(&(index, address))
                    .and_then(|mac| survey.ports.get(&(index, mac.clone())))
                    .copied();
                if port.is_none() {
                    provoke(address);
                }
                port
            }
            _ => None,
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
        let mut found = HashMap::new();
        if pods.is_empty() {
            return found;
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
        for pod in pods {
            if let Some(device) = self.find(pod, &survey).await {
                found.insert(Arc::clone(&pod.uid), device);
            }
        }
        found
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

/// The tables of one moment, asked for once for all pods.
struct Survey {
    links: HashMap<u32, Link>,
    /// MAC addresses by device and address.
    neighbours: HashMap<(u32, IpAddr), Vec<u8>>,
    /// Ports by bridge and MAC address.
    ports: HashMap<(u32, Vec<u8>), u32>,
}

struct Link {
    name: String,
    kind: Option<InfoKind>,
}

impl Survey {
    async fn take(netlink: &Handle) -> Result<Self, rtnetlink::Error> {
        let links: Vec<LinkMessage> = netlink.link().get().execute().try_collect().await?;
        let bridges: HashSet<u32> = links
            .iter()
            .filter(|link| kind(link) == Some(InfoKind::Bridge))
            .map(|link| link.header.index)
            .collect();
        let mut survey = Self {
            links: links
                .iter()
                .map(|link| (link.header.index, Link { name: name(link), kind: kind(link) }))
                .collect(),
            neighbours: HashMap::new(),
            ports: HashMap::new(),
        };
        // Nodes that route to their pods have large neighbour tables and no use for them here.
        if bridges.is_empty() {
            return Ok(survey);
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let entries = neighbours(netlink, family).await?;
            let known = entries.iter().filter(|entry| bridges.contains(&entry.header.ifindex));
            survey.neighbours.extend(
                known.filter_map(|entry| Some(((entry.header.ifindex, destination(entry)?), mac(entry)?))),
            );
        }
        let learnt = neighbours(netlink, AddressFamily::Bridge).await?;
        survey.ports.extend(
            learnt.iter().filter_map(|entry| Some(((bridge(entry)?, mac(entry)?), entry.header.ifindex))),
        );
        Ok(survey)
    }
}

async fn neighbours(
    netlink: &Handle,
    family: AddressFamily,
) -> Result<Vec<NeighbourMessage>, rtnetlink::Error> {
    netlink.neighbours().get().set_address_family(family).execute().try_collect().await
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

/// Makes the node resolve the address, and the pod answer so that the bridge learns its port.
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

fn name(link: &LinkMessage) -> String {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_default()
}

fn kind(link: &LinkMessage) -> Option<InfoKind> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind.clone()),
            _ => None,
        }),
        _ => None,
    })
}

fn destination(entry: &NeighbourMessage) -> Option<IpAddr> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}

fn mac(entry: &NeighbourMessage) -> Option<Vec<u8>> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => Some(mac.clone()),
        _ => None,
    })
}

fn bridge(entry: &NeighbourMessage) -> Option<u32> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Controller(bridge) => Some(*bridge),
        _ => None,
    })
}
