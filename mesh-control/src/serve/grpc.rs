//! The discovery service, in plain text and over TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_xds::server::DiscoveryServer;
use tokio::net::TcpSocket;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Identity, ServerTlsConfig};

use super::incoming;
use crate::control::StartError;
use crate::settings::TlsSettings;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// A place to serve at that is reserved but refuses connections until [`Endpoint::serve`].
#[derive(Debug)]
pub(crate) struct Endpoint {
    socket: TcpSocket,
    tls: Option<Identity>,
}

impl Endpoint {
    pub(crate) fn plain(address: SocketAddr) -> Result<Self, StartError> {
        Ok(Self { socket: bind(address)?, tls: None })
    }

    pub(crate) fn tls(settings: &TlsSettings) -> Result<Self, StartError> {
        let read = |path: &std::path::Path| {
            std::fs::read(path).map_err(|source| StartError::Certificate { path: path.to_owned(), source })
        };
        let identity = Identity::from_pem(read(&settings.certificate)?, read(&settings.key)?);
        Ok(Self { socket: bind(settings.address)?, tls: Some(identity) })
    }

    pub(crate) fn address(&self) -> Result<SocketAddr, StartError> {
        self.socket.local_addr().map_err(StartError::Socket)
    }

    /// Serves until `stop`, then lets the streams end.
    pub(crate) async fn serve(
        self,
        discovery: DiscoveryServer,
        places: Arc<Semaphore>,
        stop: CancellationToken,
    ) -> Result<(), StartError> {
        let listener = self.socket.listen(BACKLOG).map_err(StartError::Socket)?;
        let mut server = DiscoveryServer::transport();
        if let Some(identity) = self.tls {
            server =
                server.tls_config(ServerTlsConfig::new().identity(identity)).map_err(StartError::Grpc)?;
        }
        server
            .add_service(discovery.service())
            .serve_with_incoming_shutdown(incoming::accept(listener, places), stop.cancelled_owned())
            .await
            .map_err(StartError::Grpc)
    }
}

fn bind(address: SocketAddr) -> Result<TcpSocket, StartError> {
    let attempt = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    };
    attempt().map_err(|source| StartError::Bind { address, source })
}
