//! Follows the node's devices and addresses.
//!
//! Netlink tells every change; when it cannot keep up it says so, and everything is read anew. Once in a while that
//! is done anyway, which also tries again where attaching failed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt as _, TryStreamExt as _};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::devices::Link;
use super::{State, Steering, SteeringError};

/// How often everything is read anew without being told to.
const RESYNC: Duration = Duration::from_secs(30);
/// How long to wait before netlink is asked again after it failed.
const RETRY: Duration = Duration::from_secs(1);

type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, netlink_sys::SocketAddr)>;

/// Keeps the programs attached to the devices of the network namespace it was started in.
pub struct DeviceWatch {
    steering: Steering,
    netlink: Netlink,
}

impl DeviceWatch {
    /// Attaches the programs to what is there now, in place of those of an agent before. From here on the node
    /// steers; listeners should be set by now.
    ///
    /// # Errors
    /// If netlink or the kernel refuses. A single device that refuses is reported among the attachments instead.
    pub async fn start(steering: Steering) -> Result<Self, SteeringError> {
        let netlink = Netlink::open()?;
        let watch = Self { steering, netlink };
        watch.resync().await?;
        Ok(watch)
    }

    /// Follows the devices until `shutdown`. The programs stay attached.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut again = interval(RESYNC);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        again.tick().await;
        loop {
            let step = tokio::select! {
                () = shutdown.cancelled() => return,
                _ = again.tick() => Step::Resync,
                message = self.netlink.messages.next() => match message {
                    Some((message, _)) => self.apply(message.payload),
                    None => Step::Reopen,
                },
            };
            let result = match step {
                Step::Done => Ok(()),
                Step::Resync => self.resync().await,
                Step::Reopen => self.reopen().await,
            };
            if let Err(error) = result {
                warn!(%error, "devices are not up to date; reading them again");
                sleep(RETRY).await;
                again.reset_immediately();
            }
        }
    }

    async fn reopen(&mut self) -> Result<(), SteeringError> {
        self.netlink = Netlink::open()?;
        self.resync().await
    }

    /// Reads everything anew. Changes that come in meanwhile wait in the channel and are applied after.
    async fn resync(&self) -> Result<(), SteeringError> {
        let links = self.netlink.links().await?;
        let addresses = self.netlink.addresses().await?;
        let state = &mut *self.steering.lock();
        let State { maps, members, devices, attachments, .. } = state;
        // The node's addresses and devices are known to the kernel before the first packet is steered by them.
        let gone = devices.replace(maps, links, addresses)?;
        attachments.sync(devices, members, &gone);
        state.tell_mtu();
        Ok(())
    }

    fn apply(&self, payload: NetlinkPayload<RouteNetlinkMessage>) -> Step {
        let message = match payload {
            NetlinkPayload::InnerMessage(message) => message,
            NetlinkPayload::Overrun(_) => {
                debug!("netlink could not keep up");
                return Step::Resync;
            }
            _ => return Step::Done,
        };
        let mut state = self.steering.lock();
        let applied = state.apply(&message);
        state.tell_mtu();
        match applied {
            Ok(()) => Step::Done,
            Err(error) => {
                warn!(%error, "cannot follow a change of the node's devices");
                Step::Done
            }
        }
    }
}

enum Step {
    Done,
    Resync,
    Reopen,
}

impl State {
    fn apply(&mut self, message: &RouteNetlinkMessage) -> Result<(), SteeringError> {
        let Self { maps, members, devices, attachments, .. } = self;
        match message {
            // Other families tell of the same device in another role: AF_BRIDGE "deletes" a port that leaves.
            RouteNetlinkMessage::NewLink(message) if is_whole_device(message.header.interface_family) => {
                let link = Link::parse(message);
                devices.set_link(maps, link.clone())?;
                if let Some(hook) = link.program_of_ingress() {
                    attachments.attach(hook, &link);
                    attachments.sync_guards(devices, members);
                }
                Ok(())
            }
            RouteNetlinkMessage::DelLink(message) if is_whole_device(message.header.interface_family) => {
                attachments.forget(message.header.index);
                devices.remove_link(maps, message.header.index)
            }
            RouteNetlinkMessage::NewAddress(message) => match local_address(message) {
                Some((index, address)) => devices.add_address(maps, index, address),
                None => Ok(()),
            },
            RouteNetlinkMessage::DelAddress(message) => match local_address(message) {
                Some((index, address)) => devices.remove_address(maps, index, address),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

fn is_whole_device(family: AddressFamily) -> bool {
    family == AddressFamily::Unspec
}

/// The node's own address in a message; on a point-to-point device the other one is the peer's.
fn local_address(message: &AddressMessage) -> Option<(u32, IpAddr)> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    let address = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    })
    .or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    Some((message.header.index, address))
}

/// A netlink socket that receives changes and answers questions.
struct Netlink {
    handle: Handle,
    messages: Messages,
    connection: JoinHandle<()>,
}

impl Netlink {
    fn open() -> Result<Self, SteeringError> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, handle, messages) =
            new_multicast_connection(&groups).map_err(|error| SteeringError::Watch(error.to_string()))?;
        Ok(Self { handle, messages, connection: tokio::spawn(connection) })
    }

    async fn links(&self) -> Result<Vec<Link>, SteeringError> {
        let links: Vec<_> = self.handle.link().get().execute().try_collect().await.map_err(failed)?;
        Ok(links.iter().map(Link::parse).collect())
    }

    async fn addresses(&self) -> Result<BTreeSet<(u32, IpAddr)>, SteeringError> {
        let addresses: Vec<_> = self.handle.address().get().execute().try_collect().await.map_err(failed)?;
        Ok(addresses.iter().filter_map(local_address).collect())
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn failed(error: rtnetlink::Error) -> SteeringError {
    SteeringError::Watch(error.to_string())
}
