//! At the ingress of the node's ends of the agent's devices: what the agent sends from addresses that are not the node's.
//!
//! To a pod of this node it is put straight into the pod: the agent has decided about it, and nothing on the node has anything to
//! add. Everything else is the node's to route, marked, so that neither `guard` nor conntrack has to look at it.
//!
//! Answers to what was turned around are the node's as well, and conntrack's: it may have translated the connection.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use mesh_common::{DeviceFlags, Outcome, Tables as _};

use crate::counters::count;
use crate::maps::{KernelTables, config, device};
use crate::parse::parse;
use crate::peer::put_into;

/// On to the next program; the value means the same to tcx (`TCX_NEXT`) and to clsact.
const NEXT: i32 = TC_ACT_UNSPEC;

/// Decides about one packet.
#[classifier]
pub(crate) fn deliver(ctx: TcContext) -> i32 {
    let config = config();
    // SAFETY: the context of a classifier is a valid `__sk_buff` for as long as the program runs.
    let (mark, index) = unsafe { ((*ctx.skb.skb).mark, (*ctx.skb.skb).ifindex) };
    if index == config.around_device {
        count(Outcome::DeliveredAround);
        set_mark(&ctx, config.decided(mark));
        return NEXT;
    }
    if let Some(pod) = pod_of(&ctx, index)
        && let Some(action) = put_into(&ctx, pod)
    {
        count(Outcome::DeliveredToPod);
        return action;
    }
    count(Outcome::DeliveredToNode);
    set_mark(&ctx, config.captured(mark));
    NEXT
}

/// The device of the pod that a packet is for, if it may be put into it.
#[inline(always)]
fn pod_of(ctx: &TcContext, index: u32) -> Option<u32> {
    let mut packet = MaybeUninit::uninit();
    let packet = parse(ctx, device(index), &mut packet).ok()?;
    let pod = KernelTables.pod(&packet.destination)?;
    device(pod.device)?.flags.has(DeviceFlags::SHORTCUT).then_some(pod.device)
}

#[inline(always)]
fn set_mark(ctx: &TcContext, mark: u32) {
    // SAFETY: the context of a classifier is a valid `__sk_buff` for as long as the program runs.
    unsafe { (*ctx.skb.skb).mark = mark };
}
