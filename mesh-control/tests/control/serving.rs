//! Who is served, when, and how it is seen from outside.

use std::process::{Command, Stdio};

use mesh_control::control::Control;
use mesh_control::settings::{ServerCertificate, TlsSettings};
use mesh_xds::client::{Rejection, Update};
use mesh_xds::transport::TlsConfig;
use tokio::net::TcpStream;

use super::agent::Agent;
use super::fixture::{Fixture, get, service, settings};

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_that_there_is_nothing_before_everything_was_read() {
    let root = tempfile::tempdir().unwrap();
    let manifests = root.path().join("mounted-later");
    let control = Control::start(settings(manifests.clone())).await.unwrap();
    let ready = async || get(control.http_address, "/healthz/ready").await;
    // The first look has been taken when the reason is known.
    while !ready().await.1.contains("mounted-later") {
        tokio::task::yield_now().await;
    }
    assert_eq!(ready().await.0, 503);
    assert_eq!(get(control.http_address, "/healthz/live").await.0, 200);
    assert!(TcpStream::connect(control.grpc_address).await.is_err(), "agents are to try another server");

    std::fs::create_dir(&manifests).unwrap();
    std::fs::write(manifests.join("a.yaml"), service("a", 1)).unwrap();
    let agent = Agent::connect(&format!("http://{}", control.grpc_address));
    agent.has(1).await;
    assert_eq!(ready().await.0, 200);
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_types_are_answered_though_there_is_nothing() {
    let fixture = Fixture::start(&[]).await;
    let agent = Agent::connect(&fixture.uri());
    agent
        .eventually("both types answered", |told| {
            (told.responses.len() == 2 && told.resources.is_empty()).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_agents_are_seen() {
    let fixture = Fixture::start(&[("a.yaml", &service("a", 1))]).await;
    let refuse = |update: &Update| {
        update.resources.iter().map(|resource| Rejection::new(&resource.name, "I do not like it")).collect()
    };
    let _agent = Agent::with(&fixture.uri(), |config| config, refuse);
    let nacks = || fixture.metric("mesh_control_nacks_total");
    fixture.eventually("refused", nacks, |nacks| *nacks == 1.0).await;
    let status = fixture.status().await;
    let of_type = &status["agents"][0]["types"]["type.googleapis.com/istio.workload.Address"];
    assert_eq!(of_type["rejected"]["shop/a.shop.svc.cluster.local"], "I do not like it");
    assert_eq!(fixture.metric("mesh_control_connected_agents").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_served_over_tls() {
    let root = tempfile::tempdir().unwrap();
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (root.path().join("cert.pem"), root.path().join("key.pem"));
    std::fs::write(&certificate, signed.cert.pem()).unwrap();
    std::fs::write(&key, signed.signing_key.serialize_pem()).unwrap();
    let manifests = root.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    std::fs::write(manifests.join("a.yaml"), service("a", 1)).unwrap();

    let mut settings = settings(manifests);
    let address = "127.0.0.1:0".parse().unwrap();
    let files = ServerCertificate::Files { certificate: certificate.clone(), key };
    settings.tls = Some(TlsSettings { address, certificate: files });
    let control = Control::start(settings).await.unwrap();
    let tls = |mut config: mesh_xds::client::ClientConfig| {
        config.transport.tls =
            Some(TlsConfig { roots: certificate, server_name: Some("localhost".to_owned()) });
        config
    };
    let agent = Agent::with(&format!("https://{}", control.tls_address.unwrap()), tls, |_| Vec::new());
    agent.has(1).await;
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_survives_a_restart_of_the_server() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("a.yaml"), service("a", 1)).unwrap();
    let mut settings = settings(root.path().to_owned());
    let first = Control::start(settings.clone()).await.unwrap();
    settings.grpc_address = first.grpc_address;
    let agent = Agent::connect(&format!("http://{}", first.grpc_address));
    agent.has(1).await;
    agent.news();
    first.stop().await;

    std::fs::write(root.path().join("b.yaml"), service("b", 1)).unwrap();
    let second = Control::start(settings).await.unwrap();
    agent.has(2).await;
    assert_eq!(agent.news(), ["shop/b.shop.svc.cluster.local"], "what it holds is not sent again");
    second.stop().await;
}

#[test]
fn the_program_validates_and_stops_when_told() {
    let root = tempfile::tempdir().unwrap();
    let manifest = root.path().join("a.yaml");
    let program = || Command::new(env!("CARGO_BIN_EXE_mesh-control"));
    let validate = |text: String| {
        std::fs::write(&manifest, text).unwrap();
        let output = program().arg("validate").arg(&manifest).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(validate(service("a", 1)), (Some(0), String::new()));
    let (code, report) = validate(service("a", 0) + "---\nkind: [\n");
    assert_eq!((code, report.lines().count()), (Some(1), 2), "{report}");
    assert!(report.contains("a.yaml:10: Service shop/a: spec.ports[0].port: "), "{report}");

    let any = "127.0.0.1:0";
    let mut server = program()
        .arg("--manifests")
        .arg(root.path())
        .args(["--grpc-address", any, "--http-address", any])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = std::io::BufRead::lines(std::io::BufReader::new(server.stderr.take().unwrap()));
    assert!(log.by_ref().any(|line| line.unwrap().contains("ready")));
    let kill = Command::new("kill").arg(server.id().to_string()).status().unwrap();
    assert!(kill.success());
    assert!(server.wait().unwrap().success());

    let refused = program().args(["--cluster-id", "a/b"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(message.contains("--manifests") && message.contains("--cluster-id"), "{message}");
}
