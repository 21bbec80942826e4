//! What the kernel would do, by the code and the maps it would do it with.

use std::net::{IpAddr, SocketAddr};

use mesh_common::{Address, Direction, Flow, Gate, gate, judge};
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
    match judge(maps, &from, &to, &address, destination.port()) {
        Some(capture) => Explanation::Captured {
            outbound: capture.direction == Direction::Outbound,
            fail_closed: capture.fail_closed,
        },
        None => Explanation::Passed { outcome: mesh_common::Outcome::Excluded.name() },
    }
}
