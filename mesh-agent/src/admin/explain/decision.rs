//! The agent's part: the proxy's own explanation, in the words of the API.

use std::net::SocketAddr;
use std::time::Instant;

use mesh_xds::identity::Identity;

use super::question::Question;
use crate::admin::api::{AuthorizationInfo, CandidateInfo, DecisionInfo, SetAsideInfo};
use crate::admin::policies;
use crate::admin::views::balancing;
use crate::config::Snapshot;
use crate::pods::LocalPods;
use crate::proxy::decision::{Because, Candidate, Explanation, NotPreserved, Path, SourceAddress, Unusable};
use crate::telemetry::{Direction, ResponseFlag};

pub(super) fn explain(mesh: &Snapshot, pods: &LocalPods, question: &Question) -> DecisionInfo {
    // Any port will do: no decision depends on the client's.
    let client = SocketAddr::new(question.client.ip(), 0);
    let explanation = Explanation::new(mesh, pods, client, question.destination, Instant::now());
    let authorizations = authorizations(mesh, pods, &explanation);
    let tiers = explanation.tiers.iter().enumerate();
    DecisionInfo {
        direction: explanation.direction,
        service: explanation.service,
        balancing: explanation.load_balancing.as_ref().map(balancing),
        candidates: tiers
            .flat_map(|(tier, candidates)| candidates.iter().map(move |candidate| describe(tier, candidate)))
            .collect(),
        set_aside: explanation
            .set_aside
            .iter()
            .map(|endpoint| SetAsideInfo {
                workload: endpoint.workload.to_string(),
                because: because(endpoint.because).into(),
            })
            .collect(),
        authorizations,
        refusal: explanation.reason,
        response_flag: (explanation.flag != ResponseFlag::None).then(|| explanation.flag.as_str().into()),
    }
}

/// What policy says of every pod of this node that could be reached.
fn authorizations(mesh: &Snapshot, pods: &LocalPods, explanation: &Explanation) -> Vec<AuthorizationInfo> {
    let client: Option<Identity> = explanation.identity.as_ref().and_then(|name| name.parse().ok());
    let ours = |candidate: &&Candidate| {
        candidate.server_side
            || explanation.direction == Direction::Inbound && candidate.path == Path::SameNode
    };
    let candidates = explanation.tiers.iter().flatten().filter(ours);
    candidates
        .filter_map(|candidate| {
            let pod = pods.enrolled_by_address(candidate.address.ip())?;
            policies::authorize(mesh, client.as_ref(), explanation.client.ip(), pod, candidate.address)
        })
        .collect()
}

fn describe(tier: usize, candidate: &Candidate) -> CandidateInfo {
    let (preserved, reason) = match candidate.source_address {
        SourceAddress::Preserved(address) => (Some(address.to_string()), None),
        SourceAddress::Node(reason) => (None, Some(not_preserved(reason).into())),
    };
    CandidateInfo {
        workload: candidate.workload.as_ref().map(ToString::to_string),
        node: candidate.node.as_ref().map(ToString::to_string),
        address: candidate.address.to_string(),
        tier,
        path: match candidate.path {
            Path::SameNode => "same node".into(),
            Path::Remote => "other node".into(),
            Path::Tunnel => "tunnel to its node".into(),
            Path::Waypoint => "tunnel to the waypoint".into(),
            Path::NetworkGateway => "tunnel through its network's gateway".into(),
            Path::Passthrough => "past the mesh".into(),
        },
        expects: match &candidate.tunnel {
            Some(tunnel) => tunnel.inner.clone().unwrap_or_else(|| tunnel.expected.clone()),
            None => Vec::new(),
        },
        preserved_source: preserved,
        source_reason: reason,
        weight: candidate.weight,
        active: candidate.active,
        failures: candidate.failures,
        ejected: candidate.ejected,
    }
}

fn not_preserved(reason: NotPreserved) -> &'static str {
    match reason {
        NotPreserved::UnknownDestination => "the mesh does not know the destination",
        NotPreserved::OutsideTheNodes => "the destination is on no node of the mesh",
        NotPreserved::HostNetwork => "the destination shares its node's address",
        NotPreserved::TheClientItself => "the destination is the client itself",
        NotPreserved::OtherNetwork => "the destination is in another network",
        NotPreserved::OtherFamily => "the client has no address of the destination's family",
    }
}

fn because(because: Because) -> &'static str {
    match because {
        Because::NotReady => "not ready",
        Because::NoWeight => "its weight is 0",
        Because::TooFar => "too far: it does not share what the service asks for",
        Because::Unusable(Unusable::OtherNetwork) => "in another network, which has no gateway",
        Because::Unusable(Unusable::UnknownGateway) => "in another network, whose gateway is not known",
        Because::Unusable(Unusable::NoPort) => "does not serve the port",
        Because::Unusable(Unusable::NoAddress) => "has no address",
    }
}
