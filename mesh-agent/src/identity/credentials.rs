//! A key and its certificate, ready for TLS.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use mesh_xds::identity::Identity;
use rustls::client::Resumption;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::clock::TlsClock;
use super::peer::{PeerError, peer_identity};
use super::trust::Trust;
use super::verifier::PeerVerifier;

/// HTTP/2, in which HBONE is spoken (RFC 9113, 3.1).
pub const HTTP2: &[u8] = b"h2";

/// What two agents of ours speak with each other ([`trunk`](crate::proxy::tunnel::trunk)). The number changes with what is
/// on the wire.
pub const TRUNK: &[u8] = b"mesh-trunk/2";

/// Numbers all credentials of the process.
static GENERATIONS: AtomicU64 = AtomicU64::new(0);

/// A key, its certificate, and the two TLS configurations made of them. Renewal makes new ones.
pub struct Credentials {
    identity: Arc<Identity>,
    generation: u64,
    facts: CertificateFacts,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    trust: Arc<Trust>,
}

/// What a certificate says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CertificateFacts {
    /// Hexadecimal.
    pub(super) serial: String,
    /// Common name of the issuer, else the whole name.
    pub(super) issuer: String,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

/// A certificate that is of no use to its owner.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum InvalidCredentials {
    /// It names nobody.
    #[error(transparent)]
    Certificate(#[from] PeerError),
    /// It is for another key, or the key is none.
    #[error("the certificate and the key do not go together: {0}")]
    Key(rustls::Error),
    /// What should be PEM is not.
    #[error("no PEM: {0}")]
    Pem(String),
}

impl Credentials {
    /// Puts a key and its certificates, leaf first and without the root, to use. Whether peers will accept them is
    /// not looked at.
    pub(super) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: Arc<dyn SigningKey>,
        trust: &Arc<Trust>,
    ) -> Result<Self, InvalidCredentials> {
        let identity = Arc::new(peer_identity(Some(&chain))?);
        let facts = CertificateFacts::read(chain.first().ok_or(PeerError::NoCertificate)?)?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(InvalidCredentials::Key)?;
        let certified = Arc::new(SingleCertAndKey::from(certified));
        Ok(Self {
            identity,
            generation: GENERATIONS.fetch_add(1, Ordering::Relaxed),
            facts,
            server: Arc::new(server_config(&certified, trust)?),
            client: Arc::new(client_config(&certified, trust)?),
            trust: Arc::clone(trust),
        })
    }

    /// The same from PEM, leaf first and without the root.
    ///
    /// # Errors
    /// When something is not what it should be, or the key is another one's.
    pub fn from_pem(chain: &str, key: &str, trust: &Arc<Trust>) -> Result<Self, InvalidCredentials> {
        let pem = |error: &dyn fmt::Display| InvalidCredentials::Pem(error.to_string());
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| pem(&error))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| pem(&error))?;
        let key = trust.provider().key_provider.load_private_key(key).map_err(InvalidCredentials::Key)?;
        Self::new(chain, key, trust)
    }

    /// Whose they are.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Unlike that of all other credentials of this process, earlier ones of the same identity included.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When the certificate ends.
    pub fn expires(&self) -> SystemTime {
        self.facts.not_after
    }

    /// For accepting connections: TLS 1.3, a trunk or HTTP/2, and a client certificate of a trusted domain.
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// As [`server`](Self::server), with HTTP/2 only.
    pub fn server_without_trunks(&self) -> Arc<ServerConfig> {
        let mut config = ServerConfig::clone(&self.server);
        config.alpn_protocols = vec![HTTP2.to_vec()];
        Arc::new(config)
    }

    /// For opening connections: TLS 1.3, HTTP/2. That the server's certificate is genuine is verified; who it is, is
    /// for the caller to check ([`super::check_peer_is`]) before anything is sent.
    pub fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    /// What peers are verified with.
    pub fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    pub(super) fn facts(&self) -> &CertificateFacts {
        &self.facts
    }
}

fn server_config(
    certified: &Arc<SingleCertAndKey>,
    trust: &Arc<Trust>,
) -> Result<ServerConfig, InvalidCredentials> {
    let clock = Arc::new(TlsClock(Arc::clone(trust.clock())));
    let mut config = ServerConfig::builder_with_details(Arc::clone(trust.provider()), clock)
        .with_protocol_versions(&[&TLS13])
        .map_err(InvalidCredentials::Key)?
        .with_client_cert_verifier(Arc::new(PeerVerifier(Arc::clone(trust))))
        .with_cert_resolver(Arc::clone(certified) as _);
    config.alpn_protocols = vec![TRUNK.to_vec(), HTTP2.to_vec()];
    // A resumed session is not verified again: a peer that was revoked, or has another identity by now, would get in
    // on the strength of an old handshake.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

fn client_config(
    certified: &Arc<SingleCertAndKey>,
    trust: &Arc<Trust>,
) -> Result<ClientConfig, InvalidCredentials> {
    let clock = Arc::new(TlsClock(Arc::clone(trust.clock())));
    let mut config = ClientConfig::builder_with_details(Arc::clone(trust.provider()), clock)
        .with_protocol_versions(&[&TLS13])
        .map_err(InvalidCredentials::Key)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PeerVerifier(Arc::clone(trust))))
        .with_client_cert_resolver(Arc::clone(certified) as _);
    config.alpn_protocols = vec![HTTP2.to_vec()];
    // Names are told nobody, and there is none: peers are found by address and known by identity.
    config.enable_sni = false;
    // As on the server's side: every connection proves anew who is at its other end.
    config.resumption = Resumption::disabled();
    Ok(config)
}

impl CertificateFacts {
    fn read(certificate: &CertificateDer<'_>) -> Result<Self, PeerError> {
        let (_, certificate) = X509Certificate::from_der(certificate)
            .map_err(|error| PeerError::Unusable(error.to_string().into()))?;
        let issuer = certificate.issuer();
        let common_name = issuer.iter_common_name().next().and_then(|name| name.as_str().ok());
        let time = |seconds: i64| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
        };
        Ok(Self {
            serial: format!("{:x}", certificate.tbs_certificate.serial),
            issuer: common_name.map_or_else(|| issuer.to_string(), str::to_owned),
            not_before: time(certificate.validity().not_before.timestamp()),
            not_after: time(certificate.validity().not_after.timestamp()),
        })
    }
}

/// Says whose they are; the key stays out of it.
impl fmt::Debug for Credentials {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Credentials")
            .field("identity", &self.identity)
            .field("generation", &self.generation)
            .field("certificate", &self.facts)
            .finish_non_exhaustive()
    }
}
