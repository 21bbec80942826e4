//! When the kernel looks for a listening socket: which of the agent's it is.
//!
//! The context has no mark, so the same gate is asked again; nothing but steered packets can be delivered locally
//! to an address that is not the node's, so the answer is the same. Unlike an assignment at the ingress this also
//! works for a SYN that revives a TIME_WAIT tuple, and behind br_netfilter.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::helpers::generated::bpf_sk_assign;
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use mesh_common::{Address, Family, Flow, Gate, Outcome, gate, judge, spread};

use crate::counters::count;
use crate::listeners::Listener;
use crate::maps::{KernelTables, config};

const SK_PASS: u32 = 1;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;

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
    // SAFETY: the context is valid for as long as the program runs.
    let lookup: &bpf_sk_lookup = unsafe { &*ctx.lookup };
    if lookup.protocol != IPPROTO_TCP {
        return None;
    }
    let (family, source, destination) = match lookup.family {
        AF_INET => (Family::V4, Address::v4(lookup.remote_ip4), Address::v4(lookup.local_ip4)),
        AF_INET6 => (Family::V6, Address::v6(lookup.remote_ip6), Address::v6(lookup.local_ip6)),
        _ => return None,
    };
    let port = lookup.local_port as u16;

    // The source was checked at the ingress; here the device may already be the bridge above it.
    let flow = Flow { source: &source, destination: &destination, device: 0, owner: 0 };
    let Gate::Candidate { source: from, destination: to } = gate(&KernelTables, &flow) else {
        return Some(Outcome::NotSteered);
    };
    if judge(&KernelTables, &from, &to, &destination, port).is_none() {
        return Some(Outcome::NotSteered);
    }

    let config = config();
    let core = spread(&source, u16::from_be(lookup.remote_port), &destination, port, config.listeners);
    let Some(listener) = Listener::find(&config, core, family) else {
        return Some(Outcome::NoListener);
    };
    // SAFETY: the context is ours, the socket is held until the release below.
    let result = unsafe { bpf_sk_assign(ctx.as_ptr(), listener.as_ptr().cast(), 0) };
    listener.release();
    // Another sk_lookup program before us may have chosen already (EEXIST).
    Some(if result == 0 { Outcome::Picked } else { Outcome::NotSteered })
}
