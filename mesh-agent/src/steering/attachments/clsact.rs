//! The way to attach before Linux 6.6: filters in the clsact queueing discipline of the device.

use std::io::ErrorKind;
use std::mem;

use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{Link as _, SchedClassifier};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::TcMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tracing::warn;

use super::chain;
use crate::steering::pins::Pins;
use crate::steering::programs::Hook;

/// First of all filters.
const PRIORITY: u16 = 1;
/// Ours among the filters of that priority, by a number that nobody has by chance: "me", "sh".
const HANDLE: TcHandle = TcHandle::new(0x6d65, 0x7368);

/// Attaches the program, or puts it in the place of the one of an agent before.
pub(super) fn attach(
    program: &mut SchedClassifier,
    hook: Hook,
    pins: &Pins,
    index: u32,
    name: &str,
) -> Result<(), String> {
    // There may be one already, ours or another's: what matters shows with the filter.
    if qdisc_add_clsact(name).is_ok() {
        pins.note_clsact_qdisc(index).map_err(|error| error.to_string())?;
    }
    pins.note_clsact_filter(hook, index).map_err(|error| error.to_string())?;
    let replaced =
        filter(name, hook).and_then(|link| program.attach_to_link(link).map_err(|error| chain(&error)));
    let id = match replaced {
        Ok(id) => id,
        Err(_) => {
            let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
            program
                .attach_with_options(name, hook.attach_type(), TcAttachOptions::Netlink(options))
                .map_err(|error| chain(&error))?
        }
    };
    let link = program.take_link(id).map_err(|error| chain(&error))?;
    // It holds nothing but numbers, and would remove the filter when dropped.
    mem::forget(link);
    Ok(())
}

/// Removes a program's filter.
pub(super) fn detach(hook: Hook, index: u32) {
    let Some(name) = device_name(index) else { return };
    let removed = filter(&name, hook).and_then(|link| link.detach().map_err(|error| chain(&error)));
    if let Err(error) = removed {
        warn!(device = %name, %error, program = hook.program(), "the clsact filter stays");
    }
}

/// Removes the queueing discipline of a device without filters, if it is ours.
pub(super) fn remove_own_qdisc(pins: &Pins, index: u32) {
    let Some(name) = device_name(index) else { return };
    if pins.clsact_qdiscs().contains(&index)
        && let Err(error) = remove_qdisc(index)
    {
        warn!(device = %name, %error, "the clsact queueing discipline stays");
    }
}

/// Our filter at a hook of a device, there or not.
fn filter(name: &str, hook: Hook) -> Result<SchedClassifierLink, String> {
    SchedClassifierLink::attached(name, hook.attach_type(), PRIORITY, HANDLE, None)
        .map_err(|error| error.to_string())
}

fn device_name(index: u32) -> Option<String> {
    let devices = nix::net::if_::if_nameindex().ok()?;
    let device = devices.iter().find(|device| device.index() == index)?;
    device.name().to_str().ok().map(str::to_owned)
}

/// aya has no call for this one.
fn remove_qdisc(index: u32) -> Result<(), String> {
    /// `TC_H_CLSACT`, parent of the queueing discipline.
    const CLSACT: (u16, u16) = (0xffff, 0xfff1);

    let mut message = TcMessage::default();
    message.header.index = i32::try_from(index).map_err(|error| error.to_string())?;
    message.header.parent = netlink_packet_route::tc::TcHandle { major: CLSACT.0, minor: CLSACT.1 };
    message.header.handle = netlink_packet_route::tc::TcHandle { major: CLSACT.0, minor: 0 };
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::DelQueueDiscipline(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);

    let exchange = || -> std::io::Result<Vec<u8>> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.send(&bytes, 0)?;
        Ok(socket.recv_from_full()?.0)
    };
    let answer = exchange().map_err(|error| error.to_string())?;
    let answer =
        NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(|error| error.to_string())?;
    match answer.payload {
        NetlinkPayload::Error(error)
            if error.code.is_some() && error.to_io().kind() != ErrorKind::NotFound =>
        {
            Err(error.to_io().to_string())
        }
        _ => Ok(()),
    }
}
