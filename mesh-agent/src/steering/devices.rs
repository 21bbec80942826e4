//! The node's devices and addresses: which devices are steered, and what the kernel must know of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_common::{Device, DeviceFlags};
use netlink_packet_route::link::{
    InfoKind, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};

use super::SteeringError;
use super::host::namespace;
use super::maps::Maps;
use super::programs::Hook;

/// What netlink says of a device, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) up: bool,
    /// Whether its packets have an Ethernet header.
    pub(super) ethernet: bool,
    /// Whether it is a veth that sends at once: nothing queues or shapes its packets.
    pub(super) plain_veth: bool,
    /// The bridge it is a port of.
    pub(super) bridge: Option<u32>,
    /// What fits through it.
    pub(super) mtu: u32,
}

/// What sort of device it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The loopback device: what the node says to itself.
    Loopback,
    /// A bridge; packets are met on its ports.
    Bridge,
    /// Below a bond or team; packets are met on that.
    Member,
    /// Never receives a packet for the IP stack: dummy, ifb, nlmon, VRF.
    Silent,
    /// Holds addresses that are services' rather than the node's, such as kube-ipvs0.
    Dummy,
    /// To the agent's network namespace.
    Agent,
    /// Everything else: pods' veths, uplinks, tunnels.
    Plain,
}

impl Link {
    /// Reads a netlink message.
    pub(super) fn parse(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: Kind::Plain,
            up: message.header.flags.contains(LinkFlags::Up),
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            plain_veth: false,
            bridge: None,
            mtu: 0,
        };
        let (mut controller, mut is_port) = (None, false);
        let (mut is_veth, mut is_queued) = (false, true);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(index) => controller = Some(*index),
                LinkAttribute::Qdisc(name) => is_queued = name != "noqueue",
                LinkAttribute::LinkInfo(details) => {
                    for detail in details {
                        match detail {
                            LinkInfo::Kind(kind) => {
                                is_veth = *kind == InfoKind::Veth;
                                link.kind = kind_of(kind, link.kind);
                            }
                            LinkInfo::PortKind(InfoPortKind::Bridge) => is_port = true,
                            LinkInfo::PortKind(InfoPortKind::Bond | InfoPortKind::Team) => {
                                link.kind = Kind::Member;
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if message.header.link_layer_type == LinkLayerType::Loopback {
            link.kind = Kind::Loopback;
        }
        if is_veth && [namespace::STEERED, namespace::AROUND].contains(&link.name.as_str()) {
            link.kind = Kind::Agent;
        }
        link.bridge = controller.filter(|_| is_port);
        link.plain_veth = is_veth && !is_queued;
        link
    }

    /// Whether `steer` belongs on it. A device that is down waits: it may be the end of a veth that is about to
    /// move into a pod, and must not take the program there.
    pub(super) fn is_steered(&self) -> bool {
        self.kind == Kind::Plain && self.up
    }

    /// The program that belongs at its ingress.
    pub(super) fn program_of_ingress(&self) -> Option<Hook> {
        match self.kind {
            Kind::Agent => Some(Hook::Deliver),
            _ => self.is_steered().then_some(Hook::Steer),
        }
    }
}

/// The kind by name, unless being below a bond has been seen before.
fn kind_of(kind: &InfoKind, known: Kind) -> Kind {
    match kind {
        _ if known == Kind::Member => known,
        InfoKind::Bridge => Kind::Bridge,
        InfoKind::Dummy => Kind::Dummy,
        InfoKind::Ifb
        | InfoKind::Nlmon
        | InfoKind::Vrf
        | InfoKind::Vcan
        | InfoKind::Vxcan
        | InfoKind::Can => Kind::Silent,
        _ => Kind::Plain,
    }
}

/// All devices and addresses of the network namespace, and what the maps say of them.
#[derive(Debug, Default)]
pub(super) struct Devices {
    links: BTreeMap<u32, Link>,
    /// Enrolled pods behind a device. Where that is more than one, none of them owns it.
    owners: BTreeMap<u32, BTreeSet<u32>>,
    addresses: BTreeSet<(u32, IpAddr)>,
    written: BTreeMap<u32, Device>,
    written_addresses: BTreeSet<IpAddr>,
    /// Whether what passes may be put into the pods behind veths, without the node's IP stack.
    shortcuts: bool,
}

impl Devices {
    /// Reads what an agent before left.
    pub(super) fn adopt(maps: &Maps) -> Result<Self, SteeringError> {
        let written: BTreeMap<u32, Device> = maps.all_devices()?.into_iter().collect();
        let owned = written.iter().filter(|(_, device)| device.owner != 0);
        Ok(Self {
            owners: owned.map(|(index, device)| (*index, BTreeSet::from([device.owner]))).collect(),
            written_addresses: maps
                .all_host_addresses()?
                .into_iter()
                .map(|(address, _)| address.into())
                .collect(),
            written,
            shortcuts: true,
            ..Self::default()
        })
    }

    /// Says whether packets that pass may be put into pods; counts for connections that open from then on.
    pub(super) fn set_shortcuts(&mut self, maps: &mut Maps, on: bool) -> Result<(), SteeringError> {
        self.shortcuts = on;
        let known: Vec<u32> = self.links.keys().copied().collect();
        known.into_iter().try_for_each(|index| self.write(maps, index))
    }

    /// The device with this index.
    pub(super) fn link(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    /// The devices with a program at their ingress.
    pub(super) fn attended(&self) -> impl Iterator<Item = (Hook, &Link)> {
        self.links.values().filter_map(|link| Some((link.program_of_ingress()?, link)))
    }

    /// What fits through the devices of all enrolled pods; nothing while there are none.
    pub(super) fn least_mtu(&self) -> Option<u32> {
        self.owners.keys().filter_map(|index| self.links.get(index)).map(|link| link.mtu).min()
    }

    /// The pod that owns a device.
    pub(super) fn owner(&self, index: u32) -> u32 {
        match self.owners.get(&index).map(|pods| (pods.len(), pods.first())) {
            Some((1, Some(pod))) => *pod,
            _ => 0,
        }
    }

    /// Admits only the addresses of `pod` on the device.
    pub(super) fn own(&mut self, maps: &mut Maps, index: u32, pod: u32) -> Result<(), SteeringError> {
        let elsewhere: Vec<u32> = self
            .owners
            .iter()
            .filter(|(i, pods)| **i != index && pods.contains(&pod))
            .map(|(i, _)| *i)
            .collect();
        for former in elsewhere {
            self.remove_owner(maps, former, pod)?;
        }
        self.owners.entry(index).or_default().insert(pod);
        self.write(maps, index)
    }

    /// Admits any address on the devices of `pod` again.
    pub(super) fn disown(&mut self, maps: &mut Maps, pod: u32) -> Result<(), SteeringError> {
        let owned: Vec<u32> =
            self.owners.iter().filter(|(_, pods)| pods.contains(&pod)).map(|(index, _)| *index).collect();
        owned.into_iter().try_for_each(|index| self.remove_owner(maps, index, pod))
    }

    fn remove_owner(&mut self, maps: &mut Maps, index: u32, pod: u32) -> Result<(), SteeringError> {
        if let Some(pods) = self.owners.get_mut(&index) {
            pods.remove(&pod);
            if pods.is_empty() {
                self.owners.remove(&index);
            }
        }
        self.write(maps, index)
    }

    /// Takes a device into account as it is now.
    pub(super) fn set_link(&mut self, maps: &mut Maps, link: Link) -> Result<(), SteeringError> {
        let index = link.index;
        self.links.insert(index, link);
        self.write(maps, index)
    }

    /// Forgets a device that is gone. Its number may be another's one day, so its owner is forgotten too.
    pub(super) fn remove_link(&mut self, maps: &mut Maps, index: u32) -> Result<(), SteeringError> {
        self.links.remove(&index);
        self.owners.remove(&index);
        self.addresses.retain(|(on, _)| *on != index);
        self.write(maps, index)?;
        self.write_addresses(maps)
    }

    /// Makes these all devices and addresses there are, and returns the devices that are gone.
    pub(super) fn replace(
        &mut self,
        maps: &mut Maps,
        links: Vec<Link>,
        addresses: BTreeSet<(u32, IpAddr)>,
    ) -> Result<Vec<u32>, SteeringError> {
        let present: BTreeSet<u32> = links.iter().map(|link| link.index).collect();
        let known: BTreeSet<u32> = self.links.keys().chain(self.written.keys()).copied().collect();
        let gone: Vec<u32> = known.difference(&present).copied().collect();
        self.links = links.into_iter().map(|link| (link.index, link)).collect();
        self.addresses = addresses;
        self.write_addresses(maps)?;
        for index in &gone {
            self.remove_link(maps, *index)?;
        }
        for index in present {
            self.write(maps, index)?;
        }
        Ok(gone)
    }

    /// Takes an address of the node into account.
    pub(super) fn add_address(
        &mut self,
        maps: &mut Maps,
        index: u32,
        address: IpAddr,
    ) -> Result<(), SteeringError> {
        self.addresses.insert((index, address));
        self.write_addresses(maps)
    }

    /// Forgets an address of the node.
    pub(super) fn remove_address(
        &mut self,
        maps: &mut Maps,
        index: u32,
        address: IpAddr,
    ) -> Result<(), SteeringError> {
        self.addresses.remove(&(index, address));
        self.write_addresses(maps)
    }

    /// Brings the kernel's entry of a device to what is known of it.
    fn write(&mut self, maps: &mut Maps, index: u32) -> Result<(), SteeringError> {
        let wanted = self.entry(index);
        if self.written.get(&index) == wanted.as_ref() {
            return Ok(());
        }
        match wanted {
            Some(device) => {
                maps.set_device(index, device)?;
                self.written.insert(index, device);
            }
            None => {
                maps.remove_device(index)?;
                self.written.remove(&index);
            }
        }
        Ok(())
    }

    fn entry(&self, index: u32) -> Option<Device> {
        let owner = self.owner(index);
        let link = self.links.get(&index);
        let device = Device {
            owner,
            flags: DeviceFlags::default()
                .with(
                    DeviceFlags::ETHERNET,
                    link.is_some_and(|link| link.ethernet && link.program_of_ingress().is_some()),
                )
                .with(DeviceFlags::SHORTCUT, self.shortcuts && link.is_some_and(|link| link.plain_veth)),
        };
        (device != Device::default()).then_some(device)
    }

    /// Brings the kernel's set of host addresses to what is known. New ones first: an address that moves between
    /// devices stays in the set.
    fn write_addresses(&mut self, maps: &mut Maps) -> Result<(), SteeringError> {
        let is_dummy = |index: &u32| self.links.get(index).is_some_and(|link| link.kind == Kind::Dummy);
        let wanted: BTreeSet<IpAddr> = self
            .addresses
            .iter()
            .filter(|(index, _)| !is_dummy(index))
            .map(|(_, address)| *address)
            .collect();
        for address in wanted.difference(&self.written_addresses) {
            maps.add_host_address(*address)?;
        }
        for address in self.written_addresses.difference(&wanted) {
            maps.remove_host_address(*address)?;
        }
        self.written_addresses = wanted;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
