//! A number that changes with the layout of the maps.

use crate::address::Address;
use crate::connect::{LocalEndpoints, Replaced, ServicePort, Tuple};
use crate::maps::{Action, CidrRule, Config, Device, LISTENER_SLOTS, Pod, PortRule, capacity};
use crate::outcome::Outcome;
use crate::passage::{FlowEvent, FlowKey, FlowState, Verdict, VerdictKey};

/// Fingerprint of every key, value and capacity, and of the counters: FNV-1a over their sizes and numbers.
///
/// Maps are shared with the programs of the agent before and after; a layout nobody remembered to give a new
/// version to must not be among them.
pub const LAYOUT: u32 = fingerprint(&[
    capacity::PODS,
    size(size_of::<Address>()),
    size(size_of::<Pod>()),
    capacity::DEVICES,
    size(size_of::<Device>()),
    capacity::HOST_ADDRS,
    capacity::PORT_RULES,
    size(size_of::<PortRule>()),
    capacity::CIDR_RULES,
    size(size_of::<CidrRule>()),
    size(size_of::<Action>()),
    LISTENER_SLOTS,
    size(Outcome::ALL.len()),
    size(size_of::<Config>()),
    capacity::VERDICTS,
    size(size_of::<VerdictKey>()),
    size(size_of::<Verdict>()),
    capacity::FLOWS,
    size(size_of::<FlowKey>()),
    size(size_of::<FlowState>()),
    capacity::FLOW_EVENT_BYTES,
    size(size_of::<FlowEvent>()),
    capacity::CGROUPS,
    capacity::SERVICES,
    size(size_of::<LocalEndpoints>()),
    capacity::CONNECTING,
    size(size_of::<Replaced>()),
    capacity::OPENED_TO,
    size(size_of::<Tuple>()),
    size(size_of::<ServicePort>()),
    capacity::KUBELETS,
]);

#[allow(
    clippy::cast_possible_truncation,
    reason = "sizes of small structures; evaluated by the compiler only"
)]
const fn size(size: usize) -> u32 {
    size as u32
}

const fn fingerprint(numbers: &[u32]) -> u32 {
    let mut hash = 0x811c_9dc5_u32;
    let mut rest = numbers;
    while let [number, tail @ ..] = rest {
        hash = (hash ^ *number).wrapping_mul(0x0100_0193);
        rest = tail;
    }
    hash
}
