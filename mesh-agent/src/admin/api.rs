//! What the admin socket says: the types that `meshctl` reads and `meshctl -o json` prints.
//!
//! Field names are an interface: programs read them. Fields may be added; those that are here keep their name and
//! meaning. Times are seconds, sizes bytes, addresses text.

mod identity;
mod mesh;
mod node;
mod policy;
mod traffic;

pub use identity::{IdentityReport, IdentityState, IdentityStatus, RootInfo};
pub use mesh::{EndpointInfo, ServiceInfo, ServicePortInfo, WorkloadInfo};
pub use node::{
    Attachment, Check, CheckStatus, ConfigOrigin, ConfigStatus, ConnectionCounts, Health, KubeletInfo,
    MeshCounts, PodCounts, PodInfo, PodState, ProgramInfo, RejectedResource, Status, SteeringReport, Version,
};
pub use policy::{AuthorizationInfo, PodPolicies, PolicyCheck, PolicyInfo, RuleCheck};
pub use traffic::{
    CandidateInfo, ConnectionInfo, DecisionInfo, Explanation, PeerInfo, SetAsideInfo, SteeringStage,
    SteeringVerdict,
};

use serde::{Deserialize, Serialize};

/// The paths of the API. All answer `GET` with JSON; [`LOG`](path::LOG) and [`BPF_STATS`](path::BPF_STATS) take
/// `PUT`.
pub mod path {
    /// [`Status`](super::Status).
    pub const STATUS: &str = "/v1/status";
    /// List of [`Check`](super::Check).
    pub const CHECK: &str = "/v1/check";
    /// List of [`PodInfo`](super::PodInfo).
    pub const PODS: &str = "/v1/pods";
    /// List of [`WorkloadInfo`](super::WorkloadInfo); `?namespace=` selects.
    pub const WORKLOADS: &str = "/v1/workloads";
    /// List of [`ServiceInfo`](super::ServiceInfo); `?namespace=` selects.
    pub const SERVICES: &str = "/v1/services";
    /// List of [`ConnectionInfo`](super::ConnectionInfo), oldest first.
    pub const CONNECTIONS: &str = "/v1/connections";
    /// [`Explanation`](super::Explanation) of `?client=&destination=`.
    pub const EXPLAIN: &str = "/v1/explain";
    /// [`IdentityReport`](super::IdentityReport).
    pub const IDENTITIES: &str = "/v1/identities";
    /// List of [`PodPolicies`](super::PodPolicies); `?pod=` selects.
    pub const POLICIES: &str = "/v1/policies";
    /// [`SteeringReport`](super::SteeringReport).
    pub const BPF: &str = "/v1/bpf";
    /// [`Toggle`](super::Toggle): whether the kernel measures the run time of programs.
    pub const BPF_STATS: &str = "/v1/bpf/stats";
    /// Everything, as one object.
    pub const DUMP: &str = "/v1/dump";
    /// [`LogFilter`](super::LogFilter).
    pub const LOG: &str = "/v1/log";
}

/// A request that could not be answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Why.
    pub error: String,
}

/// The log filter in force, or the one to set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFilter {
    /// A level or a list of directives.
    pub filter: String,
}

/// Switches something on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toggle {
    /// On.
    pub enabled: bool,
}
