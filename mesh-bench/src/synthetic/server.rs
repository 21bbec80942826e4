//! A control server of nothing but a synthetic mesh: the delta server of `mesh-xds` on a host of a lab, in this process.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use mesh_lab::Machine;
use mesh_xds::proto::Name;
use mesh_xds::proto::security::Authorization;
use mesh_xds::proto::workload::Address;
use mesh_xds::server::{DiscoveryServer, ResourceStore, ServerConfig, Transaction};
use tokio::runtime::Runtime;
use tonic::transport::server::TcpIncoming;

use super::SyntheticMesh;

/// Threads that serve; a control server has a core or two.
const THREADS: usize = 2;

/// A server that runs until it is dropped.
pub(crate) struct MeshServer {
    store: ResourceStore,
    server: DiscoveryServer,
    runtime: Option<Runtime>,
}

impl MeshServer {
    /// Serves a mesh at a port of a machine.
    pub(crate) fn start(machine: &Machine, port: u16, mesh: SyntheticMesh) -> Result<Self> {
        let store = ResourceStore::new();
        let mut change = Transaction::new();
        change.replace(&Authorization::type_url(), []);
        change.replace(&Address::type_url(), mesh.resources());
        store.update(change);

        let config = ServerConfig {
            order: vec![Authorization::type_url().into(), Address::type_url().into()],
            ..ServerConfig::default()
        };
        let server = DiscoveryServer::new(store.clone(), config);
        let address = SocketAddr::from(([0, 0, 0, 0], port));
        let listener = machine.namespace().tcp_listener(address).context("the synthetic control server")?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
        let incoming = {
            let _inside = runtime.enter();
            TcpIncoming::from(tokio::net::TcpListener::from_std(listener)?).with_nodelay(Some(true))
        };
        let serve = DiscoveryServer::transport().add_service(server.service()).serve_with_incoming(incoming);
        runtime.spawn(async move {
            if let Err(error) = serve.await {
                tracing::error!(%error, "the synthetic control server ended");
            }
        });
        Ok(Self { store, server, runtime: Some(runtime) })
    }

    /// Whether a client has acknowledged all workloads and services; `None` while there is no client.
    pub(crate) fn is_acknowledged(&self) -> Option<bool> {
        let offered = self.store.snapshot().version();
        let clients = self.server.clients();
        let addresses = clients.first().map(|client| client.types.get(Address::type_url().as_str()))?;
        Some(addresses.is_some_and(|addresses| {
            !addresses.in_flight && addresses.acks > 0 && addresses.acknowledged_version >= offered
        }))
    }

    /// What it serves, to be changed.
    pub(crate) fn store(&self) -> &ResourceStore {
        &self.store
    }
}

impl Drop for MeshServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
