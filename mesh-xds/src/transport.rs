//! The way to a control server: TLS, the token, and sockets made as the caller wants them.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// Called with every socket before it is connected, for example to set its mark.
pub type PrepareSocket = Arc<dyn Fn(&TcpSocket) -> io::Result<()> + Send + Sync>;

/// How servers are reached.
#[derive(Clone)]
pub struct Transport {
    /// How to verify `https` servers.
    pub tls: Option<TlsConfig>,
    /// File with a bearer token for `https` servers, read again whenever it is sent.
    pub token_file: Option<PathBuf>,
    /// Time for name resolution, TCP and TLS together. 5 s by default.
    pub connect_timeout: Duration,
    /// Silence after which the server is asked whether it is still there. 30 s by default: istiod closes
    /// connections that ask more often than every 15 s.
    pub keepalive_interval: Duration,
    /// Time for the answer to that. 10 s by default.
    pub keepalive_timeout: Duration,
    /// Applied to the sockets.
    pub prepare_socket: Option<PrepareSocket>,
}

/// How a server is verified.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// PEM file of the root certificates, read again at every connection.
    pub roots: PathBuf,
    /// Name in the server's certificate, if it is not the host of the address.
    pub server_name: Option<String>,
}

/// Servers that cannot be used as they are given.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No server.
    #[error("no server is given; name at least one, such as http://mesh-control:15010")]
    NoServer,
    /// An unusable address.
    #[error("{0:?} is no address of a server; write http://host:port or https://host:port")]
    BadAddress(String),
    /// No roots.
    #[error("{0:?} needs a root certificate to verify the server with; give one, or use http://")]
    NoRoots(String),
    /// A token would be readable on the network.
    #[error("a token must not be sent to {0:?} in plain text; use https:// or give no token")]
    TokenInTheClear(String),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers, or not as they should.
    #[error("cannot connect: {0}")]
    Plain(String),
    /// The same with TLS, where the roots may be to blame.
    #[error("cannot connect, verifying the server with {roots}: {reason}")]
    Tls {
        /// File that was verified with.
        roots: PathBuf,
        /// What happened.
        reason: String,
    },
    /// It took too long.
    #[error("cannot connect: no success within {0:?}")]
    Timeout(Duration),
    /// A file is not there.
    #[error("cannot read {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of roots without one.
    #[error("{path} holds no root certificate in PEM form")]
    NoCertificate {
        /// Which.
        path: PathBuf,
    },
    /// A file without a token.
    #[error("{path} holds no token that can be sent in a header")]
    BadToken {
        /// Which.
        path: PathBuf,
    },
}

impl Default for Transport {
    fn default() -> Self {
        Self {
            tls: None,
            token_file: None,
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            prepare_socket: None,
        }
    }
}

impl Transport {
    /// The servers' addresses, once it is certain that each can be used in this way.
    ///
    /// # Errors
    /// When there is none, or one cannot be used.
    pub fn addresses(&self, servers: &[String]) -> Result<Vec<Uri>, AddressError> {
        if servers.is_empty() {
            return Err(AddressError::NoServer);
        }
        servers.iter().map(|server| self.address(server)).collect()
    }

    fn address(&self, server: &str) -> Result<Uri, AddressError> {
        let bad = || AddressError::BadAddress(server.to_owned());
        let uri: Uri = server.parse().map_err(|_| bad())?;
        if uri.host().is_none() || !matches!(uri.path(), "" | "/") {
            return Err(bad());
        }
        match uri.scheme_str() {
            Some("https") if self.tls.is_none() => Err(AddressError::NoRoots(server.to_owned())),
            Some("https") => Ok(uri),
            Some("http") if self.token_file.is_some() => {
                Err(AddressError::TokenInTheClear(server.to_owned()))
            }
            Some("http") => Ok(uri),
            _ => Err(bad()),
        }
    }

    /// Connects to `server`, TLS included.
    ///
    /// # Errors
    /// When the server is not there, or is not who it should be.
    pub async fn connect(&self, server: &Uri) -> Result<Channel, ConnectError> {
        let mut endpoint = Endpoint::from(server.clone())
            .http2_keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout)
            .keep_alive_while_idle(true);
        let tls = self.tls.as_ref().filter(|_| server.scheme_str() == Some("https"));
        if let Some(tls) = tls {
            endpoint = endpoint
                .tls_config(tls_config(server, tls).await?)
                .map_err(|error| explained(&error, Some(tls)))?;
        }

        let prepare = self.prepare_socket.clone();
        let limit = self.connect_timeout;
        let connector = tower::service_fn(move |uri: Uri| {
            let prepare = prepare.clone();
            async move { dial(&uri, prepare.as_ref(), limit).await.map(TokioIo::new) }
        });
        let connected = timeout(limit, endpoint.connect_with_connector(connector)).await;
        connected.map_err(|_| ConnectError::Timeout(limit))?.map_err(|error| explained(&error, tls))
    }

    /// The bearer token, as the header that carries it.
    ///
    /// # Errors
    /// When the file cannot be read or holds no token.
    pub async fn bearer_token(&self) -> Result<Option<MetadataValue<Ascii>>, ConnectError> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let token = tokio::fs::read_to_string(path)
            .await
            .map_err(|source| ConnectError::File { path: path.clone(), source })?;
        let bad = || ConnectError::BadToken { path: path.clone() };
        let token = Some(token.trim()).filter(|token| !token.is_empty()).ok_or_else(bad)?;
        let mut header: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| bad())?;
        header.set_sensitive(true);
        Ok(Some(header))
    }
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

/// What the failure of a call means, in one line.
pub fn describe(status: &tonic::Status) -> String {
    // A connection that broke is an "unknown" status whose sources say how.
    match Error::source(status) {
        Some(_) => format!("the stream broke: {}", sources(status)),
        None => format!("the server refused: {} ({})", status.message(), status.code()),
    }
}

/// The messages of the sources of an error, outermost first, without repetitions.
fn sources(error: &dyn Error) -> String {
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

impl fmt::Debug for Transport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Transport")
            .field("tls", &self.tls)
            .field("token_file", &self.token_file)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(transport: &Transport, server: &str) -> Result<Vec<Uri>, AddressError> {
        transport.addresses(&[server.to_owned()])
    }

    #[test]
    fn addresses_are_checked() {
        let transport = Transport::default();
        for good in ["http://127.0.0.1:15010", "http://[::1]:15010/", "http://mesh-control:15010"] {
            assert!(addresses(&transport, good).is_ok(), "{good}");
        }
        for bad in ["", "mesh-control", "mesh-control:15010", "ftp://a:1", "http://a:1/path", "http://a b"] {
            assert_eq!(addresses(&transport, bad), Err(AddressError::BadAddress(bad.to_owned())));
        }
        assert_eq!(transport.addresses(&[]), Err(AddressError::NoServer));
    }

    #[test]
    fn secrets_need_a_verified_server() {
        let plain = Transport::default();
        let no_roots = AddressError::NoRoots("https://a:1".to_owned());
        assert_eq!(addresses(&plain, "https://a:1"), Err(no_roots));
        let tls = Some(TlsConfig { roots: "root.pem".into(), server_name: None });
        let verified = Transport { tls, token_file: Some("token".into()), ..plain };
        assert!(addresses(&verified, "https://a:1").is_ok());
        let in_the_clear = AddressError::TokenInTheClear("http://a:1".to_owned());
        assert_eq!(addresses(&verified, "http://a:1"), Err(in_the_clear));
    }
}
