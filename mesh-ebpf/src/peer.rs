//! Puts packets into other network namespaces.

use aya_ebpf::helpers::generated::{bpf_redirect_peer, bpf_skb_change_type};
use aya_ebpf::programs::TcContext;

/// Addressed to whoever receives it (`linux/if_packet.h`).
const PACKET_HOST: u32 = 0;

/// Takes a packet that comes in to the other end of a veth, as if it had been sent through it, and says what to answer to the
/// kernel; `None` if it refuses.
///
/// The node's IP stack, its bridge, its rules and its queues are left out.
#[inline(always)]
pub(crate) fn put_into(ctx: &TcContext, device: u32) -> Option<i32> {
    // SAFETY: the context of a classifier is a valid `__sk_buff` for as long as the program runs.
    let addressed_to = unsafe { (*ctx.skb.skb).pkt_type };
    // On the port of a bridge it is addressed to somebody behind another port.
    // SAFETY: as above.
    if addressed_to != PACKET_HOST && unsafe { bpf_skb_change_type(ctx.skb.skb, PACKET_HOST) } != 0 {
        return None;
    }
    // SAFETY: takes numbers.
    Some(unsafe { bpf_redirect_peer(device, 0) as i32 })
}
