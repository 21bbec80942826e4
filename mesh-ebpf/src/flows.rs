//! Passes connections that the agent has a verdict for, and counts what they carry.

use core::arch::asm;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::TcContext;
use mesh_common::{
    DeviceFlags, End, FlowEvent, FlowEventKind, FlowKey, FlowState, Outcome, Pod, Progress, Side, TcpFlags,
    VerdictKey, can_pass,
};

use crate::counters::count;
use crate::maps::{FLOW_EVENTS, FLOWS, GENERATIONS, VERDICTS, device};
use crate::parse::Packet;
use crate::reset::{Back, reset_both_ends};
use crate::socket::agent_speaks_for;

/// Where a new flow is put together, for which the stack is too small.
#[map]
static NEW_FLOW: PerCpuArray<FlowState> = PerCpuArray::with_max_entries(1, 0);

/// No device has this index.
pub(crate) const NO_DEVICE: u32 = 0;
/// Where the source is in an Ethernet header.
const SOURCE_MAC: usize = 6;

/// What becomes of a packet of a passed connection, and whether it goes to a pod of this node.
#[derive(Clone, Copy)]
pub(crate) enum Followed {
    /// It belongs to no such.
    NoFlow,
    /// It goes on, and is counted: straight into the pod behind a device, or, where that is 0, through the node's IP stack.
    Passes { into: u32, to_pod: bool },
    /// It may not go on, nor may its connection; its receiver expects this number. To be [`cut`].
    Ends { expected: u32, to_pod: bool },
}

/// What becomes of a packet. None that came in on device `index` belongs to a connection whose sender is behind another;
/// [`NO_DEVICE`] is any device, for a packet whose sender is known to be who it says, or is elsewhere.
#[inline(never)]
pub(crate) fn follow(ctx: &TcContext, packet: &Packet, index: u32) -> Followed {
    let (key, sender) = key(packet);
    let Some(flow) = FLOWS.get_ptr_mut(&key) else { return Followed::NoFlow };
    // SAFETY: the element stays valid while the program runs. Another CPU may write to it; each field is an integer, and
    // the state is made for that (see `mesh_common`).
    let flow = unsafe { &mut *flow };
    if index != NO_DEVICE && flow.both(sender).0.device != index {
        return Followed::NoFlow;
    }
    // It would be a connection in the other direction, about which something else may have been decided.
    if packet.opens() && flow.client != sender as u32 {
        return Followed::NoFlow;
    }
    count_packets(ctx, flow.both(sender).0);
    let segment = packet.segment();
    let into = if packet.opens() { 0 } else { shortcut(flow, sender) };
    let to_pod = flow.both(sender).1.device != NO_DEVICE;
    if !holds(flow.slot, flow.generation) {
        // A reset on its way does what is to be done.
        if segment.flags.has(TcpFlags::RST) {
            return Followed::Passes { into, to_pod };
        }
        // SAFETY: has no preconditions.
        let now = unsafe { bpf_ktime_get_ns() };
        if packet.opens() && flow.is_over(now) {
            // The tuple is taken again, and may have another verdict by now.
            let _ = FLOWS.remove(&key);
            return Followed::NoFlow;
        }
        if flow.cut == 0 {
            flow.cut = now;
        }
        return Followed::Ends { expected: flow.side(sender).next(), to_pod };
    }
    if packet.opens() && flow.is_broken() {
        // The tuple is taken again.
        let _ = FLOWS.remove(&key);
        return Followed::NoFlow;
    }
    if segment.flags.has(TcpFlags::SYN) && segment.flags.has(TcpFlags::ACK) {
        flow.both(sender).0.mac = source_mac(ctx);
    }
    let kind = match flow.advance(sender, &segment) {
        Progress::None => return Followed::Passes { into, to_pod },
        Progress::Opened => FlowEventKind::Opened,
        Progress::Broken => FlowEventKind::Broken,
        Progress::Ended => FlowEventKind::Ended,
    };
    // What could not be told stays, to be found.
    if tell(&key, flow, kind) && kind == FlowEventKind::Ended {
        let _ = FLOWS.remove(&key);
    }
    Followed::Passes { into, to_pod }
}

/// The device of the pod that a packet is put into, or 0.
#[inline(always)]
fn shortcut(flow: &mut FlowState, sender: End) -> u32 {
    // Answered, and from the address it was sent to: nobody on the node translates it.
    if flow.shortcut == 0 || !flow.is_open() { 0 } else { flow.both(sender).1.device }
}

/// The same for a packet whose flow is to be looked up.
#[inline(never)]
pub(crate) fn shortcut_of(packet: &Packet) -> u32 {
    let (key, sender) = key(packet);
    // SAFETY: as in `follow`.
    FLOWS.get_ptr_mut(&key).map_or(0, |flow| shortcut(unsafe { &mut *flow }, sender))
}

/// Whether the pod behind a device may be reached without going through it.
#[inline(always)]
fn admits_shortcut(index: u32) -> bool {
    device(index).is_some_and(|device| device.flags.has(DeviceFlags::SHORTCUT))
}

/// Turns a packet of a connection that may not go on into its end.
#[inline(never)]
pub(crate) fn cut(ctx: &TcContext, packet: &Packet, expected: u32, back: Back) -> Outcome {
    if reset_both_ends(ctx, packet, &packet.segment(), expected, back) {
        Outcome::Cut
    } else {
        Outcome::Rewrite
    }
}

/// Passes a new connection, if there is a verdict that it may.
#[inline(never)]
pub(crate) fn open(ctx: &TcContext, packet: &Packet, source: &Pod, destination: &Pod) -> bool {
    if !can_pass(source, destination) {
        return false;
    }
    let verdict = VerdictKey::new(packet.source, packet.destination, packet.port());
    // SAFETY: the value is copied out at once; a concurrent update replaces the element, never a part of it.
    let Some(verdict) = unsafe { VERDICTS.get(&verdict) }.copied() else { return false };
    if !holds(verdict.slot, verdict.generation) {
        return false;
    }
    if agent_speaks_for(ctx, packet) {
        count(Outcome::TupleTaken);
        return false;
    }
    let (key, client) = key(packet);
    let Some(flow) = NEW_FLOW.get_ptr_mut(0) else { return false };
    // SAFETY: the element belongs to this CPU, and programs do not move between CPUs while they run.
    let flow = unsafe { &mut *flow };
    // SAFETY: has no preconditions.
    flow.opened = unsafe { bpf_ktime_get_ns() };
    flow.cut = 0;
    flow.slot = verdict.slot;
    flow.generation = verdict.generation;
    flow.client = client as u32;
    flow.shortcut = u32::from(admits_shortcut(source.device) && admits_shortcut(destination.device));
    let (client, server) = flow.both(client);
    *client = Side::opened(&packet.segment(), source.device, source_mac(ctx));
    *server = Side { device: destination.device, ..Side::default() };
    let opened = FLOWS.insert(&key, &*flow, u64::from(BPF_NOEXIST)).is_ok();
    if !opened {
        count(Outcome::FlowsFull);
    }
    opened
}

#[inline(always)]
fn key(packet: &Packet) -> (FlowKey, End) {
    FlowKey::of((packet.source, packet.source_port()), (packet.destination, packet.port()))
}

/// Whether a generation is the one in its slot.
#[inline(always)]
fn holds(slot: u32, generation: u32) -> bool {
    GENERATIONS.get(slot).is_some_and(|current| *current == generation)
}

/// Two CPUs may count at the same time, and nothing later would tell a lost packet. The addition returns nothing, for
/// which every kernel has an instruction; Rust has none for this target.
#[inline(always)]
fn count_packets(ctx: &TcContext, side: &mut Side) {
    // SAFETY: the context of a classifier is a valid `__sk_buff` for as long as the program runs.
    let segments = u64::from(unsafe { (*ctx.skb.skb).gso_segs }.max(1));
    // SAFETY: adds to an aligned integer that is borrowed, and touches nothing else.
    unsafe {
        asm!("lock *(u64 *)({counter} + 0) += {segments}", counter = in(reg) &raw mut side.packets, segments = in(reg) segments);
    }
}

/// Zeroes if there is none; the flow can then not be cut before its next packet.
#[inline(always)]
fn source_mac(ctx: &TcContext) -> [u8; 6] {
    ctx.load(SOURCE_MAC).unwrap_or_default()
}

/// Tells the agent; says whether there was room to.
#[inline(always)]
fn tell(key: &FlowKey, flow: &FlowState, kind: FlowEventKind) -> bool {
    let Some(mut event) = FLOW_EVENTS.reserve::<FlowEvent>(0) else {
        count(Outcome::EventLost);
        return false;
    };
    let memory = event.as_mut_ptr();
    // SAFETY: the reserved memory, written field by field and in whole: as one value it would take room on the stack.
    unsafe {
        (&raw mut (*memory).key).write(*key);
        (&raw mut (*memory).kind).write(kind as u32);
        (&raw mut (*memory).flow).write(*flow);
    }
    event.submit(0);
    true
}
