//! At the ingress of every host-side device: which packets belong to the agent.
//!
//! Those are put into the agent's network namespace, where everything is delivered locally: no rule, route or table of the
//! node has a part in it, and what is not for the agent goes its way as if there were none. Packets of existing connections
//! are the agent's only if it holds a socket for them, so connections that are older than the enrolment, or were let past, go
//! on undisturbed.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use mesh_common::{Arrival, Capture, Config, Direction, Effect, Flow, Gate, Outcome, Pod, gate, judge};

use crate::counters::count;
use crate::flows::{self, Followed, NO_DEVICE};
use crate::listeners::agent_listens;
use crate::maps::{KernelTables, config, device};
use crate::parse::{Packet, parse};
use crate::peer::put_into;
use crate::reset::Back;
use crate::socket::{Connection, connection};

/// On to the next program; the value means the same to tcx (`TCX_NEXT`) and to clsact.
const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT as i32;

/// The way of a packet that passes.
struct Onward {
    /// Straight into the pod behind this device; through the node's IP stack where there is none.
    into: u32,
    /// To an enrolled pod of this node, whose `guard` is not to decide once more.
    to_enrolled: bool,
}

/// Decides about one packet.
#[classifier]
pub(crate) fn steer(ctx: TcContext) -> i32 {
    let mut onward = Onward { into: NO_DEVICE, to_enrolled: false };
    let outcome = decide(&ctx, &mut onward);
    count(outcome);
    match outcome.effect() {
        Effect::Pass | Effect::Reset if onward.into != NO_DEVICE => {
            put_into(&ctx, onward.into).unwrap_or(NEXT)
        }
        Effect::Pass | Effect::Reset if onward.to_enrolled => note_decided(&ctx),
        Effect::Pass
        | Effect::Reset
        | Effect::Lookup
        | Effect::Passage
        | Effect::Deliver
        | Effect::Connect => NEXT,
        Effect::Capture => put_into(&ctx, config().steered_device).unwrap_or(DROP),
        Effect::Drop => DROP,
    }
}

/// Says to `guard` that the packet may go on. On its way out of the node's network namespace it loses the mark.
#[inline(always)]
fn note_decided(ctx: &TcContext) -> i32 {
    // SAFETY: the context of a classifier is a valid `__sk_buff` for as long as the program runs.
    unsafe { (*ctx.skb.skb).mark = config().decided((*ctx.skb.skb).mark) };
    NEXT
}

/// Decides, and says which way a packet goes on that passes.
#[inline(always)]
fn decide(ctx: &TcContext, onward: &mut Onward) -> Outcome {
    let config = config();
    // SAFETY: the context of a classifier is a valid `__sk_buff` for as long as the program runs.
    let (mark, index) = unsafe { ((*ctx.skb.skb).mark, (*ctx.skb.skb).ifindex) };
    // Met before, at a device below this one. A pod cannot forge this: the mark does not survive the way out of its network
    // namespace.
    if config.owns(mark) {
        return Outcome::Marked;
    }
    let device = device(index);
    let mut packet = MaybeUninit::uninit();
    let packet = match parse(ctx, device, &mut packet) {
        Ok(packet) => packet,
        Err(outcome) => return outcome,
    };
    // Most packets behind an enrolled pod's device, and the ones that are to lose least time. That the sender is who it
    // says was seen when the flow was opened, if this is the device it was seen on.
    let owner = device.map_or(0, |device| device.owner);
    if owner != 0
        && let Some(outcome) = follow(ctx, packet, index, onward)
    {
        return outcome;
    }
    let flow = Flow { source: &packet.source, destination: &packet.destination, device: index, owner };
    let (source, destination) = match gate(&KernelTables, &flow) {
        Gate::Candidate { source, destination } => (source, destination),
        Gate::Pass(outcome) | Gate::Drop(outcome) => return outcome,
    };
    onward.to_enrolled = destination.may_have_captured();
    // Its sender is elsewhere, or the device is another now, or nobody's since its pod left the mesh.
    if let Some(outcome) = follow(ctx, packet, NO_DEVICE, onward) {
        return outcome;
    }
    if packet.opens() {
        match rules(packet, &source, &destination) {
            None => Outcome::Excluded,
            // A verdict is a decision of the agent's, taken already: it holds whether an agent is there now or not.
            Some(_) if flows::open(ctx, packet, &source, &destination) => Outcome::Verdict,
            Some(capture) => new_connection(&config, packet, capture),
        }
    } else {
        existing_connection(ctx, &config, packet, &source, &destination)
    }
}

/// Follows the connection of a packet that passes, if it is of one.
#[inline(always)]
fn follow(ctx: &TcContext, packet: &Packet, index: u32, onward: &mut Onward) -> Option<Outcome> {
    match flows::follow(ctx, packet, index) {
        Followed::NoFlow => None,
        Followed::Passes { into, to_pod } => {
            *onward = Onward { into, to_enrolled: to_pod };
            Some(Outcome::Flow)
        }
        Followed::Ends { expected, to_pod } => {
            *onward = Onward { into: flows::shortcut_of(packet), to_enrolled: to_pod };
            Some(flows::cut(ctx, packet, expected, Back::Out))
        }
    }
}

/// The first packet of a connection follows the pod's rules.
#[inline(never)]
fn rules(packet: &Packet, source: &Pod, destination: &Pod) -> Option<Capture> {
    judge(&KernelTables, source, destination, &packet.destination, packet.port())
}

/// One that its pod's rules give to the agent.
#[inline(always)]
fn new_connection(config: &Config, packet: &Packet, capture: Capture) -> Outcome {
    let Capture { direction, fail_closed } = capture;
    if !agent_listens(config, packet.family, Arrival::Steered) {
        return if fail_closed { Outcome::FailClosed } else { Outcome::FailOpen };
    }
    match direction {
        Direction::Outbound => Outcome::Outbound,
        Direction::Inbound => Outcome::Inbound,
    }
}

/// Later packets follow the first: to the agent if it took that, past it if not.
#[inline(never)]
fn existing_connection(
    ctx: &TcContext,
    config: &Config,
    packet: &Packet,
    source: &Pod,
    destination: &Pod,
) -> Outcome {
    match connection(ctx, packet, config, Arrival::Steered) {
        Connection::Open => Outcome::Established,
        Connection::Cookie => Outcome::Cookie,
        Connection::Unknown => Outcome::NoSocket,
        // The tuple may have been taken again by a connection that goes past the agent, because no agent listens,
        // the rules changed or the pod left. Only where that cannot be is the packet a late one of the old.
        Connection::TimeWait => match rules(packet, source, destination) {
            Some(_) if agent_listens(config, packet.family, Arrival::Steered) => Outcome::Established,
            _ => Outcome::NoSocket,
        },
    }
}
