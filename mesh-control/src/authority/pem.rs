//! Certificates as PEM text, and what is said about them.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;

use super::certificates::hex;
use super::clock::{from_unix, rfc3339};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PemCertificate {
    /// Its text alone, without what may stand around it in a file.
    pub(super) pem: String,
    pub(super) der: CertificateDer<'static>,
    pub(super) subject: String,
    pub(super) serial: String,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// Whether it may sign others.
    pub(super) is_authority: bool,
    /// Whether it names itself as its issuer.
    pub(super) self_issued: bool,
    /// Bits of its public key.
    pub(super) public_key: Vec<u8>,
}

impl PemCertificate {
    /// The certificates in a text, in order; whatever else it holds is left out.
    pub(super) fn read_all(text: &str) -> Result<Vec<Self>, String> {
        let mut certificates = Vec::new();
        let mut rest = text;
        while let Some((_, from)) = rest.split_once(BEGIN) {
            let place = certificates.len() + 1;
            let (body, after) =
                from.split_once(END).ok_or_else(|| format!("certificate {place} has no end line"))?;
            let pem = format!("{BEGIN}\n{}\n{END}\n", body.trim().replace('\r', ""));
            certificates.push(Self::read(pem).map_err(|reason| format!("certificate {place}: {reason}"))?);
            rest = after;
        }
        Ok(certificates)
    }

    fn read(pem: String) -> Result<Self, String> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| error.to_string())?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|error| error.to_string())?;
        let validity = parsed.validity();
        Ok(Self {
            subject: parsed.subject().to_string(),
            serial: hex(parsed.raw_serial()),
            not_before: from_unix(validity.not_before.timestamp()),
            not_after: from_unix(validity.not_after.timestamp()),
            is_authority: parsed.is_ca(),
            self_issued: parsed.subject().as_raw() == parsed.issuer().as_raw(),
            public_key: parsed.public_key().subject_public_key.data.to_vec(),
            pem,
            der: der.clone(),
        })
    }

    pub(super) fn facts(&self) -> CertificateFacts {
        CertificateFacts {
            subject: self.subject.clone(),
            serial: self.serial.clone(),
            not_before: rfc3339(self.not_before),
            not_after: rfc3339(self.not_after),
        }
    }
}

/// A certificate as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateFacts {
    /// Its distinguished name.
    pub subject: String,
    /// Its serial number in hexadecimal.
    pub serial: String,
    /// Beginning of its life.
    pub not_before: String,
    /// End of its life.
    pub not_after: String,
}
