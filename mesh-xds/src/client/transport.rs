//! Opening a connection to a server.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::config::{ClientConfig, PrepareSocket, TlsConfig};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("cannot connect: {0}")]
    Plain(String),
    #[error("cannot connect, verifying the server with {roots}: {reason}")]
    Tls { roots: PathBuf, reason: String },
    #[error("cannot connect: no success within {0:?}")]
    Timeout(Duration),
    #[error("cannot read {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path} holds no root certificate in PEM form")]
    NoCertificate { path: PathBuf },
    #[error("{path} holds no token that can be sent in a header")]
    BadToken { path: PathBuf },
}

/// Connects to `server`, TLS included.
pub(super) async fn connect(server: &Uri, config: &ClientConfig) -> Result<Channel, ConnectError> {
    let mut endpoint = Endpoint::from(server.clone())
        .http2_keep_alive_interval(config.keepalive_interval)
        .keep_alive_timeout(config.keepalive_timeout)
        .keep_alive_while_idle(true);
    let tls = config.tls.as_ref().filter(|_| server.scheme_str() == Some("https"));
    if let Some(tls) = tls {
        endpoint = endpoint
            .tls_config(tls_config(server, tls).await?)
            .map_err(|error| explained(&error, Some(tls)))?;
    }

    let prepare = config.prepare_socket.clone();
    let limit = config.connect_timeout;
    let connector = tower::service_fn(move |uri: Uri| {
        let prepare = prepare.clone();
        async move { dial(&uri, prepare.as_ref(), limit).await.map(TokioIo::new) }
    });
    let connected = timeout(limit, endpoint.connect_with_connector(connector)).await;
    connected.map_err(|_| ConnectError::Timeout(limit))?.map_err(|error| explained(&error, tls))
}

/// The bearer token, as the header that carries it.
pub(super) async fn bearer_token(
    config: &ClientConfig,
) -> Result<Option<MetadataValue<Ascii>>, ConnectError> {
    let Some(path) = &config.token_file else { return Ok(None) };
    let token = tokio::fs::read_to_string(path)
        .await
        .map_err(|source| ConnectError::File { path: path.clone(), source })?;
    let bad = || ConnectError::BadToken { path: path.clone() };
    let token = Some(token.trim()).filter(|token| !token.is_empty()).ok_or_else(bad)?;
    let mut header: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| bad())?;
    header.set_sensitive(true);
    Ok(Some(header))
}

async fn tls_config(server: &Uri, tls: &TlsConfig) -> Result<ClientTlsConfig, ConnectError> {
    let path = &tls.roots;
    let pem =
        tokio::fs::read(path).await.map_err(|source| ConnectError::File { path: path.clone(), source })?;
    // An empty set of roots would only show as an unknown issuer.
    if !CertificateDer::pem_slice_iter(&pem).any(|certificate| certificate.is_ok()) {
        return Err(ConnectError::NoCertificate { path: path.clone() });
    }
    let name = tls.server_name.as_deref().unwrap_or_else(|| host(server));
    Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)).domain_name(name))
}

/// Connects to the first of the host's addresses that answers; each has its share of the time.
async fn dial(uri: &Uri, prepare: Option<&PrepareSocket>, limit: Duration) -> io::Result<TcpStream> {
    let default_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    let addresses: Vec<_> = lookup_host((host(uri), uri.port_u16().unwrap_or(default_port))).await?.collect();
    let share = limit / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_nodelay(true)?;
        if let Some(prepare) = prepare {
            prepare(&socket)?;
        }
        last_error = match timeout(share, socket.connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => io::Error::new(error.kind(), format!("{address}: {error}")),
            Err(_) => {
                io::Error::new(io::ErrorKind::TimedOut, format!("{address}: no answer within {share:?}"))
            }
        };
    }
    Err(last_error)
}

/// The host without the brackets of an IPv6 address.
fn host(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
}

/// tonic's own message is "transport error"; what happened is in its sources.
fn explained(error: &tonic::transport::Error, tls: Option<&TlsConfig>) -> ConnectError {
    let reason = sources(error);
    match tls {
        Some(TlsConfig { roots, .. }) => ConnectError::Tls { roots: roots.clone(), reason },
        None => ConnectError::Plain(reason),
    }
}

/// The messages of the sources of an error, outermost first, without repetitions.
pub(super) fn sources(error: &dyn Error) -> String {
    let mut messages: Vec<String> = Vec::new();
    let mut source = error.source();
    while let Some(cause) = source {
        let message = cause.to_string();
        if !messages.iter().any(|said| said.contains(&message)) {
            messages.push(message);
        }
        source = cause.source();
    }
    if messages.is_empty() { error.to_string() } else { messages.join(": ") }
}
