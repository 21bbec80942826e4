//! What to do with a packet, from its addresses and the maps. The kernel and `meshctl explain` run the same code.
//!
//! Two steps, because most packets belong to connections that exist: [`gate`] is asked for every TCP packet and
//! says whether the mesh may have anything to do with it; [`judge`] is asked for the first packet only and applies
//! the pod's rules. Rules that change later therefore never break a connection.

use crate::address::Address;
use crate::maps::{Action, CidrRule, Pod, PodFlags, PortRule};
use crate::outcome::Outcome;

/// The maps, as the decision reads them.
pub trait Tables {
    /// The pod that owns `address`.
    fn pod(&self, address: &Address) -> Option<Pod>;
    /// Whether `address` is one of the node's own.
    fn is_host_address(&self, address: &Address) -> bool;
    /// The rule for exactly this port.
    fn port_rule(&self, key: &PortRule) -> Option<Action>;
    /// The rule of the longest range that holds the address.
    fn cidr_rule(&self, key: &CidrRule) -> Option<Action>;
}

/// A connection seen from the outside, and where its packet came in.
#[derive(Debug, Clone, Copy)]
pub struct Flow<'a> {
    /// Source address.
    pub source: &'a Address,
    /// Destination address.
    pub destination: &'a Address,
    /// Interface index the packet came in on; 0 where that is not known, which skips the source check.
    pub device: u32,
    /// The enrolled pod behind that device; 0 for none.
    pub owner: u32,
}

/// What [`gate`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Nothing to do with the mesh.
    Pass(Outcome),
    /// Must not go on.
    Drop(Outcome),
    /// One end is, or was, an enrolled pod. The other may be [`Pod::UNKNOWN`].
    Candidate {
        /// The pod at the source.
        source: Pod,
        /// The pod at the destination.
        destination: Pod,
    },
}

/// Which way a connection goes, seen from the pod that the rules belong to.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// The pod opens it.
    Outbound = 0,
    /// The pod receives it.
    Inbound = 1,
}

/// A connection that belongs to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capture {
    /// On whose behalf.
    pub direction: Direction,
    /// Whether it must not pass by a missing agent.
    pub fail_closed: bool,
}

/// Whether the mesh may have anything to do with a packet, and whether its sender is who it says.
#[inline(always)]
pub fn gate<T: Tables>(tables: &T, flow: &Flow<'_>) -> Gate {
    let source = tables.pod(flow.source).unwrap_or(Pod::UNKNOWN);
    if is_spoofed(flow, &source) {
        return Gate::Drop(Outcome::Spoofed);
    }
    let destination = tables.pod(flow.destination).unwrap_or(Pod::UNKNOWN);
    if !source.may_have_captured() && !destination.may_have_captured() {
        return Gate::Pass(Outcome::NotEnrolled);
    }
    // An address has one owner: what belongs to a pod need not be looked up among the node's.
    if destination.id == 0 && tables.is_host_address(flow.destination) {
        return Gate::Pass(Outcome::HostAddress);
    }
    Gate::Candidate { source, destination }
}

/// Whether and in which direction a new connection between the pods of a [`Gate::Candidate`] is captured.
#[inline(always)]
pub fn judge<T: Tables>(
    tables: &T,
    source: &Pod,
    destination: &Pod,
    address: &Address,
    port: u16,
) -> Option<Capture> {
    let inbound = judge_inbound(tables, destination, port);
    let inbound_closed = inbound.is_some_and(|capture| capture.fail_closed);
    if source.is_enrolled() && captures_outbound(tables, source, address, port) {
        // Towards a pod of the same node this is the only device the packet is seen on, so the agent missing here
        // must not take away the protection of the destination.
        let fail_closed = source.flags.has(PodFlags::FAIL_CLOSED) || inbound_closed;
        return Some(Capture { direction: Direction::Outbound, fail_closed });
    }
    inbound
}

/// The same for a connection that reached `destination` without having been seen on the way in: who opened it is not
/// known, so that only the rules of the pod it is opened to are asked.
#[inline(always)]
pub fn judge_inbound<T: Tables>(tables: &T, destination: &Pod, port: u16) -> Option<Capture> {
    if destination.is_enrolled() && captures_inbound(tables, destination, port) {
        let fail_closed = destination.flags.has(PodFlags::FAIL_CLOSED);
        return Some(Capture { direction: Direction::Inbound, fail_closed });
    }
    None
}

/// A source address proves something only on the device of the pod that owns it.
#[inline(always)]
fn is_spoofed(flow: &Flow<'_>, source: &Pod) -> bool {
    if flow.device == 0 {
        return false;
    }
    if flow.owner != 0 && source.id != flow.owner {
        return !flow.source.is_link_local();
    }
    source.device != 0 && source.device != flow.device
}

/// Whether the rules of `pod` give its connections to this destination to the agent. The port names the service better
/// than the address does, so a port rule decides before any range.
#[inline(always)]
pub fn captures_outbound<T: Tables>(tables: &T, pod: &Pod, address: &Address, port: u16) -> bool {
    if pod.rules != 0 {
        if let Some(action) = tables.port_rule(&PortRule::new(pod.rules, Direction::Outbound, port)) {
            return action.captures();
        }
        if let Some(action) = tables.cidr_rule(&CidrRule::new(pod.rules, *address)) {
            return action.captures();
        }
    }
    pod.flags.has(PodFlags::CAPTURE_OUTBOUND)
}

#[inline(always)]
fn captures_inbound<T: Tables>(tables: &T, pod: &Pod, port: u16) -> bool {
    if pod.rules != 0
        && let Some(action) = tables.port_rule(&PortRule::new(pod.rules, Direction::Inbound, port))
    {
        return action.captures();
    }
    pod.flags.has(PodFlags::CAPTURE_INBOUND)
}

#[cfg(test)]
mod tests;
