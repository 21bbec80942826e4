//! Certificates as agents get them: over gRPC, with real tokens, verified as another agent would.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_control::authority::{AuthoritySettings, Clock, Environment, Lifetimes, MaterialSettings};
use mesh_control::control::Control;
use mesh_control::settings::{ServerCertificate, TlsSettings};
use mesh_xds::proto::auth::IstioCertificateRequest;
use mesh_xds::proto::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use tempfile::TempDir;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
use x509_parser::extensions::GeneralName;

use super::fixture::{get, pod, settings};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/default";
const TOKEN_N1: &str = "the token of the agent on n1";
const TOKEN_N2: &str = "the token of the agent on n2";
const DAY: Duration = Duration::from_secs(86_400);

/// A control server with an authority, at a time of its own.
struct Lab {
    root: TempDir,
    time: Arc<AtomicU64>,
    control: Control,
}

impl Lab {
    async fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::fs::create_dir(path("manifests")).unwrap();
        std::fs::write(path("manifests/pods.yaml"), pod("web", "10.0.0.1", true)).unwrap();
        let tokens = format!(
            "- {{token: {TOKEN_N1}, node: n1, expires: 2100-01-01T00:00:00Z}}\n\
             - {{token: {TOKEN_N2}, node: n2, expires: 2100-01-01T00:00:00Z}}\n\
             - {{token: the expired token of n1, node: n1, expires: 2001-01-01T00:00:00Z}}\n"
        );
        std::fs::write(path("tokens.yaml"), tokens).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let time = Arc::new(AtomicU64::new(now));
        let control = Self::control(root.path(), &time, |_| {}).await;
        Self { root, time, control }
    }

    async fn control(
        root: &Path,
        time: &Arc<AtomicU64>,
        change: impl FnOnce(&mut AuthoritySettings),
    ) -> Control {
        let any = "127.0.0.1:0".parse().unwrap();
        let mut authority = AuthoritySettings {
            material: MaterialSettings::Directory(root.join("ca")),
            lifetimes: Lifetimes::default(),
            root_file: Some(root.join("root.pem")),
            plaintext: false,
            tokens: Some(root.join("tokens.yaml")),
            reviews: None,
        };
        change(&mut authority);
        let mut settings = settings(root.join("manifests"));
        let names = vec![SanType::DnsName("control.test".try_into().unwrap())];
        settings.tls = Some(TlsSettings { address: any, certificate: ServerCertificate::Issued(names) });
        settings.authority = Some(authority);
        let time = Arc::clone(time);
        let clock = Clock::from_fn(move || UNIX_EPOCH + Duration::from_secs(time.load(Ordering::SeqCst)));
        let environment = Environment { clock, kubernetes: None };
        let control = Control::start_in(settings, environment).await.unwrap();
        eventually("ready", async || get(control.http_address, "/healthz/ready").await.0 == 200).await;
        control
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.time.load(Ordering::SeqCst))
    }

    fn pass(&self, time: Duration) {
        self.time.fetch_add(time.as_secs(), Ordering::SeqCst);
    }

    fn roots(&self) -> String {
        std::fs::read_to_string(self.path("root.pem")).unwrap()
    }

    /// A connection over TLS that trusts the roots in the file.
    async fn connect(&self) -> Channel {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.roots()))
            .domain_name("control.test");
        let uri = format!("https://{}", self.control.tls_address.unwrap());
        Endpoint::from_shared(uri).unwrap().tls_config(tls).unwrap().connect().await.unwrap()
    }

    async fn ask(&self, token: &str, identity: &str) -> Result<Vec<String>, Status> {
        ask(self.connect().await, Some(token), identity, &csr(&KeyPair::generate().unwrap(), &[])).await
    }

    async fn refused(&self, token: &str, identity: &str) -> (Code, String) {
        let status = self.ask(token, identity).await.unwrap_err();
        (status.code(), status.message().to_owned())
    }

    async fn status(&self) -> serde_json::Value {
        let text = get(self.control.http_address, "/status").await.1;
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["authority"].clone()
    }
}

async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(std::time::Instant::now() < until, "never {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn csr(key: &KeyPair, names: &[&str]) -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.iter().map(|name| SanType::URI((*name).try_into().unwrap())).collect();
    params.serialize_request(key).unwrap().pem().unwrap()
}

async fn ask(
    channel: Channel,
    token: Option<&str>,
    identity: &str,
    csr: &str,
) -> Result<Vec<String>, Status> {
    let identity = Value { kind: Some(Kind::StringValue(identity.to_owned())) };
    let mut request = Request::new(IstioCertificateRequest {
        csr: csr.to_owned(),
        validity_duration: 3600,
        metadata: Some(Struct { fields: [("ImpersonatedIdentity".to_owned(), identity)].into() }),
    });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let response = IstioCertificateServiceClient::new(channel).create_certificate(request).await?;
    Ok(response.into_inner().cert_chain)
}

fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// Verifies the chain as a server verifies its client, with these roots.
fn verify(chain: &[String], roots: &str, at: SystemTime) -> Result<(), rustls::Error> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).build().unwrap();
    let (_, chain) = chain.split_last().unwrap();
    let intermediates: Vec<_> = chain[1..].iter().map(|pem| certificate(pem)).collect();
    let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap());
    verifier.verify_client_cert(&certificate(&chain[0]), &intermediates, at).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_gets_certificates_for_the_pods_on_its_node() {
    let lab = Lab::start().await;
    let key = KeyPair::generate().unwrap();
    let chain = ask(lab.connect().await, Some(TOKEN_N1), WEB, &csr(&key, &[WEB])).await.unwrap();
    assert_eq!(chain.len(), 3, "leaf, intermediate, root");
    assert_eq!(chain[2], lab.roots(), "the file has what agents are given");
    verify(&chain, &chain[2], lab.now()).unwrap();

    let leaf = certificate(&chain[0]);
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names, &[GeneralName::URI(WEB)]);
    assert_eq!(leaf.public_key().subject_public_key.data.as_ref(), key.public_key_raw());
    assert!(!leaf.is_ca());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth && !usage.any);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
    let now = lab.now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed();
    assert_eq!(leaf.validity().not_after.timestamp(), now + 3600);
    assert_eq!(leaf.validity().not_before.timestamp(), now - 60, "for clocks that are behind");

    let again = lab.ask(TOKEN_N1, WEB).await.unwrap();
    let serial = |pem: &str| {
        let der = certificate(pem);
        x509_parser::parse_x509_certificate(&der).unwrap().1.raw_serial().to_vec()
    };
    assert_ne!(serial(&chain[0]), serial(&again[0]));
    assert_eq!(chain[1], again[1]);
    lab.control.stop().await;
}
