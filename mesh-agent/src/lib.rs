//! The node agent: steers the TCP traffic of the node's pods into itself and gives them the mesh.
//!
//! `ARCHITECTURE.md` has the map of the house and the life of a connection.

pub mod admin;
pub mod agent;
pub mod config;
pub mod connect_time;
pub mod enrolment;
pub mod identity;
pub mod kubelet;
pub mod kubernetes;
pub mod memory;
pub mod meshctl;
pub mod passage;
pub mod pods;
pub mod policy;
pub mod proxy;
pub mod settings;
pub mod steering;
pub mod telemetry;
