//! Certificates over real sockets: a certificate service behind TLS and tokens, files that change, and endpoints that
//! meet with what they were given.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "test code"
)]

mod authority;
mod certifying;
