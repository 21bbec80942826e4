//! The client and the server together, over real connections on the loopback interface.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "test code"
)]

mod limits;
mod order;
mod reconnect;
mod refusal;
mod subscribing;
mod support;
mod tls;
