//! The admin endpoints and `meshctl`, as operators use them: real sockets, a real process, a made-up mesh.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "test code"
)]

mod http;
mod meshctl;
mod server;
mod socket;
