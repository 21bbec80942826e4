//! Making keys and certificates, and nothing about who may have them.

use std::fmt;
use std::time::{Duration, SystemTime};

use mesh_xds::identity::Identity;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use serde::{Deserialize, Serialize};

/// A certificate begins to be valid this much before it is made: the clocks of a cluster differ.
const BACKDATE: Duration = Duration::from_secs(60);
/// Random bytes of a serial number; RFC 5280 allows 20 and CAs are to use at least 8.
const SERIAL_BYTES: usize = 16;

/// A certificate with its private key, both PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyedCertificate {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl fmt::Debug for KeyedCertificate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("KeyedCertificate").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// From when until when a certificate is valid.
#[derive(Debug, Clone, Copy)]
pub(super) struct Validity {
    pub(super) from: SystemTime,
    pub(super) until: SystemTime,
}

impl Validity {
    pub(super) fn starting(now: SystemTime, lifetime: Duration) -> Self {
        // A tenth at most, so that half of a short life is not over before it begins.
        Self { from: now - BACKDATE.min(lifetime / 10), until: now + lifetime }
    }

    /// The same, but over before `limit`: nobody believes a certificate that outlives its issuer.
    pub(super) fn within(self, limit: SystemTime) -> Self {
        Self { until: self.until.min(limit), ..self }
    }
}

/// A new root.
pub(super) fn root(organization: &str, validity: Validity) -> Result<KeyedCertificate, rcgen::Error> {
    let key = KeyPair::generate()?;
    // One level below it: the issuer.
    let params = authority_params(organization, "mesh root", 1, validity)?;
    let certificate = params.self_signed(&key)?;
    Ok(KeyedCertificate { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A new intermediate, which signs leaves.
pub(super) fn issuer(
    organization: &str,
    root: &KeyedCertificate,
    validity: Validity,
) -> Result<KeyedCertificate, rcgen::Error> {
    let key = KeyPair::generate()?;
    let root = Issuer::from_ca_cert_pem(&root.certificate, KeyPair::from_pem(&root.key)?)?;
    let params = authority_params(organization, "mesh issuer", 0, validity)?;
    let certificate = params.signed_by(&key, &root)?;
    Ok(KeyedCertificate { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn authority_params(
    organization: &str,
    name: &str,
    levels_below: u8,
    validity: Validity,
) -> Result<CertificateParams, rcgen::Error> {
    let (serial_number, serial) = random_serial()?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, organization);
    // Verifiers find an issuer by its name: two roots of one name would make them try both.
    subject.push(DnType::CommonName, format!("{name} {}", serial.get(..8).unwrap_or_default()));
    let mut params = params(serial_number, validity);
    params.distinguished_name = subject;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(levels_below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// What a leaf certifies.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subject<'a> {
    /// A workload, both as a client and as a server.
    Workload(&'a Identity),
    /// A server, by DNS names and addresses.
    Server(&'a [SanType]),
}

/// The content of a leaf, and its serial number as it is shown.
pub(super) fn leaf(
    subject: Subject<'_>,
    validity: Validity,
) -> Result<(CertificateParams, String), rcgen::Error> {
    let (serial_number, serial) = random_serial()?;
    let mut params = params(serial_number, validity);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    match subject {
        Subject::Workload(identity) => {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
            params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_string())?)];
        }
        Subject::Server(names) => params.subject_alt_names = names.to_vec(),
    }
    Ok((params, serial))
}

fn params(serial_number: SerialNumber, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(serial_number);
    params.not_before = validity.from.into();
    params.not_after = validity.until.into();
    params.use_authority_key_identifier_extension = true;
    params
}

fn random_serial() -> Result<(SerialNumber, String), rcgen::Error> {
    let mut bytes = [0; SERIAL_BYTES];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    // Positive and of full length, so that every tool shows the same digits.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok((SerialNumber::from_slice(&bytes), hex(&bytes)))
}

/// Lower case digits, as serial numbers and digests are shown.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
