//! What would happen to a connection, and why: the kernel's part by the kernel's own maps, the agent's part by the
//! function that decides real connections.

mod decision;
mod question;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_common::Outcome;

use super::api::{Explanation, PeerInfo, SteeringStage, SteeringVerdict};
use super::routes::ApiError;
use super::state::{AdminState, KernelAnswer};
use crate::config::Snapshot;
use crate::pods::{LocalPod, LocalPods, Reason};
use crate::telemetry::Direction;
use question::Question;

pub(super) use question::elsewhere;

impl AdminState {
    /// Explains a connection from `client` (a pod's name or an address) to `destination` (`address:port` or
    /// `host:port`).
    pub(super) fn explain(&self, client: &str, destination: &str) -> Result<Explanation, ApiError> {
        let mesh = self.mesh.load();
        let pods = self.pods.load_full();
        let question = Question::parse(client, destination, &mesh, &pods)?;
        let steering = self.explain_steering(&question, &pods);
        let captured = steering.verdict == SteeringVerdict::Capture;
        Ok(Explanation {
            requested: destination.into(),
            client: peer(&mesh, question.client),
            destination: peer(&mesh, question.destination),
            decision: captured.then(|| decision::explain(&mesh, &pods, &question)),
            steering,
        })
    }

    fn explain_steering(&self, question: &Question, pods: &LocalPods) -> SteeringStage {
        let Question { client, destination } = *question;
        let mut because = Vec::new();
        let (source, target) = (pods.by_address(client.ip()), pods.by_address(destination.ip()));
        if let Some(pod) = source {
            because.push(membership(pod, client.ip()));
            if pod.enrolled {
                because.push(outbound_rule(pod, destination));
            }
        }
        if let Some(pod) = target {
            because.push(membership(pod, destination.ip()));
            if pod.enrolled {
                because.push(inbound_rule(pod, destination.port()));
            }
        }
        if source.is_none() && target.is_none() {
            because.push("neither address belongs to a pod of this node".into());
        }
        let answer = self.steering.explain(client.ip(), destination);
        let enrolled = |pod: Option<&Arc<LocalPod>>| pod.is_some_and(|pod| pod.enrolled);
        if answer == KernelAnswer::Pass(Outcome::NotEnrolled.name()) && (enrolled(source) || enrolled(target))
        {
            because.push("but the kernel has not been told so (yet): see meshctl check".into());
        }
        if answer == KernelAnswer::Pass(Outcome::HostAddress.name()) {
            because.push(format!(
                "{} is an address of the node itself, which is never steered",
                destination.ip()
            ));
        }
        if answer == KernelAnswer::Pass(Outcome::NodeProcess.name()) {
            because.push(format!(
                "{} is an address of the node itself, and the kubelet cannot be told from its other processes: see meshctl check",
                client.ip()
            ));
        }
        if let KernelAnswer::TurnAround { .. } = answer {
            because.push(format!(
                "{} is an address of the node itself: the connection is turned around on its way into the pod, unless it \
                 is the kubelet's",
                client.ip()
            ));
        }
        let (verdict, outcome, direction) = match answer {
            KernelAnswer::Pass(outcome) => (SteeringVerdict::Pass, outcome, None),
            KernelAnswer::Drop(outcome) => (SteeringVerdict::Drop, outcome, None),
            KernelAnswer::Capture { direction, fail_closed } => {
                let outcome = match direction {
                    Direction::Outbound => Outcome::Outbound,
                    Direction::Inbound => Outcome::Inbound,
                };
                self.captured(outcome, direction, fail_closed, &mut because)
            }
            KernelAnswer::TurnAround { fail_closed } => {
                self.captured(Outcome::Around, Direction::Inbound, fail_closed, &mut because)
            }
        };
        SteeringStage { verdict, outcome: outcome.into(), direction, because }
    }

    /// What becomes of a connection that is for the agent, whether there is one or not.
    fn captured(
        &self,
        outcome: Outcome,
        direction: Direction,
        fail_closed: bool,
        because: &mut Vec<String>,
    ) -> (SteeringVerdict, &'static str, Option<Direction>) {
        let (verdict, outcome) = if self.steering.is_attached() {
            (SteeringVerdict::Capture, outcome)
        } else {
            because.push("but no agent listens".into());
            match fail_closed {
                true => (SteeringVerdict::Drop, Outcome::FailClosed),
                false => (SteeringVerdict::Pass, Outcome::FailOpen),
            }
        };
        (verdict, outcome.name(), Some(direction))
    }
}

fn peer(mesh: &Snapshot, address: SocketAddr) -> PeerInfo {
    let workload = mesh.workload_by_address(address.ip());
    PeerInfo {
        // Port 0 stands for any.
        address: if address.port() == 0 { address.ip().to_string() } else { address.to_string() },
        namespace: workload.map(|workload| workload.namespace.to_string()),
        name: workload.map(|workload| workload.name().to_owned()),
        identity: workload.map(|workload| workload.identity().to_string()),
        principal: None,
        node: workload.map(|workload| workload.node.to_string()),
    }
}

fn membership(pod: &LocalPod, address: IpAddr) -> String {
    let enrolled = if pod.enrolled { "is enrolled" } else { "is not enrolled" };
    format!("{address} is pod {}/{} of this node, which {enrolled}", pod.namespace, pod.name)
}

fn outbound_rule(pod: &LocalPod, destination: SocketAddr) -> String {
    let verdict = pod.redirection.outbound(destination.ip(), destination.port());
    let what = if verdict.captured { "steered" } else { "left alone" };
    match verdict.reason {
        Reason::Default if verdict.captured => {
            "its outbound traffic is steered, and no rule excludes this destination".into()
        }
        Reason::Default => {
            "only some of its outbound traffic is steered, and no rule includes this destination".into()
        }
        Reason::Port(port) => format!("its rule for port {port} says: {what}"),
        Reason::Cidr(range) => format!("its rule for {range} says: {what}"),
        Reason::Tunnel => "the mesh's tunnels are always steered".into(),
    }
}

fn inbound_rule(pod: &LocalPod, port: u16) -> String {
    let verdict = pod.redirection.inbound(port);
    match (verdict.captured, verdict.reason) {
        (true, Reason::Default) => "its inbound traffic is steered, and no rule excludes this port".into(),
        (false, Reason::Default) => {
            format!("only some of its inbound ports are steered, and port {port} is not among them")
        }
        (true, Reason::Tunnel) => "the mesh's tunnels are always steered".into(),
        (true, _) => format!("its rule for port {port} says: steered"),
        (false, _) => format!("its rule for port {port} says: left alone"),
    }
}
