//! When the kernel looks for a listening socket in the agent's network namespace: which of the agent's it is.
//!
//! Everything that comes in there has been decided about by `steer` or `guard`; which of the two shows in the device. Unlike an
//! assignment at the ingress this also works for a SYN that revives a TIME_WAIT tuple.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::helpers::generated::bpf_sk_assign;
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use mesh_common::{Address, Arrival, Family, Outcome, agent_device, spread};

use crate::counters::count;
use crate::listeners::Listener;
use crate::maps::config;

const SK_PASS: u32 = 1;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;

/// Reads a field of the context. Volatile, and never inside of a branch: the verifier wants every field at its fixed
/// offset, and the compiler joins the loads of two branches into one at a computed offset.
macro_rules! read {
    ($ctx:expr, $($field:tt)+) => {{
        let lookup: *const bpf_sk_lookup = $ctx.lookup;
        // SAFETY: the context is valid for as long as the program runs.
        unsafe { (&raw const (*lookup).$($field)+).read_volatile() }
    }};
}

/// Reads an address in both families; the kernel answers zeroes for the one it is not.
macro_rules! addresses {
    ($ctx:expr, $v4:ident, $v6:ident) => {
        (
            Address::v4(read!($ctx, $v4)),
            Address::v6([read!($ctx, $v6[0]), read!($ctx, $v6[1]), read!($ctx, $v6[2]), read!($ctx, $v6[3])]),
        )
    };
}

/// Answers one look-up. Always `SK_PASS`: without a choice of ours the kernel looks on in its own tables.
#[sk_lookup]
pub(crate) fn pick_listener(ctx: SkLookupContext) -> u32 {
    if let Some(outcome) = pick(&ctx) {
        count(outcome);
    }
    SK_PASS
}

/// `None` for protocols that are none of our business.
#[inline(always)]
fn pick(ctx: &SkLookupContext) -> Option<Outcome> {
    if read!(ctx, protocol) != IPPROTO_TCP {
        return None;
    }
    let (source_v4, source_v6) = addresses!(ctx, remote_ip4, remote_ip6);
    let (destination_v4, destination_v6) = addresses!(ctx, local_ip4, local_ip6);
    let (family, source, destination) = match read!(ctx, family) {
        AF_INET => (Family::V4, source_v4, destination_v4),
        AF_INET6 => (Family::V6, source_v6, destination_v6),
        _ => return None,
    };
    let port = read!(ctx, local_port) as u16;
    let arrival =
        if read!(ctx, ingress_ifindex) == agent_device::AROUND { Arrival::Around } else { Arrival::Steered };

    let config = config();
    let core = spread(&source, u16::from_be(read!(ctx, remote_port)), &destination, port, config.listeners);
    let Some(listener) = Listener::find(&config, core, family, arrival) else {
        return Some(Outcome::NoListener);
    };
    // SAFETY: the context is ours, the socket is held until the release below.
    let result = unsafe { bpf_sk_assign(ctx.as_ptr(), listener.as_ptr().cast(), 0) };
    listener.release();
    // It may have been closed meanwhile.
    Some(if result == 0 { Outcome::Picked } else { Outcome::NoListener })
}
