//! What tests of the agent on Kubernetes share.

use std::time::Duration;

use kube::{Client, Config};
use mesh_lab::api_server::ApiServer;
use tokio::time::timeout;

/// A stand-in for the API server, and the agent's way to it.
pub(crate) fn api_server() -> (ApiServer, Client) {
    let server = ApiServer::start().unwrap();
    let client = super::client::with(Config::new(server.url().parse().unwrap())).unwrap();
    (server, client)
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(Duration::from_secs(20), poll).await.is_ok(), "{what}");
}
