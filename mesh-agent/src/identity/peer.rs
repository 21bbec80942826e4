//! Who a peer has proven to be, and why it is refused.

use std::io;
use std::sync::Arc;

use jiff::Timestamp;
use mesh_xds::identity::{Identity, InvalidIdentity};
use rustls::{AlertDescription, CertificateError, OtherError};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why a peer is refused, or refuses us. The text is made for access logs and for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It has none.
    #[error("the peer sent no certificate")]
    NoCertificate,
    /// Not of this mesh, or a root has been taken away.
    #[error("the peer's certificate does not lead to a root that is trusted here")]
    UnknownIssuer,
    /// Its time is over.
    #[error("the peer's certificate expired at {}", timestamp(*.not_after))]
    Expired {
        /// When.
        not_after: UnixTime,
    },
    /// Its time has not come, or a clock is wrong.
    #[error("the peer's certificate is not valid before {}", timestamp(*.not_before))]
    NotYetValid {
        /// From when on it is.
        not_before: UnixTime,
    },
    /// Listed.
    #[error("the peer's certificate is revoked")]
    Revoked,
    /// Forged, damaged, or of another mesh whose root has the same name.
    #[error("the peer's certificate has a wrong signature, or is of another root with the same name")]
    BadSignature,
    /// A client's certificate on a server, or the other way round.
    #[error("the peer's certificate is not made for its side of a connection")]
    WrongPurpose,
    /// It cannot be read, or asks for what is not supported.
    #[error("the peer's certificate cannot be used: {0}")]
    Unusable(Arc<str>),
    /// No URI.
    #[error("the peer's certificate names no identity")]
    NoIdentity,
    /// More than one URI: a SPIFFE certificate has exactly one.
    #[error("the peer's certificate names {0} identities instead of one")]
    SeveralIdentities(usize),
    /// A URI that is something else.
    #[error("the peer's certificate names no workload: {0}")]
    NoWorkload(InvalidIdentity),
    /// A workload that this mesh has no business with.
    #[error("the peer is {peer}, which is not of trust domain {trusted}")]
    WrongTrustDomain {
        /// Who it is.
        peer: Identity,
        /// The trust domains that are accepted.
        trusted: Arc<str>,
    },
    /// The address is right, the workload is not.
    #[error("the peer is {peer} instead of {expected}")]
    OtherIdentity {
        /// Who it is.
        peer: Identity,
        /// Who it should be.
        expected: Arc<str>,
    },
    /// Refusing everybody is the safe thing to do as long as revoked peers cannot be told from others.
    #[error("no peer is accepted while there is no revocation list: {0}")]
    NoRevocationList(Arc<str>),
    /// The peer said so, in the few words TLS has for it.
    #[error("the peer refused our certificate: {0}")]
    RefusedOurs(&'static str),
    /// Nothing to do with identities.
    #[error("TLS handshake: {0}")]
    Handshake(Arc<str>),
}

/// The identity in a peer's certificate. That the certificate is genuine has been verified during the handshake.
///
/// # Errors
/// When there is no certificate, or it does not name exactly one workload.
pub fn peer_identity(certificates: Option<&[CertificateDer<'_>]>) -> Result<Identity, PeerError> {
    let leaf = certificates.and_then(<[_]>::first).ok_or(PeerError::NoCertificate)?;
    let unusable = |error: &dyn std::fmt::Display| PeerError::Unusable(error.to_string().into());
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| unusable(&error))?;
    let names = leaf.subject_alternative_name().map_err(|error| unusable(&error))?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    match uris.as_slice() {
        [] => Err(PeerError::NoIdentity),
        [uri] => uri.parse().map_err(PeerError::NoWorkload),
        several => Err(PeerError::SeveralIdentities(several.len())),
    }
}

/// Whether a server is one of those that the client wants to talk to. Before that, nothing may be sent to it.
///
/// # Errors
/// When it is not.
pub fn check_peer_is(peer: &Identity, expected: &[Identity]) -> Result<(), PeerError> {
    if expected.contains(peer) {
        return Ok(());
    }
    let expected: Vec<String> = expected.iter().map(Identity::to_string).collect();
    Err(PeerError::OtherIdentity { peer: peer.clone(), expected: expected.join(" or ").into() })
}

impl PeerError {
    /// The reason in the error of a handshake that failed, as tokio-rustls reports it. A server that refuses the
    /// client's certificate does so after the client's handshake is done (TLS 1.3), so the first read or write may
    /// fail with it as well.
    pub fn from_io(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => Self::from_tls(error),
            None => Self::Handshake(error.to_string().into()),
        }
    }

    /// The reason in rustls's error.
    pub fn from_tls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::InvalidCertificate(error) => Self::from_certificate_error(error),
            rustls::Error::AlertReceived(alert) => {
                refusal(*alert).map_or_else(|| Self::Handshake(error.to_string().into()), Self::RefusedOurs)
            }
            error => Self::Handshake(error.to_string().into()),
        }
    }

    fn from_certificate_error(error: &CertificateError) -> Self {
        match error {
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            CertificateError::ExpiredContext { not_after, .. } => Self::Expired { not_after: *not_after },
            CertificateError::NotValidYetContext { not_before, .. } => {
                Self::NotYetValid { not_before: *not_before }
            }
            CertificateError::Revoked => Self::Revoked,
            CertificateError::BadSignature => Self::BadSignature,
            CertificateError::InvalidPurpose => Self::WrongPurpose,
            CertificateError::Other(OtherError(inner)) => match inner.downcast_ref::<Self>() {
                Some(reason) => reason.clone(),
                None => Self::Unusable(inner.to_string().into()),
            },
            error => Self::Unusable(error.to_string().into()),
        }
    }
}

impl From<webpki::Error> for PeerError {
    fn from(error: webpki::Error) -> Self {
        match error {
            webpki::Error::UnknownIssuer => Self::UnknownIssuer,
            webpki::Error::CertExpired { not_after, .. } => Self::Expired { not_after },
            webpki::Error::CertNotValidYet { not_before, .. } => Self::NotYetValid { not_before },
            webpki::Error::CertRevoked => Self::Revoked,
            webpki::Error::InvalidSignatureForPublicKey => Self::BadSignature,
            webpki::Error::RequiredEkuNotFoundContext(_) => Self::WrongPurpose,
            error => Self::Unusable(error.to_string().into()),
        }
    }
}

/// Chooses the alert that the peer is sent: the standard ones where TLS has one. `certificate_unknown` stands for all
/// that is about the identity, so that [`refusal`] can tell the peer's log as much.
impl From<PeerError> for rustls::Error {
    fn from(reason: PeerError) -> Self {
        let error = match reason {
            PeerError::NoCertificate => return Self::NoCertificatesPresented,
            PeerError::UnknownIssuer => CertificateError::UnknownIssuer,
            // The alert is chosen by the kind of error; the time at which it was found is not kept.
            PeerError::Expired { not_after } => {
                CertificateError::ExpiredContext { time: not_after, not_after }
            }
            PeerError::NotYetValid { not_before } => {
                CertificateError::NotValidYetContext { time: not_before, not_before }
            }
            PeerError::Revoked => CertificateError::Revoked,
            PeerError::BadSignature => CertificateError::BadSignature,
            PeerError::WrongPurpose => CertificateError::InvalidPurpose,
            reason => CertificateError::Other(OtherError(Arc::new(reason))),
        };
        Self::InvalidCertificate(error)
    }
}

/// What a peer means by an alert, where it is about our certificate.
fn refusal(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::UnknownCA => "it does not lead to a root that is trusted there",
        AlertDescription::CertificateExpired => "it has expired, or is not valid yet, by the peer's clock",
        AlertDescription::CertificateRevoked => "it is revoked",
        AlertDescription::DecryptError => {
            "it has a wrong signature, or is of another root with the same name"
        }
        AlertDescription::UnsupportedCertificate => "it is not made for our side of a connection",
        AlertDescription::CertificateRequired => "there was none",
        AlertDescription::BadCertificate => "it cannot be read",
        AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => {
            "its identity, or its trust domain, is not accepted there"
        }
        _ => return None,
    })
}

fn timestamp(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX).to_string()
}
