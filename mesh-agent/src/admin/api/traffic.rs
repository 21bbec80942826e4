//! Connections: those that are open and those that could be.

use super::policy::AuthorizationInfo;
use serde::{Deserialize, Serialize};

use crate::telemetry::{ConnectionSecurity, Direction, Transport};

/// One end of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// Address and port.
    pub address: String,
    /// Namespace of the workload, where the mesh knows it.
    pub namespace: Option<String>,
    /// Name of its pod.
    pub name: Option<String>,
    /// The SPIFFE identity of that workload.
    pub identity: Option<String>,
    /// The SPIFFE identity it has proved, by its certificate or by sending from its own device on this node.
    pub principal: Option<String>,
    /// Its node.
    pub node: Option<String>,
}

/// A connection that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    /// Unique while the agent runs.
    pub id: u64,
    /// The agent's role.
    pub direction: Direction,
    /// How the bytes travel.
    pub transport: Transport,
    /// How the two ends know each other.
    #[serde(default)]
    pub security: ConnectionSecurity,
    /// Who opened it.
    pub source: PeerInfo,
    /// Where the client wanted to go.
    pub original_destination: String,
    /// Where it leads.
    pub destination: Option<PeerInfo>,
    /// Service it was opened to.
    pub service: Option<String>,
    /// Bytes from the client to the server.
    pub bytes_to_server: u64,
    /// Bytes from the server to the client.
    pub bytes_to_client: u64,
    /// How long it has been open.
    pub age_milliseconds: u64,
    /// Endpoints that were tried.
    pub attempts: u32,
    /// Data-plane worker it belongs to.
    pub worker: usize,
}

/// What the kernel programs would do with the first packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SteeringVerdict {
    /// Hand it to the agent.
    Capture,
    /// Let it go its way.
    Pass,
    /// Drop it.
    Drop,
}

/// The kernel's part of an explanation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SteeringStage {
    /// What becomes of the first packet.
    pub verdict: SteeringVerdict,
    /// The counter it is counted in.
    pub outcome: String,
    /// For whom it is captured.
    pub direction: Option<Direction>,
    /// Why, one step per line.
    pub because: Vec<String>,
}

/// What would happen to a connection, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// What was asked for.
    pub requested: String,
    /// Who would open it.
    pub client: PeerInfo,
    /// The address that is, and who has it where that is a workload.
    pub destination: PeerInfo,
    /// What the kernel does.
    pub steering: SteeringStage,
    /// What the agent does with it, where the kernel hands it over.
    pub decision: Option<DecisionInfo>,
}

/// The agent's part of an explanation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionInfo {
    /// The agent's role.
    pub direction: Direction,
    /// The service, `namespace/hostname`.
    pub service: Option<String>,
    /// How its endpoints are chosen, in words.
    pub balancing: Option<String>,
    /// Where the connection could lead, the nearest first.
    pub candidates: Vec<CandidateInfo>,
    /// Endpoints of the service that cannot be chosen.
    pub set_aside: Vec<SetAsideInfo>,
    /// What policy says, for each pod of this node that could be reached.
    pub authorizations: Vec<AuthorizationInfo>,
    /// Why the connection would be refused.
    pub refusal: Option<String>,
    /// The refusal in metrics and access log.
    pub response_flag: Option<String>,
}

/// A place that a connection could lead to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateInfo {
    /// Uid of the workload, where the mesh knows it.
    pub workload: Option<String>,
    /// Its node.
    pub node: Option<String>,
    /// Address and port.
    pub address: String,
    /// How near it is, from 0; a later tier is used when nothing of the ones before answers.
    pub tier: usize,
    /// How the bytes get there: `same node`, `other node` or `past the mesh`.
    pub path: String,
    /// The identities that may answer at the end of the tunnel, where there is one.
    #[serde(default)]
    pub expects: Vec<String>,
    /// The client's address, where the server sees that.
    pub preserved_source: Option<String>,
    /// Why the server sees the node's address, where it does.
    pub source_reason: Option<String>,
    /// Share of traffic.
    pub weight: u32,
    /// Connections from this node to it that are open now.
    pub active: u32,
    /// Attempts to connect to it that failed in a row.
    pub failures: u32,
    /// Whether it is avoided for that.
    pub ejected: bool,
}

/// An endpoint that cannot be chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAsideInfo {
    /// Uid of the workload.
    pub workload: String,
    /// Why not.
    pub because: String,
}
