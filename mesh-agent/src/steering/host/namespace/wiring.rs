//! The devices between the node and the agent's network namespace, and the routes there.
//!
//! ```text
//! 1: iif steered             lookup 1     what comes in is delivered, whatever its address
//! 1: iif around              lookup 1
//! 2: fwmark AGENT iif lo     lookup 2     what belongs to a connection that was turned around is answered that way
//! table 1:     local default dev lo
//! table 2:     default via GATEWAY dev around
//! table main:  default via GATEWAY dev steered
//! ```
//!
//! `GATEWAY` is the node, whose address nobody has to ask for: there is a permanent entry for it.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use futures::{StreamExt as _, TryStreamExt as _};
use mesh_common::agent_device;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::runtime;

use super::super::error::rtnetlink_io;
use super::super::netlink::{connect, lacks_family};
use super::super::{HostError, Mark};
use super::NamespaceThread;

/// Name of the node's end of the device for what is steered where it comes in.
pub const STEERED: &str = "mesh-steered";
/// Name of the node's end of the device for what is turned around on its way into a pod.
pub const AROUND: &str = "mesh-around";

/// The loopback device, in every network namespace.
const LOOPBACK: u32 = 1;
/// Tables of the agent's network namespace.
const DELIVERED: u32 = 1;
const ANSWERED_AROUND: u32 = 2;
/// Preferences of its rules, after that for its own addresses.
const BY_DEVICE: u32 = 1;
const BY_MARK: u32 = 2;

/// The node, as the agent's network namespace sees it. Link-local, and nobody else's there.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// What is turned around has come by any device, and was cut to fit that; segments are kept short (see `proxy::socket`).
const AROUND_MTU: u32 = 65_535;

/// Numbers that the kernel gives to network namespaces by itself begin at 0: one of the agent's must never become that of a pod's
/// once the agent is gone and programs still have it.
const FIRST_ID: i32 = 1 << 30;
/// An agent before may be about to lose its number.
const ID_ATTEMPTS: usize = 16;

/// A pair of devices.
struct Wire {
    /// The node's end.
    node: &'static str,
    node_mac: [u8; 6],
    /// The agent's end.
    agent: &'static str,
    agent_index: u32,
    agent_mac: [u8; 6],
}

/// How many devices lead there.
pub const DEVICES: usize = 2;

const WIRES: [Wire; DEVICES] = [
    Wire {
        node: STEERED,
        node_mac: [0x02, b'm', b'e', b's', b'h', 1],
        agent: "steered",
        agent_index: agent_device::STEERED,
        agent_mac: [0x02, b'm', b'e', b's', b'h', 2],
    },
    Wire {
        node: AROUND,
        node_mac: [0x02, b'm', b'e', b's', b'h', 3],
        agent: "around",
        agent_index: agent_device::AROUND,
        agent_mac: agent_device::AROUND_MAC,
    },
];

/// Interface indexes of the node's ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    pub(super) steered: u32,
    pub(super) around: u32,
}

/// Netlink in both network namespaces.
#[derive(Debug)]
pub(super) struct Wires {
    node: Handle,
    agent: Handle,
}

impl Wires {
    pub(super) fn open(thread: &NamespaceThread) -> Result<Self, HostError> {
        let runtime = runtime::Handle::current();
        let agent = thread.run(move || {
            let _runtime = runtime.enter();
            connect()
        })??;
        Ok(Self { node: connect()?, agent })
    }

    /// Removes the devices of an agent that has ended. Its network namespace may be kept by what it sent last.
    pub(super) async fn remove_former(&self) -> Result<(), HostError> {
        remove_from(&self.node).await.map(drop)
    }

    /// Gives the agent's network namespace a number in the node's.
    pub(super) async fn number(&self, namespace: &File) -> Result<u32, HostError> {
        let failed = HostError::netlink("numbering the agent's network namespace");
        let mut result = Err(io::ErrorKind::AddrInUse.into());
        for _ in 0..ID_ATTEMPTS {
            let id = fastrand::i32(FIRST_ID..i32::MAX);
            result = self.assign(namespace.as_fd().as_raw_fd(), id).await.map(|()| id);
            if !matches!(&result, Err(error) if error.raw_os_error() == Some(libc::ENOSPC)) {
                break;
            }
        }
        let id = result.map_err(failed)?;
        u32::try_from(id).map_err(|_| HostError::Namespace(format!("its number is {id}")))
    }

    async fn assign(&self, namespace: RawFd, id: i32) -> io::Result<()> {
        let mut message = NsidMessage::default();
        let descriptor = u32::try_from(namespace).map_err(io::Error::other)?;
        message.attributes = vec![NsidAttribute::Fd(descriptor), NsidAttribute::Id(id)];
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNsId(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let mut answers = self.node.clone().request(request).map_err(rtnetlink_io)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(error.to_io());
            }
        }
        Ok(())
    }

    /// Makes the devices and the routes. `admit` is told of each device of the node before it is up.
    pub(super) async fn lay(
        &self,
        agent_mark: Mark,
        admit: impl Fn(&str) -> Result<(), HostError>,
    ) -> Result<Ends, HostError> {
        let of_node = super::of_thread()?;
        self.up(&self.agent, LOOPBACK).await?;
        for wire in &WIRES {
            self.add(wire, of_node.as_fd().as_raw_fd()).await?;
            admit(wire.node)?;
            self.up(&self.node, index(&self.node, wire.node).await?).await?;
            self.up(&self.agent, wire.agent_index).await?;
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            match self.route(family, agent_mark).await {
                // The kernel was built, or booted, without the family.
                Err(HostError::Netlink { source, .. })
                    if family == AddressFamily::Inet6 && lacks_family(&source) => {}
                done => done?,
            }
        }
        let ends =
            Ends { steered: index(&self.node, STEERED).await?, around: index(&self.node, AROUND).await? };
        self.set_mtu_of(ends.around, agent_device::AROUND, AROUND_MTU).await?;
        Ok(ends)
    }

    /// Makes a pair, each end in its namespace from the start.
    async fn add(&self, wire: &Wire, node: RawFd) -> Result<(), HostError> {
        let mut node_end = LinkMessageBuilder::<LinkUnspec>::new().name(wire.node).setns_by_fd(node).build();
        node_end.attributes.push(LinkAttribute::Address(wire.node_mac.to_vec()));
        let mut pair = LinkVeth::new(wire.agent, wire.node)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(node_end)))
            .build();
        pair.header.index = wire.agent_index;
        pair.attributes.push(LinkAttribute::Address(wire.agent_mac.to_vec()));
        let doing = format!("making the device {}", wire.node);
        self.agent.link().add(pair).execute().await.map_err(HostError::rtnetlink(doing))
    }

    async fn up(&self, netlink: &Handle, index: u32) -> Result<(), HostError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        netlink.link().set(message).execute().await.map_err(HostError::rtnetlink("setting a device up"))
    }

    async fn route(&self, family: AddressFamily, agent_mark: Mark) -> Result<(), HostError> {
        let rule = |preference: u32, table: u32, input: &str, specific: &[RuleAttribute]| {
            let mut rule = RuleMessage::default();
            rule.header.family = family;
            rule.header.action = RuleAction::ToTable;
            rule.attributes = vec![
                RuleAttribute::Priority(preference),
                RuleAttribute::Iifname(input.into()),
                RuleAttribute::Table(table),
            ];
            rule.attributes.extend_from_slice(specific);
            rule
        };
        let mark = [RuleAttribute::FwMark(agent_mark.value), RuleAttribute::FwMask(agent_mark.mask)];
        let rules = [
            rule(BY_DEVICE, DELIVERED, "steered", &[]),
            rule(BY_DEVICE, DELIVERED, "around", &[]),
            rule(BY_MARK, ANSWERED_AROUND, "lo", &mark),
        ];
        for wanted in rules {
            let mut request = self.agent.rule().add();
            *request.message_mut() = wanted;
            request
                .execute()
                .await
                .map_err(HostError::rtnetlink("adding a rule of the agent's namespace"))?;
        }
        let gateway = match family {
            AddressFamily::Inet => IpAddr::from(GATEWAY_V4),
            _ => GATEWAY_V6.into(),
        };
        for wire in &WIRES {
            let neighbour = self.agent.neighbours().add(wire.agent_index, gateway);
            let neighbour = neighbour.link_layer_address(&wire.node_mac);
            neighbour
                .execute()
                .await
                .map_err(HostError::rtnetlink("naming the node in the agent's namespace"))?;
        }
        let main = netlink_packet_route::route::RouteHeader::RT_TABLE_MAIN.into();
        let routes = [
            delivery(family),
            onwards(gateway, agent_device::AROUND, ANSWERED_AROUND),
            onwards(gateway, agent_device::STEERED, main),
        ];
        for wanted in routes {
            let request = self.agent.route().add(wanted);
            request
                .execute()
                .await
                .map_err(HostError::rtnetlink("adding a route of the agent's namespace"))?;
        }
        Ok(())
    }

    /// Sets what fits through the device for steered packets.
    pub(super) async fn set_mtu(&self, node_end: u32, mtu: u32) -> Result<(), HostError> {
        self.set_mtu_of(node_end, agent_device::STEERED, mtu).await
    }

    async fn set_mtu_of(&self, node_end: u32, agent_end: u32, mtu: u32) -> Result<(), HostError> {
        for (netlink, index) in [(&self.node, node_end), (&self.agent, agent_end)] {
            let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
            let doing = format!("setting the MTU of a device of the agent's to {mtu}");
            netlink.link().set(message).execute().await.map_err(HostError::rtnetlink(doing))?;
        }
        Ok(())
    }
}

/// Everything is the agent's.
fn delivery(family: AddressFamily) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family;
    route.header.kind = RouteType::Local;
    route.header.scope = RouteScope::Host;
    route.attributes = vec![RouteAttribute::Table(DELIVERED), RouteAttribute::Oif(LOOPBACK)];
    route
}

/// Everything is the node's to route.
fn onwards(gateway: IpAddr, device: u32, table: u32) -> RouteMessage {
    match gateway {
        IpAddr::V4(gateway) => RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .output_interface(device)
            .table_id(table)
            .onlink()
            .build(),
        IpAddr::V6(gateway) => RouteMessageBuilder::<Ipv6Addr>::new()
            .gateway(gateway)
            .output_interface(device)
            .table_id(table)
            .build(),
    }
}

/// Which of an agent's devices of this network namespace are not there, or down.
pub(super) async fn missing() -> Result<Vec<String>, HostError> {
    let netlink = connect()?;
    let mut missing = Vec::new();
    for wire in &WIRES {
        match link(&netlink, wire.node).await? {
            None => missing.push(format!("{} is not there", wire.node)),
            Some(link) if !link.header.flags.contains(LinkFlags::Up) => {
                missing.push(format!("{} is down", wire.node));
            }
            Some(_) => {}
        }
    }
    Ok(missing)
}

/// Removes an agent's devices from this network namespace.
pub(super) async fn remove() -> Result<usize, HostError> {
    remove_from(&connect()?).await
}

async fn remove_from(netlink: &Handle) -> Result<usize, HostError> {
    let mut removed = 0;
    for wire in &WIRES {
        let Some(link) = link(netlink, wire.node).await? else { continue };
        match netlink.link().del(link.header.index).execute().await.map_err(rtnetlink_io) {
            Ok(()) => removed += 1,
            // It went by itself.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => {
                return Err(HostError::netlink(format!("removing the device {}", wire.node))(error));
            }
        }
    }
    Ok(removed)
}

async fn index(netlink: &Handle, name: &str) -> Result<u32, HostError> {
    let found = link(netlink, name).await?;
    found
        .map(|link| link.header.index)
        .ok_or_else(|| HostError::Namespace(format!("the device {name} is gone")))
}

async fn link(netlink: &Handle, name: &str) -> Result<Option<LinkMessage>, HostError> {
    let found = netlink.link().get().match_name(name.to_owned()).execute().try_next().await;
    match found.map_err(rtnetlink_io) {
        Ok(link) => Ok(link),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(HostError::netlink(format!("looking for the device {name}"))(error)),
    }
}
