//! Signs leaves with one issuer. Immutable: another issuer, or another set of roots, is another signer.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{Issuer, KeyPair, PublicKeyData, SanType};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, UnixTime};

use super::certificates::{Subject, Validity, leaf};
use super::clock::{rfc3339, unix};
use super::pem::PemCertificate;

/// Why certificates and key cannot sign. The names are those of Istio's files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum MaterialError {
    #[error("{name} cannot be read: {reason}: put PEM certificates there")]
    Certificates { name: &'static str, reason: String },
    #[error("{name} holds no certificate: put the PEM text of one there")]
    Empty { name: &'static str },
    #[error(
        "ca-key.pem cannot be read: {reason}: put an unencrypted PEM private key there (PKCS #8, PKCS #1 or SEC 1)"
    )]
    Key { reason: String },
    #[error(
        "ca-key.pem is not the key of the certificate in ca-cert.pem ({subject}): put files there that belong together"
    )]
    KeyOfAnother { subject: String },
    #[error(
        "the certificate in ca-cert.pem ({subject}) may not sign others: it needs the basic constraint CA:TRUE"
    )]
    NotAnAuthority { subject: String },
    #[error(
        "the certificate in ca-cert.pem ({subject}) is valid from {from} to {until} only: put a valid one there"
    )]
    NotValid { subject: String, from: String, until: String },
    #[error(
        "what ca-cert.pem signs would not be trusted by the roots in root-cert.pem ({reason}): put the intermediates \
         into cert-chain.pem and the root they lead to into root-cert.pem"
    )]
    Untrusted { reason: String },
}

/// A leaf was not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SignError {
    #[error("the signing certificate ({subject}) expired at {at}")]
    Expired { subject: String, at: String },
    #[error("signing failed: {0}")]
    Failed(String),
}

/// Certificates and the key of an issuer, as PEM text, in Istio's layout.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Material {
    /// The certificate that signs: `ca-cert.pem`.
    pub(super) certificate: String,
    /// Its private key: `ca-key.pem`.
    pub(super) key: String,
    /// Intermediates between it and a root, which may be among them: `cert-chain.pem`.
    pub(super) chain: String,
    /// Roots to trust: `root-cert.pem`.
    pub(super) roots: String,
}

/// A signed leaf.
#[derive(Debug, Clone)]
pub(super) struct Signed {
    /// The leaf and its intermediates, PEM.
    pub(super) chain: Vec<String>,
    pub(super) serial: String,
    pub(super) not_after: SystemTime,
}

/// An issuer that signs.
#[derive(Debug)]
pub(super) struct Signer {
    issuer: Issuer<'static, KeyPair>,
    certificate: PemCertificate,
    /// Sent after every leaf: the issuer and what lies between it and the root.
    intermediates: Vec<PemCertificate>,
    roots: Vec<PemCertificate>,
    /// All roots, as one text.
    bundle: String,
    /// When the first certificate between a leaf and its root expires.
    not_after: SystemTime,
}

impl Signer {
    /// Checks everything that could make verifiers refuse what it signs.
    pub(super) fn new(material: &Material, now: SystemTime) -> Result<Self, MaterialError> {
        let read = |name, text| {
            PemCertificate::read_all(text).map_err(|reason| MaterialError::Certificates { name, reason })
        };
        let mut certificate = read("ca-cert.pem", &material.certificate)?.into_iter();
        let certificate = certificate.next().ok_or(MaterialError::Empty { name: "ca-cert.pem" })?;
        let roots = read("root-cert.pem", &material.roots)?;
        if roots.is_empty() {
            return Err(MaterialError::Empty { name: "root-cert.pem" });
        }
        let subject = || certificate.subject.clone();
        let key = read_key(&material.key).map_err(|reason| MaterialError::Key { reason })?;
        if key.der_bytes() != certificate.public_key {
            return Err(MaterialError::KeyOfAnother { subject: subject() });
        }
        if !certificate.is_authority {
            return Err(MaterialError::NotAnAuthority { subject: subject() });
        }
        if now < certificate.not_before || now >= certificate.not_after {
            let (from, until) = (rfc3339(certificate.not_before), rfc3339(certificate.not_after));
            return Err(MaterialError::NotValid { subject: subject(), from, until });
        }

        let mut intermediates: Vec<PemCertificate> = Vec::new();
        // `cert-chain.pem` often repeats the issuer, and ends with the root, which verifiers have to know themselves.
        for link in std::iter::once(certificate.clone()).chain(read("cert-chain.pem", &material.chain)?) {
            let known = roots.iter().chain(&intermediates).any(|other| other.der == link.der);
            if !known && !link.self_issued {
                intermediates.push(link);
            }
        }
        let issuer = Issuer::from_ca_cert_der(&certificate.der, key).map_err(|error| {
            MaterialError::Certificates { name: "ca-cert.pem", reason: error.to_string() }
        })?;
        let not_after =
            intermediates.iter().map(|link| link.not_after).min().unwrap_or(certificate.not_after);
        let bundle = roots.iter().map(|root| root.pem.as_str()).collect();
        let signer = Self { issuer, certificate, intermediates, roots, bundle, not_after };
        signer.try_out(now).map_err(|reason| MaterialError::Untrusted { reason })?;
        Ok(signer)
    }

    /// Signs a leaf that is thrown away and verifies it as a server would verify its client.
    fn try_out(&self, now: SystemTime) -> Result<(), String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for root in &self.roots {
            roots.add(root.der.clone()).map_err(|error| error.to_string())?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| error.to_string())?;
        let key = KeyPair::generate().map_err(|error| error.to_string())?;
        let nobody = mesh_xds::identity::Identity::new("nobody", "nobody", "nobody");
        let validity = Validity::starting(now, Duration::from_secs(60)).within(self.not_after);
        let (params, _) = leaf(Subject::Workload(&nobody), validity).map_err(|error| error.to_string())?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(|error| error.to_string())?;
        let intermediates: Vec<_> = self.intermediates.iter().map(|link| link.der.clone()).collect();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(unix(now).unsigned_abs()));
        let verified = verifier.verify_client_cert(leaf.der(), &intermediates, at);
        verified.map(drop).map_err(|error| error.to_string())
    }

    /// Certifies `key` for `subject`, for `lifetime` or as long as the issuer itself is valid.
    pub(super) fn sign(
        &self,
        key: &impl PublicKeyData,
        subject: Subject<'_>,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Signed, SignError> {
        if now >= self.not_after {
            let subject = self.certificate.subject.clone();
            return Err(SignError::Expired { subject, at: rfc3339(self.not_after) });
        }
        let failed = |error: rcgen::Error| SignError::Failed(error.to_string());
        let validity = Validity::starting(now, lifetime).within(self.not_after);
        let (params, serial) = leaf(subject, validity).map_err(failed)?;
        let leaf = params.signed_by(key, &self.issuer).map_err(failed)?;
        let intermediates = self.intermediates.iter().map(|link| link.pem.clone());
        let chain = std::iter::once(leaf.pem()).chain(intermediates).collect();
        Ok(Signed { chain, serial, not_after: validity.until })
    }

    /// Certifies `key` for a server of these names.
    pub(super) fn sign_server(
        &self,
        key: &KeyPair,
        names: &[SanType],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Signed, SignError> {
        self.sign(key, Subject::Server(names), lifetime, now)
    }

    /// The certificate that signs.
    pub(super) fn certificate(&self) -> &PemCertificate {
        &self.certificate
    }

    /// The roots to trust, at least one.
    pub(super) fn roots(&self) -> &[PemCertificate] {
        &self.roots
    }

    /// The roots to trust, as one PEM text.
    pub(super) fn bundle(&self) -> &str {
        &self.bundle
    }
}

/// Passes over what other tools put before the key, such as the parameters of its curve.
fn read_key(text: &str) -> Result<KeyPair, String> {
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| error.to_string())?;
    KeyPair::try_from(&key).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
