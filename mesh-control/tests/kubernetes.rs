//! The control server at a real Kubernetes API server, with the rights and the arguments that the chart gives it.
//!
//! Where no API server is at hand there is nothing to test: set KUBEBUILDER_ASSETS to a folder with `kube-apiserver`,
//! `kubectl` and `etcd`, or let `cargo xtask cluster` build them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "test code"
)]

mod kubernetes {
    mod admission;
    mod api_server;
    mod chart;
}
