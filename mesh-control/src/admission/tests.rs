//! A whole control server with its webhook, asked over HTTPS as an API server asks: trusting what is in the
//! caBundle, and nothing else.

use std::path::Path;
use std::time::Instant;

use k8s_openapi::ByteString;
use kube::{Client, Config};
use mesh_lab::api_server::{ApiServer, ResourceType, Trouble};
use rcgen::SanType;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::authority::{
    AuthorityCommand, AuthoritySettings, Environment, Lifetimes, MaterialArgs, MaterialSettings,
};
use crate::control::Control;
use crate::model::ObjectName;
use crate::settings::{Settings, SourceSettings};
use crate::translate::Mesh;

const NAME: &str = "mesh-control.mesh-system.svc";
const CONFIGURATION: &str = "mesh-control-mesh-system";
const KIND: &str = "ValidatingWebhookConfiguration";

struct Lab {
    root: TempDir,
    server: ApiServer,
    control: Control,
}

impl Lab {
    async fn start(lifetimes: Lifetimes) -> Self {
        let (root, server) = (tempfile::tempdir().unwrap(), ApiServer::without_socket());
        let group = "admissionregistration.k8s.io";
        let configurations =
            ResourceType::cluster_wide(group, &["v1"], "validatingwebhookconfigurations", KIND);
        server.install(configurations);
        server.apply(configuration());
        let control = control(root.path(), &server, "first", lifetimes).await;
        Self { root, server, control }
    }

    /// The configuration as it is on the server.
    fn stored(&self) -> Value {
        self.server.object(KIND, "", CONFIGURATION).unwrap()
    }

    /// What the API server trusts, once it is told.
    async fn bundle(&self, wanted: impl Fn(&str) -> bool) -> String {
        let bundle = || {
            let configuration = self.stored();
            let bundle = configuration["webhooks"][1]["clientConfig"]["caBundle"].clone();
            let bundle = serde_json::from_value::<ByteString>(bundle).unwrap_or_default();
            String::from_utf8(bundle.0).unwrap()
        };
        eventually("the bundle", async || wanted(&bundle())).await;
        bundle()
    }

    async fn ask(&self, bundle: &str, review: &Value) -> Result<Value, String> {
        let text = post(&self.control, bundle, PATH, review.to_string()).await?;
        Ok(serde_json::from_str::<Value>(&text).unwrap()["response"].clone())
    }

    async fn get(&self, path: &str) -> String {
        let address = format!("http://{}", self.control.http_address);
        let client = Client::try_from(Config::new(address.parse().unwrap())).unwrap();
        client.request_text(http::Request::get(path).body(Vec::new()).unwrap()).await.unwrap()
    }

    async fn status(&self) -> Value {
        serde_json::from_str(&self.get("/status").await).unwrap()
    }

    async fn metrics(&self) -> String {
        self.get("/metrics").await
    }
}

async fn control(root: &Path, server: &ApiServer, identity: &str, lifetimes: Lifetimes) -> Control {
    let any = "127.0.0.1:0".parse().unwrap();
    for folder in ["manifests", "ca"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    std::fs::write(root.join("tokens.yaml"), "[]").unwrap();
    let authority = AuthoritySettings {
        material: MaterialSettings::Directory(root.join("ca")),
        lifetimes,
        root_file: None,
        plaintext: false,
        tokens: Some(root.join("tokens.yaml")),
        reviews: None,
    };
    let settings = Settings {
        source: SourceSettings::Manifests(vec![root.join("manifests")]),
        grpc_address: any,
        tls: None,
        authority: Some(authority),
        admission: Some(AdmissionSettings {
            address: any,
            configuration: CONFIGURATION.to_owned(),
            names: vec![SanType::DnsName(NAME.try_into().unwrap())],
        }),
        leader: Some(LeaderSettings {
            lease: ObjectName::new("mesh-system", "mesh-control"),
            identity: identity.to_owned(),
            write_status: true,
        }),
        http_address: any,
        max_connections: 10,
        mesh: Mesh::default(),
    };
    let environment =
        Environment { kubernetes: Some(Client::new(server.router(), "default")), ..Environment::default() };
    Control::start_in(settings, environment).await.unwrap()
}

fn configuration() -> Value {
    let webhook = |name: &str| {
        json!({
            "name": name, "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"name": "mesh-control", "namespace": "mesh-system", "path": PATH}},
        })
    };
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": CONFIGURATION}, "webhooks": [webhook("a.mesh.svc"), webhook("b.mesh.svc")],
    })
}

async fn post(control: &Control, bundle: &str, path: &str, body: String) -> Result<String, String> {
    let mut config = Config::new(format!("https://{}", control.webhook_address.unwrap()).parse().unwrap());
    let roots = CertificateDer::pem_slice_iter(bundle.as_bytes());
    config.root_cert = Some(roots.map(|root| root.unwrap().to_vec()).collect());
    config.tls_server_name = Some(NAME.to_owned());
    let client = Client::try_from(config).unwrap();
    let request = http::Request::post(path).body(body.into_bytes()).unwrap();
    client.request_text(request).await.map_err(|error| format!("{error:?}"))
}

async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(Instant::now() < until, "never {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn review(spec: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "7", "operation": "CREATE", "name": "web", "namespace": "shop", "userInfo": {"username": "kim"},
            "kind": {"group": "security.istio.io", "version": "v1", "kind": "AuthorizationPolicy"},
            "resource": {"group": "security.istio.io", "version": "v1", "resource": "authorizationpolicies"},
            "object": {
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "web", "namespace": "shop"}, "spec": spec,
            },
            "oldObject": null, "dryRun": false, "options": {},
        },
    })
}

#[tokio::test]
async fn policies_are_judged_over_https() {
    let lab = Lab::start(Lifetimes::default()).await;
    let bundle = lab.bundle(|bundle| !bundle.is_empty()).await;
    let good = lab.ask(&bundle, &review(&json!({}))).await.unwrap();
    assert_eq!((&good["allowed"], &good["uid"]), (&json!(true), &json!("7")));
    let bad = lab.ask(&bundle, &review(&json!({"action": "DENY"}))).await.unwrap();
    assert_eq!((&bad["allowed"], &bad["status"]["code"]), (&json!(false), &json!(422)));
    assert!(bad["status"]["message"].as_str().unwrap().starts_with("spec.rules: "), "{bad}");

    let status = lab.status().await;
    assert_eq!(status["admission"]["registered"], true);
    assert!(status["admission"]["certificate"]["not_after"].is_string(), "{status}");
    assert_eq!(
        (&status["leader"]["leading"], &status["leader"]["identity"]),
        (&json!(true), &json!("first"))
    );
    let metrics = lab.metrics().await;
    for line in [
        r#"mesh_control_admission_verdicts_total{kind="AuthorizationPolicy",outcome="allowed"} 1"#,
        r#"mesh_control_admission_verdicts_total{kind="AuthorizationPolicy",outcome="denied"} 1"#,
        "mesh_control_leader 1",
        "mesh_control_admission_registered 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    assert!(!metrics.contains("mesh_control_admission_certificate_expiry_timestamp_seconds 0"), "{metrics}");
}

#[tokio::test]
async fn what_is_no_review_is_answered_with_what_is_wrong() {
    let lab = Lab::start(Lifetimes::default()).await;
    let bundle = lab.bundle(|bundle| !bundle.is_empty()).await;
    let of_v1beta1 =
        json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": null});
    let without = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"});
    for (body, reason) in [
        ("{".to_owned(), "expected an AdmissionReview"),
        (of_v1beta1.to_string(), "found AdmissionReview of admission.k8s.io/v1beta1"),
        (without.to_string(), "it has no request"),
        (" ".repeat(MAX_REVIEW + 1), "at most 7340032 bytes"),
    ] {
        let answer = post(&lab.control, &bundle, PATH, body).await.unwrap_err();
        assert!(answer.contains(reason) && answer.contains("400"), "{answer}");
    }
    assert!(post(&lab.control, &bundle, "/", String::new()).await.unwrap_err().contains("404"));
}

#[tokio::test]
async fn the_bundle_is_mended_by_the_one_that_leads() {
    let lab = Lab::start(Lifetimes::default()).await;
    let bundle = lab.bundle(|bundle| !bundle.is_empty()).await;
    let second = control(lab.root.path(), &lab.server, "second", Lifetimes::default()).await;
    // Both serve under it.
    for control in [&lab.control, &second] {
        post(control, &bundle, PATH, review(&json!({})).to_string()).await.unwrap();
    }
    let spoil = || {
        let mut spoilt = lab.stored();
        spoilt["webhooks"][1]["clientConfig"]["caBundle"] = json!(ByteString(b"nonsense".to_vec()));
        spoilt["webhooks"][0]["failurePolicy"] = json!("Ignore");
        lab.server.apply(spoilt);
    };
    spoil();
    assert_eq!(lab.bundle(|now| now == bundle).await, bundle);
    assert_eq!(lab.stored()["webhooks"][0]["failurePolicy"], "Ignore", "that is not ours");
    // The leader stops; the other one goes on.
    let Lab { root, server, control } = lab;
    control.stop().await;
    let lab = Lab { root, server, control: second };
    let spoil = || {
        let mut spoilt = lab.stored();
        spoilt["webhooks"][1]["clientConfig"]["caBundle"] = json!(null);
        lab.server.apply(spoilt);
    };
    spoil();
    lab.bundle(|now| now == bundle).await;
    // What could not be written is written later.
    lab.server.set_trouble(Trouble::RefusesWrites(403));
    spoil();
    eventually("told", async || {
        let problem = lab.status().await["admission"]["problem"].to_string();
        problem.contains("allow the service account")
    })
    .await;
    lab.server.set_trouble(Trouble::None);
    lab.bundle(|now| now == bundle).await;
    lab.control.stop().await;
}

#[tokio::test]
async fn a_root_is_replaced_without_a_review_that_fails() {
    let overlap = Duration::from_secs(4);
    let lifetimes = Lifetimes { overlap, ..Lifetimes::default() };
    let lab = Lab::start(lifetimes).await;
    let old = lab.bundle(|bundle| !bundle.is_empty()).await;
    let material = MaterialArgs { ca_dir: Some(lab.root.path().join("ca")), ..MaterialArgs::default() };
    AuthorityCommand::Rotate { material }.run().await.unwrap();
    let roots = |bundle: &str| bundle.matches("BEGIN").count();
    let both = lab.bundle(|bundle| roots(bundle) == 2).await;
    let mut asked = 0;
    // An API server asks all the while, with the bundle that there is at the moment.
    let until = Instant::now() + Duration::from_secs(60);
    let new = loop {
        let bundle = lab.bundle(|_| true).await;
        lab.ask(&bundle, &review(&json!({}))).await.unwrap_or_else(|error| panic!("after {asked}: {error}"));
        asked += 1;
        if roots(&bundle) == 1 {
            break bundle;
        }
        assert!(Instant::now() < until, "the old root never went");
    };
    assert!(asked > 10);
    assert_ne!(new, old);
    assert!(lab.ask(&both, &review(&json!({}))).await.is_ok());
    assert!(lab.ask(&old, &review(&json!({}))).await.is_err(), "it is of the new root");
    lab.control.stop().await;
}
