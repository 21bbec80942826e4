//! Certificate signing requests: only their key counts, and that whoever sends one has it.

use mesh_xds::identity::Identity;
use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

/// Longest request that is read; one with an RSA key of 8192 bits stays below.
const MAX_BYTES: usize = 16 << 10;
/// Smaller RSA keys are not to be used any more (NIST SP 800-131A).
const MIN_RSA_BITS: usize = 2048;
/// Curves of keys that are certified.
const CURVES: [usize; 2] = [256, 384];

/// Why a request is not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestError {
    #[error("the signing request has {0} bytes, more than the {MAX_BYTES} that are read")]
    TooLong(usize),
    #[error("the signing request cannot be read: {0}")]
    Unreadable(String),
    #[error("the signing request is not signed with its own key")]
    Signature,
    #[error(
        "{0} keys are not certified: use ECDSA P-256 or P-384, Ed25519, or RSA of {MIN_RSA_BITS} bits or more"
    )]
    Key(String),
    #[error("the signing request is for {asked}, but {granted} was asked for in ImpersonatedIdentity")]
    OtherIdentity { asked: String, granted: String },
}

/// The key to certify for `identity`. What else a request asks for is passed over, except another identity: who
/// sends that is confused, and would be given a certificate it cannot use.
pub(super) fn key(pem: &str, identity: &Identity) -> Result<SubjectPublicKeyInfo, RequestError> {
    if pem.len() > MAX_BYTES {
        return Err(RequestError::TooLong(pem.len()));
    }
    let unreadable = |reason: String| RequestError::Unreadable(reason);
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| unreadable(error.to_string()))?;
    let (rest, request) =
        X509CertificationRequest::from_der(&der).map_err(|error| unreadable(error.to_string()))?;
    if !rest.is_empty() {
        return Err(unreadable(format!("{} bytes follow it", rest.len())));
    }
    let info = &request.certification_request_info.subject_pki;
    check_key(&info.parsed().map_err(|error| unreadable(error.to_string()))?)?;
    request.verify_signature().map_err(|_| RequestError::Signature)?;
    check_names(&request, identity)?;
    // Refuses what the checks above know but this crate does not, such as RSA-PSS keys.
    SubjectPublicKeyInfo::from_der(info.raw)
        .map_err(|_| RequestError::Key(info.algorithm.algorithm.to_id_string()))
}

fn check_key(key: &PublicKey<'_>) -> Result<(), RequestError> {
    match key {
        PublicKey::RSA(rsa) if rsa.key_size() < MIN_RSA_BITS => {
            Err(RequestError::Key(format!("RSA {}", rsa.key_size())))
        }
        PublicKey::EC(point) if !CURVES.contains(&point.key_size()) => {
            Err(RequestError::Key(format!("ECDSA P-{}", point.key_size())))
        }
        // Ed25519 has no type of its own here; its signature was verified as such.
        PublicKey::RSA(_) | PublicKey::EC(_) | PublicKey::Unknown(_) => Ok(()),
        PublicKey::DSA(_) => Err(RequestError::Key("DSA".to_owned())),
        PublicKey::GostR3410(_) | PublicKey::GostR3410_2012(_) => Err(RequestError::Key("GOST".to_owned())),
    }
}

fn check_names(request: &X509CertificationRequest<'_>, identity: &Identity) -> Result<(), RequestError> {
    let granted = identity.to_string();
    let names = request
        .requested_extensions()
        .into_iter()
        .flatten()
        .filter_map(|extension| match extension {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten();
    for name in names {
        if let GeneralName::URI(uri) = name
            && *uri != granted
        {
            return Err(RequestError::OtherIdentity { asked: (*uri).to_owned(), granted });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
