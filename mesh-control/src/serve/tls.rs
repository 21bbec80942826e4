//! TLS with a certificate that may change while the server runs.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use rustls::sign::SingleCertAndKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use super::incoming::Connection;
use crate::authority::ServingCertificate;
use crate::control::StartError;
use crate::settings::ServerCertificate;

/// Handshakes at the same time. More connections wait in the kernel's queue.
const HANDSHAKES: usize = 1024;
/// Who takes longer is cut off: its place is for others.
const PATIENCE: Duration = Duration::from_secs(10);

/// How TLS is spoken.
pub(super) fn config(
    certificate: &ServerCertificate,
    issued: Option<Arc<ServingCertificate>>,
) -> Result<Arc<ServerConfig>, StartError> {
    let resolver: Arc<dyn ResolvesServerCert> = match (certificate, issued) {
        (ServerCertificate::Issued(_), Some(issued)) => issued,
        (ServerCertificate::Issued(names), None) => Arc::new(ServingCertificate::new(names.clone())),
        (ServerCertificate::Files { certificate, key }, _) => Arc::new(from_files(certificate, key)?),
    };
    showing(resolver, &["h2"])
}

/// The same with a certificate of any kind, for protocols by their ALPN names.
pub(super) fn showing(
    certificate: Arc<dyn ResolvesServerCert>,
    protocols: &[&str],
) -> Result<Arc<ServerConfig>, StartError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(Path::new("TLS"), &error))?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

fn from_files(certificate: &Path, key: &Path) -> Result<SingleCertAndKey, StartError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|source| StartError::Certificate { path: path.to_owned(), source })
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(certificate, &error))?;
    let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| unusable(key, &error))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let certified = rustls::sign::CertifiedKey::from_der(chain, key, &provider);
    Ok(SingleCertAndKey::from(certified.map_err(|error| unusable(certificate, &error))?))
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> StartError {
    StartError::Tls { path: path.to_owned(), reason: error.to_string() }
}

/// The connections whose handshake succeeded, in the order in which it did.
pub(super) fn shake_hands(
    connections: impl Stream<Item = io::Result<Connection>>,
    config: Arc<ServerConfig>,
) -> impl Stream<Item = io::Result<TlsStream<Connection>>> {
    let acceptor = TlsAcceptor::from(config);
    connections
        .map(move |connection| {
            let acceptor = acceptor.clone();
            // A task of its own: handshakes are computation, and there may be many after a restart.
            tokio::spawn(async move {
                let handshake = timeout(PATIENCE, acceptor.accept(connection?)).await;
                handshake.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            })
        })
        .buffer_unordered(HANDSHAKES)
        .filter_map(async |handshake| match handshake {
            Ok(Ok(stream)) => Some(Ok(stream)),
            Ok(Err(error)) => {
                debug!(%error, "a TLS handshake failed");
                None
            }
            Err(error) => {
                debug!(%error, "a TLS handshake was broken off");
                None
            }
        })
}
