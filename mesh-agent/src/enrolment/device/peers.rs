//! The addresses at the other ends of the node's devices.
//!
//! A veth or netkit device says in which network namespace its other end is (`IFLA_LINK_NETNSID`, a number of this
//! namespace's own) and which device it is there (`IFLA_LINK`). Whoever has CAP_NET_ADMIN in the user namespace that owns
//! that namespace may ask for its addresses by the number (`IFA_TARGET_NETNSID`, Linux 4.20), with no access to the pod's
//! processes. Only a socket with `NETLINK_GET_STRICT_CHK` is understood so: any other is told the addresses of its own.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::Handle;
use tracing::debug;

/// A device of this namespace, and where its other end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// The device here.
    pub(super) device: u32,
    /// The namespace of its other end, as this one numbers it.
    pub(super) namespace: i32,
    /// The other end's number there.
    pub(super) peer: u32,
}

/// Asks for them.
pub(super) struct Peers {
    netlink: Handle,
}

/// Which addresses are at the other end of which devices.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    devices: HashMap<IpAddr, Vec<u32>>,
    known: HashSet<u32>,
}

impl Peers {
    pub(super) fn open() -> std::io::Result<Self> {
        let (connection, netlink, _) = rtnetlink::new_connection_with_strict_check()?;
        tokio::spawn(connection);
        Ok(Self { netlink })
    }

    /// The addresses at these ends. One that is gone by now, or may not be asked, has none.
    pub(super) async fn addresses(&self, ends: impl Iterator<Item = End>) -> Addresses {
        let mut found = Addresses::default();
        for end in ends {
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                match self.ask(end, family).await {
                    Ok(messages) => {
                        for address in messages.iter().filter_map(address) {
                            found.devices.entry(address).or_default().push(end.device);
                            found.known.insert(end.device);
                        }
                    }
                    Err(error) => debug!(device = end.device, %error, "no answer about its other end"),
                }
            }
        }
        found
    }

    async fn ask(&self, end: End, family: AddressFamily) -> Result<Vec<AddressMessage>, rtnetlink::Error> {
        let mut request = self.netlink.address().get();
        let message = request.message_mut();
        message.header.family = family;
        message.header.index = end.peer;
        message.attributes.push(AddressAttribute::TargetNetNsId(end.namespace));
        request.execute().try_collect().await
    }
}

impl Addresses {
    /// The devices whose other end has this address.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = u32> + '_ {
        self.devices.get(&address).into_iter().flatten().copied()
    }

    /// Whether the other end of the device has an address that could be a pod's.
    pub(super) fn has_any(&self, device: u32) -> bool {
        self.known.contains(&device)
    }
}

/// What an end can be reached by. Link-local addresses are the kernel's own doing, and every end has one.
fn address(message: &AddressMessage) -> Option<IpAddr> {
    let address =
        |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    let local = address(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let found = local.or_else(|| {
        address(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    });
    found.filter(|address| match address {
        IpAddr::V4(address) => !address.is_link_local() && !address.is_loopback(),
        IpAddr::V6(address) => !address.is_unicast_link_local() && !address.is_loopback(),
    })
}
