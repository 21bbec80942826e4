//! What the kernel would do, by the code and the maps it would do it with.

use std::net::{IpAddr, SocketAddr};

use mesh_common::{
    Address, ConfigFlags, Direction, Flow, Gate, Outcome, Pod, Tables as _, gate, judge, judge_inbound,
};
use serde::Serialize;

use super::maps::Maps;

/// The kernel's answer to a new connection, apart from whether an agent listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Explanation {
    /// It goes past the mesh.
    Passed {
        /// The outcome it is counted as.
        outcome: &'static str,
    },
    /// It is dropped.
    Dropped {
        /// The outcome it is counted as.
        outcome: &'static str,
    },
    /// It goes to the agent.
    Captured {
        /// Whether it is taken on behalf of the pod that opens it.
        outbound: bool,
        /// Whether it is dropped while no agent listens.
        fail_closed: bool,
    },
    /// It goes to the agent from its way into the pod: the node itself sends it.
    TurnedAround {
        /// Whether it is dropped while no agent listens.
        fail_closed: bool,
    },
}

pub(super) fn explain(maps: &Maps, source: IpAddr, destination: SocketAddr) -> Explanation {
    let (source, address) = (Address::from(source), Address::from(destination.ip()));
    // As if the packet came in on the right device: who asks does not forge.
    let flow = Flow { source: &source, destination: &address, device: 0, owner: 0 };
    let (from, to) = match gate(maps, &flow) {
        Gate::Candidate { source, destination } => (source, destination),
        Gate::Pass(outcome) => return Explanation::Passed { outcome: outcome.name() },
        Gate::Drop(outcome) => return Explanation::Dropped { outcome: outcome.name() },
    };
    if maps.is_host_address(&source) {
        return explain_guard(maps, &to, destination.port());
    }
    match judge(maps, &from, &to, &address, destination.port()) {
        Some(capture) => Explanation::Captured {
            outbound: capture.direction == Direction::Outbound,
            fail_closed: capture.fail_closed,
        },
        None => Explanation::Passed { outcome: Outcome::Excluded.name() },
    }
}

/// As if not the kubelet sent it.
fn explain_guard(maps: &Maps, destination: &Pod, port: u16) -> Explanation {
    let knows_kubelet = maps.config().is_ok_and(|config| config.flags.has(ConfigFlags::KUBELET_KNOWN));
    match judge_inbound(maps, destination, port) {
        Some(_) if !knows_kubelet => Explanation::Passed { outcome: Outcome::NodeProcess.name() },
        Some(capture) => Explanation::TurnedAround { fail_closed: capture.fail_closed },
        None => Explanation::Passed { outcome: Outcome::Excluded.name() },
    }
}
