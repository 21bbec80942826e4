//! The node's devices at one moment, and the tables of its bridges.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::Handle;
use tracing::debug;

use super::peers::End;

/// The devices.
pub(super) struct Survey {
    links: HashMap<u32, Link>,
}

struct Link {
    name: String,
    kind: Option<InfoKind>,
    end: Option<End>,
}

impl Survey {
    pub(super) async fn take(netlink: &Handle) -> Result<Self, rtnetlink::Error> {
        let links: Vec<LinkMessage> = netlink.link().get().execute().try_collect().await?;
        Ok(Self { links: links.iter().map(|message| (message.header.index, link(message))).collect() })
    }

    pub(super) fn name(&self, index: u32) -> Option<&str> {
        self.links.get(&index).map(|link| link.name.as_str())
    }

    pub(super) fn kind(&self, index: u32) -> Option<&InfoKind> {
        self.links.get(&index)?.kind.as_ref()
    }

    /// The devices whose other end is in another network namespace, where pods are.
    pub(super) fn ends(&self) -> impl Iterator<Item = End> + '_ {
        self.links.values().filter_map(|link| link.end)
    }

    /// Whether this is such a device.
    pub(super) fn leads_elsewhere(&self, index: u32) -> bool {
        self.links.get(&index).is_some_and(|link| link.end.is_some())
    }

    fn has_bridges(&self) -> bool {
        self.links.values().any(|link| link.kind == Some(InfoKind::Bridge))
    }
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link { name: String::new(), kind: None, end: None };
    let (mut namespace, mut peer) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::LinkNetNsId(number) => namespace = Some(*number),
            LinkAttribute::Link(index) => peer = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    if matches!(link.kind, Some(InfoKind::Veth | InfoKind::Netkit))
        && let (Some(namespace), Some(peer)) = (namespace, peer)
    {
        link.end = Some(End { device: message.header.index, namespace, peer });
    }
    link
}

/// What bridges and the node have learnt of who is where.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// MAC addresses by device and address.
    neighbours: HashMap<(u32, IpAddr), Vec<u8>>,
    /// Ports by bridge and MAC address.
    ports: HashMap<(u32, Vec<u8>), u32>,
}

impl Tables {
    /// Reads them, empty where the kernel does not answer.
    pub(super) async fn read(netlink: &Handle, survey: &Survey) -> Self {
        if !survey.has_bridges() {
            return Self::default();
        }
        Self::ask(netlink, survey).await.unwrap_or_else(|error| {
            debug!(%error, "tables of the bridges cannot be read");
            Self::default()
        })
    }

    async fn ask(netlink: &Handle, survey: &Survey) -> Result<Self, rtnetlink::Error> {
        let mut tables = Self::default();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let entries = neighbours(netlink, family).await?;
            let known =
                entries.iter().filter(|entry| survey.kind(entry.header.ifindex) == Some(&InfoKind::Bridge));
            tables.neighbours.extend(
                known.filter_map(|entry| Some(((entry.header.ifindex, destination(entry)?), mac(entry)?))),
            );
        }
        let learnt = neighbours(netlink, AddressFamily::Bridge).await?;
        tables.ports.extend(
            learnt.iter().filter_map(|entry| Some(((bridge(entry)?, mac(entry)?), entry.header.ifindex))),
        );
        Ok(tables)
    }

    /// The port of `bridge` behind which `address` is.
    pub(super) fn port(&self, bridge: u32, address: IpAddr) -> Option<u32> {
        let mac = self.neighbours.get(&(bridge, address))?;
        self.ports.get(&(bridge, mac.clone())).copied()
    }
}

/// Removes what the node has learnt of the MAC addresses of `addresses`, each at a device; what somebody has set stays.
///
/// # Errors
/// When the kernel does not say what it knows.
pub(super) async fn forget(
    netlink: &Handle,
    addresses: &HashSet<(u32, IpAddr)>,
) -> Result<(), rtnetlink::Error> {
    let set = [NeighbourState::Permanent, NeighbourState::Noarp];
    for (family, is_of_family) in [
        (AddressFamily::Inet, IpAddr::is_ipv4 as fn(&IpAddr) -> bool),
        (AddressFamily::Inet6, IpAddr::is_ipv6),
    ] {
        if !addresses.iter().any(|(_, address)| is_of_family(address)) {
            continue;
        }
        let learnt = |entry: &NeighbourMessage| {
            let place = destination(entry).map(|address| (entry.header.ifindex, address));
            place.is_some_and(|place| addresses.contains(&place)) && !set.contains(&entry.header.state)
        };
        for entry in neighbours(netlink, family).await?.into_iter().filter(learnt) {
            // One that has gone by itself is no reason to keep the others.
            if let Err(error) = netlink.neighbours().del(entry).execute().await {
                debug!(%error, "what the node knows of an address cannot be removed");
            }
        }
    }
    Ok(())
}

async fn neighbours(
    netlink: &Handle,
    family: AddressFamily,
) -> Result<Vec<NeighbourMessage>, rtnetlink::Error> {
    netlink.neighbours().get().set_address_family(family).execute().try_collect().await
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
