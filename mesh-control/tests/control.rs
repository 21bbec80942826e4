//! The control server as agents see it: real files, a real delta client, loopback.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "test code"
)]

mod control {
    mod agent;
    mod authority;
    mod definitions;
    mod examples;
    mod fixture;
    mod policies;
    mod serving;
    mod validate;
    mod watching;
}
