//! The few rtnetlink requests that a lab needs, by device name, with errors that say what was asked.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use ipnet::IpNet;
use netlink_packet_route::address::{AddressHeaderFlags, AddressScope};
use netlink_packet_route::link::{InfoData, InfoVeth};
use netlink_packet_route::route::{RouteMessage, RouteScope};
use nix::net::if_::if_nametoindex;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::netns::Namespace;

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct NetlinkError {
    what: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl NetlinkError {
    fn new(what: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { what: what.to_owned(), source: source.into() }
    }
}

/// A route by way of a device.
#[derive(Debug)]
pub(super) struct Route<'a> {
    pub(super) to: IpNet,
    pub(super) via: Option<IpAddr>,
    pub(super) device: &'a str,
    /// Source address of connections from this machine that take the route.
    pub(super) source: Option<IpAddr>,
}

/// A connection to the kernel, bound to the namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens the connection; it is served by the Tokio runtime of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Brings a device up.
    pub(super) async fn up(&self, device: &str) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index(device)?).up().build();
        let done = self.handle.link().set(message).execute().await;
        done.map_err(|error| NetlinkError::new(&format!("bring {device} up"), error))
    }

    /// Removes a device.
    pub(super) async fn remove(&self, device: &str) -> Result<(), NetlinkError> {
        let done = self.handle.link().del(index(device)?).execute().await;
        done.map_err(|error| NetlinkError::new(&format!("remove {device}"), error))
    }

    /// Makes a bridge, up.
    pub(super) async fn add_bridge(&self, name: &str) -> Result<(), NetlinkError> {
        let done = self.handle.link().add(LinkBridge::new(name).build()).execute().await;
        done.map_err(|error| NetlinkError::new(&format!("make the bridge {name}"), error))
    }

    /// Makes a veth: one end here, up; its peer in another namespace, down, since a veth refuses to open before it has its peer.
    pub(super) async fn add_veth(
        &self,
        name: &str,
        peer: &str,
        peer_namespace: &Namespace,
    ) -> Result<(), NetlinkError> {
        let peer_end = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer)
            .setns_by_fd(peer_namespace.as_fd().as_raw_fd())
            .build();
        let message =
            LinkVeth::new(name, peer).set_info_data(InfoData::Veth(InfoVeth::Peer(peer_end))).up().build();
        let done = self.handle.link().add(message).execute().await;
        done.map_err(|error| {
            NetlinkError::new(
                &format!("make the veth {name} to {} of {}", peer, peer_namespace.name()),
                error,
            )
        })
    }

    /// Makes a device a port of a bridge.
    pub(super) async fn add_port(&self, device: &str, bridge: &str) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index(device)?).controller(index(bridge)?).build();
        let done = self.handle.link().set(message).execute().await;
        done.map_err(|error| NetlinkError::new(&format!("add the port {device} to {bridge}"), error))
    }

    /// Gives a device an address.
    pub(super) async fn add_address(
        &self,
        device: &str,
        address: IpAddr,
        prefix: u8,
    ) -> Result<(), NetlinkError> {
        let mut request = self.handle.address().add(index(device)?, address, prefix);
        // Usable at once. The kernel ignores the flag for IPv4.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        // Otherwise the kernel might call the world from a gateway that many devices share.
        if matches!(address, IpAddr::V4(address) if address.is_link_local()) {
            request.message_mut().header.scope = AddressScope::Link;
        }
        let done = request.execute().await;
        done.map_err(|error| {
            NetlinkError::new(&format!("give {device} the address {address}/{prefix}"), error)
        })
    }

    /// Adds a route.
    pub(super) async fn add_route(&self, route: &Route<'_>) -> Result<(), NetlinkError> {
        let what = || format!("add the route to {} on {}", route.to, route.device);
        let message = route_message(route).map_err(|error| NetlinkError::new(&what(), error))?;
        let done = self.handle.route().add(message).execute().await;
        done.map_err(|error| NetlinkError::new(&what(), error))
    }
}

fn route_message(route: &Route<'_>) -> Result<RouteMessage, Box<dyn std::error::Error + Send + Sync>> {
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(route.to.addr(), route.to.prefix_len())
        .map_err(|error| error.to_string())?
        .output_interface(index(route.device)?);
    match route.via {
        // On-link: the gateway need not be inside of any prefix of the device.
        Some(via) => builder = builder.gateway(via).map_err(|error| error.to_string())?.onlink(),
        None if route.to.addr().is_ipv4() => builder = builder.scope(RouteScope::Link),
        None => {}
    }
    if let Some(source) = route.source {
        builder = builder.pref_source(source).map_err(|error| error.to_string())?;
    }
    Ok(builder.build())
}

/// The index of a device of the calling thread's namespace.
fn index(device: &str) -> Result<u32, NetlinkError> {
    if_nametoindex(device).map_err(|error| NetlinkError::new(&format!("find the device {device}"), error))
}
