//! The mesh end to end: real agents, a real control server, real eBPF, in network namespaces.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "test code"
)]

mod around;
mod availability;
mod capture;
mod elsewhere;
mod enrolment;
mod identities;
mod leaks;
mod node;
mod observability;
mod passage;
mod security;
mod world;
