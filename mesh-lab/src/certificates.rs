//! Certificate authorities in memory, for tests that need good certificates and bad ones.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};

/// A root, or an intermediate below one, with its key.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Certificates between a leaf and the root, the own one first; empty for a root.
    intermediates: Vec<String>,
    root: String,
}

/// What a leaf certificate says. The default is a good certificate for nobody, for a day.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// URIs in the subject alternative name, such as SPIFFE identities.
    pub uris: Vec<String>,
    /// DNS names and addresses in the subject alternative name.
    pub names: Vec<String>,
    /// First moment of validity.
    pub not_before: SystemTime,
    /// Last moment of validity.
    pub not_after: SystemTime,
    /// What it may be used for.
    pub usages: Vec<ExtendedKeyUsagePurpose>,
    /// Serial number; a random one by default.
    pub serial: Option<u64>,
}

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub struct Issued {
    /// Leaf first, then the intermediates, without the root.
    pub chain: String,
    /// Private key.
    pub key: String,
}

impl Default for Leaf {
    fn default() -> Self {
        let now = SystemTime::now();
        Self {
            uris: Vec::new(),
            names: Vec::new(),
            not_before: now - Duration::from_secs(60),
            not_after: now + Duration::from_secs(24 * 60 * 60),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            serial: None,
        }
    }
}

impl Leaf {
    /// A good certificate for a workload.
    pub fn workload(identity: impl ToString) -> Self {
        Self { uris: vec![identity.to_string()], ..Self::default() }
    }

    /// A good certificate for a server with this DNS name or address.
    pub fn server(name: impl Into<String>) -> Self {
        Self { names: vec![name.into()], ..Self::default() }
    }

    fn params(&self) -> Result<CertificateParams> {
        let mut params = CertificateParams::new(self.names.clone())?;
        // Workloads have no name, only an identity.
        params.distinguished_name = rcgen::DistinguishedName::new();
        for uri in &self.uris {
            params.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
        }
        params.not_before = self.not_before.into();
        params.not_after = self.not_after.into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = self.usages.clone();
        params.serial_number = self.serial.map(SerialNumber::from);
        Ok(params)
    }
}

impl Authority {
    /// A root of its own.
    ///
    /// # Errors
    /// When the name cannot be written into a certificate.
    pub fn root(name: &str) -> Result<Self> {
        let issuer = CertifiedIssuer::self_signed(authority_params(name), KeyPair::generate()?)?;
        let root = issuer.pem();
        Ok(Self { issuer, intermediates: Vec::new(), root })
    }

    /// An authority below this one.
    ///
    /// # Errors
    /// When the name cannot be written into a certificate.
    pub fn intermediate(&self, name: &str) -> Result<Self> {
        let issuer = CertifiedIssuer::signed_by(authority_params(name), KeyPair::generate()?, &self.issuer)?;
        let intermediates = [issuer.pem()].into_iter().chain(self.intermediates.clone()).collect();
        Ok(Self { issuer, intermediates, root: self.root.clone() })
    }

    /// The root's certificate, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root
    }

    /// The key it signs with, PEM.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Makes a key and a certificate for it.
    ///
    /// # Errors
    /// When the leaf's names cannot be written into a certificate.
    pub fn issue(&self, leaf: &Leaf) -> Result<Issued> {
        let key = KeyPair::generate()?;
        let certificate = leaf.params()?.signed_by(&key, &self.issuer)?;
        Ok(Issued { chain: self.chain(certificate.pem()).concat(), key: key.serialize_pem() })
    }

    /// Certifies the key of a signing request as `leaf` says: leaf first, then the intermediates, without the root.
    ///
    /// # Errors
    /// When the request is none, or the leaf's names cannot be written into a certificate.
    pub fn sign(&self, request: &str, leaf: &Leaf) -> Result<Vec<String>> {
        let request = CertificateSigningRequestParams::from_pem(request)?;
        let certificate = leaf.params()?.signed_by(&request.public_key, &self.issuer)?;
        Ok(self.chain(certificate.pem()))
    }

    /// A revocation list of the leaves with these serial numbers, PEM.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn revoke(&self, serials: &[u64]) -> Result<String> {
        let now = SystemTime::now();
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + Duration::from_secs(60 * 60)).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }

    fn chain(&self, leaf: String) -> Vec<String> {
        [leaf].into_iter().chain(self.intermediates.clone()).collect()
    }
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
