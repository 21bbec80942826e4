//! The discovery and the certificate service, in plain text and over TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_xds::server::DiscoveryServer;
use tokio::net::TcpSocket;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{incoming, tls};
use crate::authority::{CertificateService, ServingCertificate};
use crate::control::StartError;
use crate::settings::TlsSettings;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// A place to serve at that is reserved but refuses connections until [`Endpoint::serve`].
#[derive(Debug)]
pub(crate) struct Endpoint {
    socket: TcpSocket,
    tls: Option<Arc<rustls::ServerConfig>>,
    certificates: CertificateService,
}

impl Endpoint {
    pub(crate) fn plain(address: SocketAddr, certificates: CertificateService) -> Result<Self, StartError> {
        Ok(Self { socket: bind(address)?, tls: None, certificates })
    }

    /// `issued` is what to show if the settings name no files.
    pub(crate) fn tls(
        settings: &TlsSettings,
        issued: Option<Arc<ServingCertificate>>,
        certificates: CertificateService,
    ) -> Result<Self, StartError> {
        let config = tls::config(&settings.certificate, issued)?;
        Ok(Self { socket: bind(settings.address)?, tls: Some(config), certificates })
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
        let connections = incoming::accept(listener, places);
        let router = DiscoveryServer::transport()
            .add_service(discovery.service())
            .add_service(self.certificates.server());
        let stop = stop.cancelled_owned();
        let served = match self.tls {
            None => router.serve_with_incoming_shutdown(connections, stop).await,
            Some(config) => {
                router.serve_with_incoming_shutdown(tls::shake_hands(connections, config), stop).await
            }
        };
        served.map_err(StartError::Grpc)
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
