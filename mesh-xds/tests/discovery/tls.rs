use mesh_xds::client::{ClientConfig, Subscription};
use mesh_xds::proto::workload::Workload;
use mesh_xds::server::{DiscoveryServer, ResourceStore, ServerConfig};
use mesh_xds::transport::{TlsConfig, Transport};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Identity, ServerTlsConfig};

use super::support::*;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn identity(authority: &Authority, name: &str) -> ServerTlsConfig {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, authority).unwrap();
    ServerTlsConfig::new().identity(Identity::from_pem(certificate.pem(), key.serialize_pem()))
}

async fn start(store: &ResourceStore, tls: ServerTlsConfig) -> TestServer {
    TestServer::start_with(store, ServerConfig::default(), "127.0.0.1:0", Some(tls)).await
}

fn config(server: &TestServer, tls: TlsConfig) -> ClientConfig {
    let uri = format!("https://{}", server.address);
    let transport = Transport { tls: Some(tls), ..Transport::default() };
    ClientConfig { transport, ..client_config(&[uri], Subscription::wildcard::<Workload>()) }
}

#[tokio::test]
async fn a_server_is_verified_by_address_or_by_the_name_given() {
    let content = store(&[("a", "n1")]);
    let directory = TempDir::new().unwrap();
    let authority = authority("ours");
    let roots = file(&directory, "root.pem", authority.pem());

    for (certified, server_name) in
        [("127.0.0.1", None), ("mesh-control.test", Some("mesh-control.test".to_owned()))]
    {
        let server = start(&content, identity(&authority, certified)).await;
        let client = TestClient::start(config(&server, TlsConfig { roots: roots.clone(), server_name }));
        client.collector.eventually_has(&[("a", "n1")]).await;
    }
}

#[tokio::test]
async fn an_unverified_server_is_refused_and_the_reason_is_named() {
    let content = store(&[("a", "n1")]);
    let directory = TempDir::new().unwrap();
    let trusted = authority("ours");
    let roots = file(&directory, "root.pem", trusted.pem());
    let wrong_name = Some("somebody-else.test".to_owned());
    let missing = directory.path().join("missing.pem");
    let empty = file(&directory, "empty.pem", "");

    let untrusted = identity(&authority("theirs"), "127.0.0.1");
    let cases = [
        (untrusted.clone(), TlsConfig { roots: roots.clone(), server_name: None }, "UnknownIssuer"),
        (identity(&trusted, "127.0.0.1"), TlsConfig { roots, server_name: wrong_name }, "not valid for name"),
        (untrusted.clone(), TlsConfig { roots: missing, server_name: None }, "missing.pem: No such file"),
        (untrusted, TlsConfig { roots: empty, server_name: None }, "empty.pem holds no root certificate"),
    ];
    for (server_tls, client_tls, reason) in cases {
        let server = start(&content, server_tls).await;
        let client = TestClient::start(config(&server, client_tls));
        let error = client.last_error().await;
        assert!(error.contains(reason), "{error:?} should name {reason:?}");
        assert!(error.contains(".pem"), "{error:?} should name the file with the roots");
        assert!(client.collector.has(&[]));
    }
}

#[tokio::test]
async fn plain_text_and_tls_do_not_meet() {
    let content = store(&[("a", "n1")]);
    let directory = TempDir::new().unwrap();
    let roots = file(&directory, "root.pem", authority("ours").pem());
    let plain_server = TestServer::start(&content).await;
    let client = TestClient::start(config(&plain_server, TlsConfig { roots, server_name: None }));
    assert!(client.last_error().await.starts_with("cannot connect"), "{}", client.last_error().await);
}

#[tokio::test]
async fn a_token_is_sent_and_read_again_at_every_attempt() {
    let content = store(&[("a", "n1")]);
    let directory = TempDir::new().unwrap();
    let authority = authority("ours");
    let roots = file(&directory, "root.pem", authority.pem());
    let token_file = file(&directory, "token", "stale\n");

    let service = DiscoveryServer::new(content.clone(), ServerConfig::default()).service();
    let guarded = InterceptedService::new(service, |request: tonic::Request<()>| {
        match request.metadata().get("authorization").map(|header| header.as_bytes()) {
            Some(b"Bearer fresh") => Ok(request),
            other => Err(tonic::Status::unauthenticated(format!("bad token {other:?}"))),
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("https://{}", listener.local_addr().unwrap());
    let router = DiscoveryServer::transport()
        .tls_config(identity(&authority, "127.0.0.1"))
        .unwrap()
        .add_service(guarded);
    let serving = tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));

    let client = TestClient::start(ClientConfig {
        transport: Transport {
            tls: Some(TlsConfig { roots, server_name: None }),
            token_file: Some(token_file.clone()),
            ..Transport::default()
        },
        ..client_config(&[uri], Subscription::wildcard::<Workload>())
    });
    assert!(client.last_error().await.contains("bad token"), "{}", client.last_error().await);
    std::fs::write(&token_file, "fresh\n").unwrap();
    client.collector.eventually_has(&[("a", "n1")]).await;
    serving.abort();
}
