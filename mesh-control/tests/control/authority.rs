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
    async fn start(change: impl FnOnce(&Path, &mut AuthoritySettings)) -> Self {
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
        let control = Self::control(root.path(), &time, change).await;
        Self { root, time, control }
    }

    /// Stops the server and starts one on what it left.
    async fn restart(self, change: impl FnOnce(&Path, &mut AuthoritySettings)) -> Self {
        self.control.stop().await;
        let control = Self::control(self.root.path(), &self.time, change).await;
        Self { control, ..self }
    }

    async fn control(
        root: &Path,
        time: &Arc<AtomicU64>,
        change: impl FnOnce(&Path, &mut AuthoritySettings),
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
        change(root, &mut authority);
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

    /// A connection that works at any time: TLS clients go by the clock of the machine.
    async fn connect_plain(&self) -> Channel {
        let uri = format!("http://{}", self.control.grpc_address);
        Endpoint::from_shared(uri).unwrap().connect().await.unwrap()
    }

    async fn ask(&self, token: &str, identity: &str) -> Result<Vec<String>, Status> {
        ask(self.connect().await, Some(token), identity, &request()).await
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

fn in_a_lab(_: &Path, settings: &mut AuthoritySettings) {
    settings.plaintext = true;
}

fn as_usual(_: &Path, _: &mut AuthoritySettings) {}

/// A request with a key that nobody needs.
fn request() -> String {
    csr(&KeyPair::generate().unwrap(), &[])
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
    let lab = Lab::start(as_usual).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_why() {
    let lab = Lab::start(as_usual).await;
    let (code, reason) = lab.refused(TOKEN_N2, WEB).await;
    assert_eq!(code, Code::PermissionDenied);
    assert_eq!(
        reason,
        format!(
            "node n2 may not have {WEB}: no pod there has this service account; those that have it are shop/web on node n1"
        )
    );
    let (code, reason) = lab.refused("the expired token of n1", WEB).await;
    assert_eq!(code, Code::Unauthenticated);
    assert!(reason.contains("the agent of n1 expired at 2001-01-01T00:00:00Z"), "{reason}");
    let (code, reason) = lab.refused("a token that nobody gave out", WEB).await;
    assert_eq!((code, reason.as_str()), (Code::Unauthenticated, "the token is unknown"));
    let (code, reason) = lab.refused(TOKEN_N1, "spiffe://cluster.local/shop/web").await;
    assert_eq!(code, Code::InvalidArgument);
    assert!(reason.contains("ImpersonatedIdentity"), "{reason}");

    let channel = lab.connect().await;
    let status = ask(channel.clone(), None, WEB, &request()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let other = csr(&KeyPair::generate().unwrap(), &["spiffe://cluster.local/ns/shop/sa/db"]);
    for bad in [other.as_str(), "no request"] {
        let status = ask(channel.clone(), Some(TOKEN_N1), WEB, bad).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    let metrics = get(lab.control.http_address, "/metrics").await.1;
    for line in [
        "mesh_control_authority_certificates_total 0",
        "mesh_control_authority_refusals_total{reason=\"not_allowed\"} 1",
        "mesh_control_authority_refusals_total{reason=\"unauthenticated\"} 3",
        "mesh_control_authority_refusals_total{reason=\"bad_request\"} 3",
        "mesh_control_authority_rotation_phase{phase=\"steady\"} 1",
        "mesh_control_authority_agent_tokens 3",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    lab.control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_may_have_an_identity_as_long_as_its_pod_is_there() {
    let lab = Lab::start(as_usual).await;
    lab.ask(TOKEN_N1, WEB).await.unwrap();
    std::fs::write(
        lab.path("manifests/pods.yaml"),
        pod("web", "10.0.0.1", true).replace("nodeName: n1", "nodeName: n2"),
    )
    .unwrap();
    eventually("moved", async || lab.ask(TOKEN_N2, WEB).await.is_ok()).await;
    assert_eq!(lab.refused(TOKEN_N1, WEB).await.0, Code::PermissionDenied);
    lab.control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_for_tls_unless_it_is_a_lab() {
    let lab = Lab::start(as_usual).await;
    let status = ask(lab.connect_plain().await, Some(TOKEN_N1), WEB, &request()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("--ca-plaintext"), "{status}");
    let lab = lab.restart(in_a_lab).await;
    ask(lab.connect_plain().await, Some(TOKEN_N1), WEB, &request()).await.unwrap();
    let status = ask(lab.connect_plain().await, None, WEB, &request()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    lab.control.stop().await;

    let control = Control::start(settings(lab.root.path().join("manifests"))).await.unwrap();
    eventually("ready", async || get(control.http_address, "/healthz/ready").await.0 == 200).await;
    let uri = format!("http://{}", control.grpc_address);
    let channel = Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
    let status = ask(channel, Some(TOKEN_N1), WEB, &request()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("--ca-dir"), "{status}");
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_is_rotated_on_demand_and_over_restarts() {
    let mut lab = Lab::start(in_a_lab).await;
    let directory = lab.path("ca");
    let command = |what: &str| {
        let program = std::process::Command::new(env!("CARGO_BIN_EXE_mesh-control"))
            .args(["ca", what, "--ca-dir"])
            .arg(&directory)
            .output()
            .unwrap();
        (program.status.success(), String::from_utf8(program.stdout).unwrap())
    };
    let issue =
        async |lab: &Lab| ask(lab.connect_plain().await, Some(TOKEN_N1), WEB, &request()).await.unwrap();
    let first = issue(&lab).await;
    let old_root = lab.roots();
    assert!(command("rotate").0);
    let phase = async |lab: &Lab, phase: &str| {
        eventually(phase, async || lab.status().await["rotation"] == phase).await;
        assert!(command("show").1.starts_with(&format!("rotation: {phase}\n")), "{}", command("show").1);
        eventually("in the file", async || issue(lab).await.last() == Some(&lab.roots())).await;
    };

    phase(&lab, "announced").await;
    let both = lab.roots();
    assert!(both.starts_with(&old_root) && both != old_root);
    assert!(!command("rotate").0, "one at a time");
    let second = issue(&lab).await;
    assert_eq!(second[1], first[1], "the old issuer still signs");
    lab = lab.restart(in_a_lab).await;
    assert_eq!(lab.roots(), both);

    lab.pass(2 * DAY);
    phase(&lab, "retiring").await;
    let third = issue(&lab).await;
    assert_ne!(third[1], first[1]);
    assert!(verify(&third, &old_root, lab.now()).is_err());
    verify(&third, &both, lab.now()).unwrap();
    lab = lab.restart(in_a_lab).await;

    lab.pass(2 * DAY);
    phase(&lab, "steady").await;
    let fourth = issue(&lab).await;
    verify(&fourth, &lab.roots(), lab.now()).unwrap();
    assert!(verify(&fourth, &old_root, lab.now()).is_err());
    assert!(!command("show").1.contains("PRIVATE"), "{}", command("show").1);
    lab.control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_files_are_watched_and_the_last_good_ones_stay() {
    let operator = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    let write = |root: &Path, certificate: &str, key: &str, roots: &str| {
        std::fs::create_dir_all(root.join("files")).unwrap();
        for (name, text) in [("ca-cert.pem", certificate), ("ca-key.pem", key), ("root-cert.pem", roots)] {
            std::fs::write(root.join("files").join(name), text).unwrap();
        }
    };
    let ((old, old_key), (new, new_key)) = (operator("old"), operator("new"));
    let lab = Lab::start(|root, settings| {
        write(root, &old, &old_key, &old);
        settings.material = MaterialSettings::Files(root.join("files"));
    })
    .await;
    let problems = async || lab.status().await["problems"].to_string();
    let chain = lab.ask(TOKEN_N1, WEB).await.unwrap();
    assert_eq!(chain.len(), 2, "the root signs by itself");
    verify(&chain, &old, lab.now()).unwrap();

    // A key that is not the certificate's: what was there goes on.
    write(lab.root.path(), &new, &old_key, &new);
    eventually("noticed", async || problems().await.contains("is not the key of the certificate")).await;
    verify(&lab.ask(TOKEN_N1, WEB).await.unwrap(), &old, lab.now()).unwrap();

    // As Istio documents a rotation: both roots, then the other issuer.
    let both = format!("{old}{new}");
    write(lab.root.path(), &old, &old_key, &both);
    eventually("both roots", async || lab.ask(TOKEN_N1, WEB).await.unwrap().last() == Some(&both)).await;
    assert_eq!(problems().await, "[]");
    eventually("in the file", async || lab.roots() == both).await;
    write(lab.root.path(), &new, &new_key, &both);
    let switched = async || verify(&lab.ask(TOKEN_N1, WEB).await.unwrap(), &new, lab.now()).is_ok();
    eventually("the new issuer", switched).await;

    std::fs::remove_dir_all(lab.path("files")).unwrap();
    eventually("noticed", async || problems().await.contains("ca-cert.pem: is missing")).await;
    lab.ask(TOKEN_N1, WEB).await.unwrap();
    lab.control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_material_requests_are_answered_with_the_reason() {
    let lab = Lab::start(|root, settings| {
        in_a_lab(root, settings);
        settings.material = MaterialSettings::Files(root.join("files"));
    })
    .await;
    let status = ask(lab.connect_plain().await, Some(TOKEN_N1), WEB, &request()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("ca-cert.pem: is missing"), "{status}");
    let metrics = get(lab.control.http_address, "/metrics").await.1;
    assert!(metrics.contains("authority_problems{source=\"material\"} 1"), "{metrics}");
    lab.control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_ask_at_once() {
    let lab = Lab::start(as_usual).await;
    let channel = lab.connect().await;
    let request = request();
    let asking = (0..200).map(|_| ask(channel.clone(), Some(TOKEN_N1), WEB, &request));
    let answers = futures::future::join_all(asking).await;
    let (issued, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert!(issued.len() >= 32, "{} were issued", issued.len());
    for status in refused.into_iter().filter_map(Result::err) {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    }
    let leaves: std::collections::BTreeSet<_> =
        issued.iter().map(|chain| chain.as_ref().unwrap()[0].clone()).collect();
    assert_eq!(leaves.len(), issued.len(), "each is one of its own");
    lab.ask(TOKEN_N1, WEB).await.unwrap();
    lab.control.stop().await;
}
