//! Steering through real namespaces and real eBPF, with a plain listener in the place of the proxy.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "test code"
)]

mod capture;
mod connect;
mod devices;
mod elsewhere;
mod enrolment;
mod failure;
mod guard;
mod node;
mod passage;
mod passages;
mod restart;
