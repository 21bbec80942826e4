//! A new key, the request to certify it, and whether the answer is what was asked for.

use std::sync::Arc;

use mesh_xds::identity::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::sign::SigningKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroize;

use super::credentials::{Credentials, InvalidCredentials};
use super::peer::PeerError;
use super::trust::Trust;

/// A key that waits for its certificate.
pub(super) struct SigningRequest {
    identity: Arc<Identity>,
    key: Arc<dyn SigningKey>,
    csr: String,
}

/// What the authority gave, found good.
pub(super) struct Certified {
    pub(super) credentials: Credentials,
    /// What peers' certificates are to be verified with from now on.
    pub(super) roots: Vec<CertificateDer<'static>>,
}

/// A key could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a key and a request to sign it: {0}")]
pub(super) struct KeyError(String);

/// An answer that must not be used.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum WrongAnswer {
    #[error("the authority's answer holds no certificate")]
    Empty,
    #[error("the authority's answer is not PEM: {0}")]
    Pem(String),
    #[error("the authority answered with a certificate that cannot be used: {0}")]
    Certificate(#[from] InvalidCredentials),
    #[error("the authority answered with the certificate of {0}")]
    OtherIdentity(Arc<Identity>),
    #[error("the authority answered with a certificate that peers would refuse: {0}")]
    Untrusted(PeerError),
}

impl SigningRequest {
    /// Makes a P-256 key and asks for a certificate with this identity, and nothing else in it.
    pub(super) fn new(identity: Arc<Identity>) -> Result<Self, KeyError> {
        let failed = |error: &dyn std::fmt::Display| KeyError(error.to_string());
        let mut pair = KeyPair::generate().map_err(|error| failed(&error))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let uri = identity.to_string().try_into().map_err(|error| failed(&error))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        let csr = params.serialize_request(&pair).and_then(|request| request.pem());
        // From here on the key is inside the TLS library only, which wipes it when it is done.
        let key = any_ecdsa_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialized_der())));
        pair.zeroize();
        Ok(Self {
            identity,
            key: key.map_err(|error| failed(&error))?,
            csr: csr.map_err(|error| failed(&error))?,
        })
    }

    /// The request, PEM.
    pub(super) fn csr(&self) -> &str {
        &self.csr
    }

    /// Takes the authority's answer: the leaf first, then what leads to the root, and the roots last. Each part may
    /// hold several certificates.
    pub(super) fn accept(self, answer: &[String], trust: &Arc<Trust>) -> Result<Certified, WrongAnswer> {
        let mut parts = answer.iter().map(|part| certificates(part)).collect::<Result<Vec<_>, _>>()?;
        // An authority that sends the leaf alone leaves it to us to know the roots.
        let roots = if parts.len() > 1 { parts.pop().unwrap_or_default() } else { Vec::new() };
        let chain: Vec<_> = parts.into_iter().flatten().collect();
        let (leaf, intermediates) = chain.split_first().ok_or(WrongAnswer::Empty)?;
        trust.check_own(leaf, intermediates, &roots).map_err(WrongAnswer::Untrusted)?;
        let credentials = Credentials::new(chain, self.key, trust)?;
        if *credentials.identity() != self.identity {
            return Err(WrongAnswer::OtherIdentity(Arc::clone(credentials.identity())));
        }
        Ok(Certified { credentials, roots })
    }
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, WrongAnswer> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| WrongAnswer::Pem(error.to_string()))
}
