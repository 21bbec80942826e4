//! The proxy over real sockets, in network namespaces.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "test code"
)]

mod failing;
mod inbound;
mod mesh;
mod relaying;
mod routing;
