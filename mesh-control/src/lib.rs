//! The control server of the mesh: reads Kubernetes resources and tells the agents of all nodes which workloads and
//! services there are, and who may connect to whom.
//!
//! ```text
//! source ──Change──▶ translate ──Delta──▶ mesh_xds::server ──gRPC──▶ agents
//!   │ kubernetes: watches of the Kubernetes API
//!   │ files: manifests in directories
//! ```
//!
//! A change travels the whole way as a change: a source says which resources differ, translation works out which
//! outputs depend on them, and every agent is sent just those. The server keeps no state of its own; any number of
//! them on the same source serve the same content under the same versions.

pub mod admission;
pub mod authority;
mod conditions;
pub mod control;
pub mod leader;
mod memory;
pub mod metrics;
pub mod model;
mod serve;
pub mod settings;
pub mod source;
pub mod status;
pub mod translate;
mod writers;
