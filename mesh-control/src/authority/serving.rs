//! The certificate that the control server itself shows, issued by its own authority: agents then need to be given
//! nothing but the root.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use rcgen::{KeyPair, SanType};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use tracing::info;

use super::clock::rfc3339;
use super::pem::{CertificateFacts, PemCertificate};
use super::signer::{SignError, Signer};

/// A certificate that is renewed.
#[derive(Debug)]
pub(crate) struct ServingCertificate {
    names: Vec<SanType>,
    current: ArcSwapOption<Shown>,
}

#[derive(Debug)]
struct Shown {
    key: Arc<CertifiedKey>,
    /// Serial number of the issuer's certificate.
    issuer: String,
    renew_at: SystemTime,
    leaf: PemCertificate,
}

impl ServingCertificate {
    /// A certificate for these names that nobody signed yet: handshakes fail until then.
    pub(crate) fn new(names: Vec<SanType>) -> Self {
        Self { names, current: ArcSwapOption::default() }
    }

    /// What it is now, if it was signed.
    pub(crate) fn facts(&self) -> Option<CertificateFacts> {
        self.current.load().as_ref().map(|shown| shown.leaf.facts())
    }

    /// When it expires, if it was signed.
    pub(crate) fn not_after(&self) -> Option<SystemTime> {
        self.current.load().as_ref().map(|shown| shown.leaf.not_after)
    }

    /// Has it signed if it is half over, or another issuer signs now.
    pub(super) fn renew(
        &self,
        signer: &Signer,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<(), SignError> {
        let issuer = &signer.certificate().serial;
        let good = |shown: &Arc<Shown>| shown.issuer == *issuer && now < shown.renew_at;
        if self.current.load().as_ref().is_some_and(good) {
            return Ok(());
        }
        let failed = |error: &dyn std::fmt::Display| SignError::Failed(error.to_string());
        let key = KeyPair::generate().map_err(|error| failed(&error))?;
        let signed = signer.sign_server(&key, &self.names, lifetime, now)?;
        let leaf = signed.chain.first().map(|pem| PemCertificate::read_all(pem)).transpose();
        let leaf = leaf.map_err(SignError::Failed)?.and_then(|mut read| read.pop());
        let leaf = leaf.ok_or_else(|| SignError::Failed("no certificate was made".to_owned()))?;
        let chain = signed.chain.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()));
        let chain = chain.collect::<Result<_, _>>().map_err(|error| failed(&error))?;
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&PrivateKeyDer::from(key))
            .map_err(|error| failed(&error))?;
        let left = signed.not_after.duration_since(now).unwrap_or_default();
        info!(
            serial = signed.serial,
            expires = rfc3339(signed.not_after),
            "the server has a new certificate"
        );
        self.current.store(Some(Arc::new(Shown {
            key: Arc::new(CertifiedKey::new(chain, key)),
            issuer: issuer.clone(),
            renew_at: now + left / 2,
            leaf,
        })));
        Ok(())
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load().as_ref().map(|shown| Arc::clone(&shown.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::generations::Generations;
    use crate::authority::tests::{hours, lifetimes, start};

    #[test]
    fn it_is_renewed_at_half_its_life_and_with_its_issuer() {
        let serving = ServingCertificate::new(vec![SanType::DnsName("control.test".try_into().unwrap())]);
        let signer = || {
            let state = Generations::begin("cluster.local", &lifetimes(), start()).unwrap();
            Signer::new(&state.material().unwrap(), start()).unwrap()
        };
        let (signer, other) = (signer(), signer());
        let after = |signer: &Signer, time: Duration| {
            serving.renew(signer, hours(2), start() + time).unwrap();
            serving.current.load_full().unwrap().key.cert[0].clone()
        };
        let first = after(&signer, hours(0));
        assert_eq!(after(&signer, hours(1) - Duration::from_secs(1)), first);
        let second = after(&signer, hours(1));
        assert_ne!(second, first);
        assert_ne!(after(&other, hours(1)), second);
        let shown = serving.current.load_full().unwrap();
        assert_eq!(shown.key.cert.len(), 2, "with its intermediate");
        // It serves on while it cannot be renewed.
        assert!(serving.renew(&signer, hours(2), start() + hours(100)).is_err());
        assert!(Arc::ptr_eq(&serving.current.load_full().unwrap(), &shown));
    }
}
