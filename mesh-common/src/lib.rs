//! The ABI between the kernel programs and the agent: what the maps hold, and the decision both sides take from it.
//!
//! Everything here is plain data without implicit padding, so that a value written by one side is the value read
//! by the other, and code without a system call, so that `meshctl explain` and the tests run what the kernel runs.
#![cfg_attr(not(any(test, feature = "user")), no_std)]

mod address;
mod connect;
mod decision;
mod layout;
mod maps;
mod outcome;
mod passage;
mod spread;

pub use address::Address;
pub use connect::{
    LocalEndpoint, LocalEndpoints, MAX_CGROUP_DEPTH, MAX_LOCAL_ENDPOINTS, Replaced, ServicePort, Tuple,
    admits,
};
pub use decision::{Capture, Direction, Flow, Gate, Tables, captures_outbound, gate, judge, judge_inbound};
pub use layout::LAYOUT;
pub use maps::{
    Action, Arrival, CIDR_RULE_PREFIX, CidrRule, Config, ConfigFlags, Device, DeviceFlags, Family,
    LISTENER_SLOTS, MAX_LISTENERS, Pod, PodFlags, PortRule, agent_device, capacity, listener_slot, name,
};
pub use outcome::{Effect, Outcome};
pub use passage::{
    End, FlowEvent, FlowEventKind, FlowKey, FlowState, Progress, Segment, Side, SideFlags, TcpFlags, Verdict,
    VerdictKey, can_pass,
};
pub use spread::spread;

/// Version of this ABI; part of the pin path together with [`LAYOUT`]. Raise it with a change of meaning that the
/// sizes do not show, so that an agent never reads the pinned maps of another.
pub const ABI_VERSION: u32 = 6;
