//! At the egress of enrolled pods' host-side devices: what has come past `steer`, and is turned around into the agent.
//!
//! `steer` sees what comes in, with the addresses it comes in with. What a process of the node sends comes in nowhere, and
//! what is sent to a NodePort, a host port or a cluster IP is translated to the pod's address after it came in. All of
//! it leaves for the pod here. Such a packet is sent into the agent's network namespace instead, by a device for such.
//!
//! **The way back** is the node's. The listeners of such connections answer through the same device, so conntrack sees
//! the answers of the connection it has translated, and translates them back.
//!
//! **What passes** on a verdict of the agent's and was translated on its way in is followed here, where it has the addresses
//! that the pod's own packets have.
//!
//! **The kubelet** passes: its probes must not depend on policy. It is known by the cgroup of its sockets. Only first
//! packets are asked for it, later ones follow them.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_skb_cgroup_id, bpf_skb_change_head};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::TcContext;
use mesh_common::{
    Arrival, Config, ConfigFlags, DeviceFlags, Effect, Outcome, Pod, Tables as _, agent_device, capacity,
    judge_inbound,
};

use crate::counters::count;
use crate::flows::{self, Followed, NO_DEVICE};
use crate::listeners::agent_listens;
use crate::maps::{KernelTables, config, device};
use crate::parse::{Packet, hidden_destination, parse};
use crate::reset::Back;
use crate::socket::{Connection, connection};

#[map]
static KUBELETS: HashMap<u64, u32> = HashMap::pinned(capacity::KUBELETS, BPF_F_NO_PREALLOC);

/// On to the next program; the value means the same to tcx (`TCX_NEXT`) and to clsact.
const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT as i32;

/// Two addresses, and the protocol.
const ETHERNET_HEADER: u32 = 14;
const PROTOCOL: usize = 12;

/// Decides about one packet. What passes because there is nothing to decide is not counted: where it came in, it was.
#[classifier]
pub(crate) fn guard(ctx: TcContext) -> i32 {
    let Some(outcome) = decide(&ctx) else { return NEXT };
    let (outcome, action) = match outcome.effect() {
        Effect::Capture => turn_around(&ctx, outcome),
        Effect::Drop => (outcome, DROP),
        _ => (outcome, NEXT),
    };
    count(outcome);
    action
}

#[inline(always)]
fn decide(ctx: &TcContext) -> Option<Outcome> {
    let config = config();
    // SAFETY: the context of a classifier is a valid `__sk_buff` for as long as the program runs.
    let (mark, index, ingress) =
        unsafe { ((*ctx.skb.skb).mark, (*ctx.skb.skb).ifindex, (*ctx.skb.skb).ingress_ifindex) };
    // The agent sends it, or it has been decided about where it came in.
    if config.owns(mark) {
        return None;
    }
    let mut packet = MaybeUninit::uninit();
    let packet = match parse(ctx, device(index), &mut packet) {
        Ok(packet) => packet,
        Err(Outcome::Fragment | Outcome::ExtensionHeader) => return unread(ctx),
        Err(_) => return None,
    };
    let destination = KernelTables.pod(&packet.destination)?;
    // A bridge sends to all of its ports what is for nobody it knows: to the others it means nothing.
    let is_elsewhere = destination.device != 0 && destination.device != index;
    if !destination.may_have_captured() || is_elsewhere {
        return None;
    }
    match flows::follow(ctx, packet, NO_DEVICE) {
        Followed::NoFlow => {}
        Followed::Passes { .. } => return Some(Outcome::Flow),
        Followed::Ends { expected, .. } => return Some(flows::cut(ctx, packet, expected, Back::In)),
    }
    if packet.opens() {
        new_connection(ctx, &config, packet, &destination, ingress)
    } else {
        existing_connection(ctx, &config, packet, &destination, ingress)
    }
}

/// What cannot be read cannot be decided about, nor be turned around: ports and flags are in one of its fragments, or
/// behind extension headers. Nobody sends TCP so but to get past somebody.
#[inline(never)]
fn unread(ctx: &TcContext) -> Option<Outcome> {
    let destination = KernelTables.pod(&hidden_destination(ctx)?)?;
    destination.is_enrolled().then_some(Outcome::Hidden)
}

/// The first packet of a connection follows the rules of the pod it is opened to.
#[inline(never)]
fn new_connection(
    ctx: &TcContext,
    config: &Config,
    packet: &Packet,
    destination: &Pod,
    ingress: u32,
) -> Option<Outcome> {
    let capture = judge_inbound(&KernelTables, destination, packet.port())?;
    if ingress == 0 {
        if is_kubelet(ctx) {
            return Some(Outcome::Kubelet);
        }
        let is_known = config.flags.has(ConfigFlags::KUBELET_KNOWN);
        if !is_known && KernelTables.is_host_address(&packet.source) {
            return Some(Outcome::NodeProcess);
        }
    }
    Some(if agent_listens(config, packet.family, Arrival::Around) {
        Outcome::Around
    } else if capture.fail_closed {
        Outcome::FailClosed
    } else {
        Outcome::FailOpen
    })
}

/// Later packets follow the first: to the agent if it took that, past it if not.
#[inline(never)]
fn existing_connection(
    ctx: &TcContext,
    config: &Config,
    packet: &Packet,
    destination: &Pod,
    ingress: u32,
) -> Option<Outcome> {
    let is_ours = match connection(ctx, packet, config, Arrival::Around) {
        Connection::Open | Connection::Cookie => true,
        Connection::Unknown => false,
        // The tuple may have been taken again by a connection that goes past the agent; see `steer`.
        Connection::TimeWait => matches!(
            new_connection(ctx, config, packet, destination, ingress),
            Some(outcome) if outcome.effect() == Effect::Capture
        ),
    };
    is_ours.then_some(Outcome::AroundEstablished)
}

/// Whether the socket that sends the packet is the kubelet's: of its cgroup, not of one below, where some distributions
/// have the pods.
#[inline(always)]
fn is_kubelet(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid; the kernel answers 0 where there is no socket.
    let cgroup = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
    KUBELETS.get_ptr(cgroup).is_some()
}

/// Addresses the packet to the agent's end of the device for such, and sends it there.
#[inline(always)]
fn turn_around(ctx: &TcContext, outcome: Outcome) -> (Outcome, i32) {
    // SAFETY: the context of a classifier is a valid `__sk_buff` for as long as the program runs.
    let (index, protocol) = unsafe { ((*ctx.skb.skb).ifindex, (*ctx.skb.skb).protocol) };
    let is_ethernet = device(index).is_some_and(|device| device.flags.has(DeviceFlags::ETHERNET));
    if !is_ethernet {
        // SAFETY: as above.
        let room = unsafe { bpf_skb_change_head(ctx.skb.skb, ETHERNET_HEADER, 0) };
        if room != 0 || ctx.store(PROTOCOL, &(protocol as u16), 0).is_err() {
            return (Outcome::Rewrite, DROP);
        }
    }
    // The destination comes first in an Ethernet header.
    if ctx.store(0, &agent_device::AROUND_MAC, 0).is_err() {
        return (Outcome::Rewrite, DROP);
    }
    // SAFETY: takes numbers.
    (outcome, unsafe { bpf_redirect(config().around_device, 0) } as i32)
}
