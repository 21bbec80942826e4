//! The generated messages and services, one module per protocol.
//!
//! The wire formats of other projects are written down in our own words in `proto/`, with their field numbers.
//! Two choices differ from plain prost: `bytes` fields and [`Any`] hold [`bytes::Bytes`], so that a resource is
//! encoded once and shared by every client it is sent to, and maps are ordered, so that equal messages have equal
//! bytes.

mod any;
mod certificate;
mod extension;
mod node;

pub use any::{Any, UnpackError};
pub use prost::Name;

/// Delta and state-of-the-world discovery (`envoy.service.discovery.v3`), who takes part in it, and the status
/// a NACK carries.
pub mod discovery {
    pub use super::generated::envoy::config::core::v3::{ControlPlane, Locality, Node};
    pub use super::generated::envoy::service::discovery::v3::*;
    pub use super::generated::google::rpc::Status;
}

/// Workloads and services (`istio.workload`).
pub mod workload {
    pub use super::generated::istio::workload::*;
}

/// Authorization policies (`istio.security`).
pub mod security {
    pub use super::generated::istio::security::*;
}

/// Certificate signing (`istio.v1.auth`).
pub mod auth {
    pub use super::generated::istio::v1::auth::*;
}

/// Our own extensions (`mesh.v1`).
pub mod mesh {
    pub use super::generated::mesh::v1::*;
}

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::cast_possible_truncation,
    reason = "generated code: the packages nest in modules without docs of their own"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/packages.rs"));
}
