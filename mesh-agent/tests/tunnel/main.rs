//! Tunnels over real sockets: between our two sides, and with a real Envoy at either end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "test code"
)]

mod double;
mod envoy;
mod flow;
mod misbehaving;
mod opening;
mod pooling;
mod trusting;
mod world;
