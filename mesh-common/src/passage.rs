//! Passage: connections that the kernel lets through on the agent's word.
//!
//! The agent decides once for a source, a destination and a port, and leaves a [`Verdict`]. The next SYN that finds it
//! starts a flow ([`FlowState`]), and its packets do not go to the agent. Between two pods of this node they go straight from
//! pod to pod; `steer` counts them, for each passes the ingress of its sender's device, and of no other. Where the other end
//! is elsewhere, `steer` counts them as well, at whatever device they come in, or `guard` does, if the node has
//! translated their addresses meanwhile.
//!
//! A verdict has a *generation*, kept apart from it in a slot of its own. A flow remembers the generation it was
//! opened under, and every packet compares the two: so one write by the agent takes the verdict back for all flows
//! that live on it, those included that open at this very moment. What is sent on such a flow from then on is turned
//! into resets for both of its ends.

mod flow;
#[cfg(test)]
mod tests;

pub use flow::{
    End, FlowEvent, FlowEventKind, FlowKey, FlowState, Progress, Segment, Side, SideFlags, TcpFlags,
};

use crate::address::Address;
use crate::maps::Pod;

/// Names the connections that one verdict is about.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(PartialOrd, Ord))]
pub struct VerdictKey {
    /// The pod that opens them.
    pub source: Address,
    /// The pod they are opened to.
    pub destination: Address,
    /// Destination port in host order.
    pub port: u16,
    /// Always zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<VerdictKey>() == 36);

impl VerdictKey {
    /// The key of a connection's destination port and both addresses.
    #[inline(always)]
    pub const fn new(source: Address, destination: Address, port: u16) -> Self {
        Self { source, destination, port, reserved: 0 }
    }
}

/// The agent's word that connections may pass. It holds while [`generation`](Self::generation) is the one in its
/// [`slot`](Self::slot).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Where in `GENERATIONS` its generation is.
    pub slot: u32,
    /// Never 0, so that a flow can be made to match no generation.
    pub generation: u32,
}

const _: () = assert!(size_of::<Verdict>() == 8);

/// Whether connections between two ends can be passed at all. One is a steered pod, behind a device that is known, where
/// every packet of it is seen, and nobody else's; so is the other, behind another device, or it is no pod of this node.
#[inline(always)]
pub const fn can_pass(source: &Pod, destination: &Pod) -> bool {
    (is_steered(source) && is_steered(destination) && source.device != destination.device)
        || (is_steered(source) && is_elsewhere(destination))
        || (is_elsewhere(source) && is_steered(destination))
}

#[inline(always)]
const fn is_steered(pod: &Pod) -> bool {
    pod.is_enrolled() && pod.device != 0
}

#[inline(always)]
const fn is_elsewhere(pod: &Pod) -> bool {
    pod.id == Pod::UNKNOWN.id
}
