//! Opening connections: who gets one, and what the others are told.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode};
use mesh_agent::identity::Credentials;
use mesh_agent::proxy::RelayEnd;
use mesh_agent::proxy::decision::TunnelPath;
use mesh_agent::proxy::tunnel::{Authority, Claims, TunnelFailure};
use mesh_agent::telemetry::ResponseFlag;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio_rustls::TlsConnector;

use crate::world::{Agent, Client, Mesh, echo, eventually, identity, on_worker, settings};

#[test]
fn connections_share_a_tunnel() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let agent = Agent::start(&mesh.credentials("web"), &settings()).await;
        let client = Client::new(&mesh.credentials("client"), &settings());
        let route = client.route(agent.address, "web", echo().await);
        let mut one = client.connection(&route).await;
        let mut two = client.connection(&route).await;
        one.echo("hello").await;
        two.echo("and hello").await;
        assert_eq!((agent.tunnels.get(), agent.requests.get(), client.tunnels.count()), (1, 2, 1));

        // Ends travel both ways.
        one.tcp.shutdown().await.unwrap();
        assert_eq!(one.tcp.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(matches!(one.relay.await.unwrap(), RelayEnd::Complete));
        eventually("the server's side ends", || agent.open.get() == 1).await;
        assert!(matches!(agent.ends.borrow()[0], RelayEnd::Complete));
        assert_eq!((one.traffic.sent(), one.traffic.received()), (5, 5));
        two.echo("still here").await;
    });
}

#[test]
fn the_server_knows_who_asks_for_what() {
    on_worker(|| async {
        let mesh = Mesh::new();
        type Asked = Rc<RefCell<Vec<(String, Authority, Claims)>>>;
        let asked: Asked = Rc::default();
        let noted = Rc::clone(&asked);
        let agent = Agent::with(&mesh.credentials("web"), &settings(), move |request, _| {
            let claims = request.claims.clone();
            noted.borrow_mut().push((request.peer.principal(), request.authority.clone(), claims));
            request.reject(StatusCode::UNAUTHORIZED, "not you");
        })
        .await;
        let client = Client::new(&mesh.credentials("client"), &settings());
        for authority in ["10.1.0.9:80", "[fd00::9]:80", "web.shop.svc.cluster.local:80"] {
            let mut route = client.route_of(TunnelPath {
                gateway: agent.address,
                expected: [identity("web")].into(),
                authority: authority.into(),
                inner: None,
            });
            let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            route.trace_parent = Some(HeaderValue::from_static(trace));
            route.baggage = Some(HeaderValue::from_static("k8s.namespace.name=shop"));
            route.service = Some("web.shop".into());
            client.failure(&route).await;
            let (peer, seen, claims) = asked.borrow_mut().pop().unwrap();
            assert_eq!(peer, "cluster.local/ns/shop/sa/client");
            assert_eq!(seen.to_string(), authority);
            assert_eq!(claims.trace_parent.unwrap(), trace);
            assert_eq!(claims.namespace.as_deref(), Some("shop"));
            assert_eq!(claims.forwarded_for, Some(route.client.ip()));
            assert_eq!(claims.forwarded_host.as_deref(), Some("web.shop"));
        }
    });
}

#[test]
fn refusals_come_with_their_reason() {
    on_worker(|| async {
        let mesh = Mesh::new();
        for (status, flag) in [
            (StatusCode::UNAUTHORIZED, ResponseFlag::Denied),
            (StatusCode::BAD_REQUEST, ResponseFlag::NoRoute),
            (StatusCode::SERVICE_UNAVAILABLE, ResponseFlag::UpstreamConnectionFailure),
            (StatusCode::IM_A_TEAPOT, ResponseFlag::UpstreamConnectionFailure),
        ] {
            let agent = Agent::with(&mesh.credentials("web"), &settings(), move |request, _| {
                request.reject(status, "for a reason\nof its own");
            })
            .await;
            let client = Client::new(&mesh.credentials("client"), &settings());
            let error = client.failure(&client.route(agent.address, "web", agent.address)).await;
            assert_eq!(error.flag(), flag);
            let text = error.to_string();
            for part in ["for a reason?of its own", "ns/shop/sa/web", &agent.address.to_string()] {
                assert!(text.contains(part), "{text:?} misses {part:?}");
            }
            let expected = match status {
                StatusCode::UNAUTHORIZED => matches!(error.cause, TunnelFailure::Denied { .. }),
                StatusCode::BAD_REQUEST => matches!(error.cause, TunnelFailure::Bad { .. }),
                StatusCode::SERVICE_UNAVAILABLE => matches!(error.cause, TunnelFailure::Unreachable { .. }),
                _ => matches!(error.cause, TunnelFailure::Status { .. }),
            };
            assert!(expected, "{error:?}");
            // A refusal says nothing against the tunnel.
            client.failure(&client.route(agent.address, "web", agent.address)).await;
            assert_eq!(agent.tunnels.get(), 1);
        }
    });
}

#[test]
fn a_server_that_cannot_be_reached_is_named() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let client = Client::new(&mesh.credentials("client"), &settings());
        let nowhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let error = client.failure(&client.route(nowhere, "web", nowhere)).await;
        assert!(matches!(error.cause, TunnelFailure::Connect(_)), "{error}");
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
        assert_eq!(client.tunnels.count(), 0);

        let agent = Agent::start(&mesh.credentials("web"), &settings()).await;
        let error = client.failure(&client.route(agent.address, "web", nowhere)).await;
        assert!(matches!(error.cause, TunnelFailure::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("refused"), "{error}");
    });
}

/// HTTP/2 with the agent at `address`, by hand.
async fn by_hand(address: SocketAddr, credentials: &Arc<Credentials>) -> h2::client::SendRequest<Bytes> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::IpAddress(address.ip().into());
    let tls = TlsConnector::from(credentials.client()).connect(name, tcp).await.unwrap();
    let (sender, connection) = h2::client::handshake(tls).await.unwrap();
    spawn_local(async move { drop(connection.await) });
    sender
}

#[test]
fn only_connect_with_a_proper_authority_is_served() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let agent = Agent::start(&mesh.credentials("web"), &settings()).await;
        let mut sender = by_hand(agent.address, &mesh.credentials("client")).await;
        for (method, target, expected) in [
            (Method::GET, "https://10.1.0.9:80/", StatusCode::METHOD_NOT_ALLOWED),
            (Method::CONNECT, "10.1.0.9", StatusCode::BAD_REQUEST),
            (Method::CONNECT, "10.1.0.9:0", StatusCode::BAD_REQUEST),
            (Method::CONNECT, "user@web:80", StatusCode::BAD_REQUEST),
            (Method::CONNECT, "web:99999", StatusCode::BAD_REQUEST),
        ] {
            let request = Request::builder().method(method).uri(target).body(()).unwrap();
            let (answer, _) = sender.send_request(request, true).unwrap();
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), expected, "{target}");
            assert!(answer.headers().contains_key("x-mesh-error"), "{target}");
        }
        assert_eq!(agent.requests.get(), 0);
    });
}

#[test]
fn headers_without_end_are_refused_and_resets_in_a_row_end_the_tunnel() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let agent = Agent::with(&mesh.credentials("web"), &settings(), |request, _| drop(request)).await;
        let connect = || Request::connect("10.1.0.9:80").body(()).unwrap();

        let mut sender = by_hand(agent.address, &mesh.credentials("client")).await;
        let mut request = connect();
        for number in 0..40 {
            let name = http::HeaderName::try_from(format!("x-{number}")).unwrap();
            request.headers_mut().insert(name, HeaderValue::try_from("y".repeat(1000)).unwrap());
        }
        let (answer, _) = sender.send_request(request, true).unwrap();
        match answer.await {
            Ok(answer) => assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            Err(error) => assert!(error.is_remote(), "{error}"),
        }
        assert_eq!(agent.requests.get(), 0);

        let mut sender = by_hand(agent.address, &mesh.credentials("client")).await;
        let ended = loop {
            let Ok(ready) = sender.clone().ready().await else {
                break true;
            };
            sender = ready;
            let Ok((answer, mut stream)) = sender.send_request(connect(), false) else {
                break true;
            };
            stream.send_reset(h2::Reason::CANCEL);
            drop(answer);
            if agent.tunnels.get() == 0 {
                break false;
            }
            tokio::task::yield_now().await;
        };
        assert!(ended);
    });
}

#[test]
fn who_does_not_finish_the_handshake_is_let_go() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let mut settings = settings();
        settings.tunnel.handshake_timeout = std::time::Duration::from_millis(200);
        let agent = Agent::start(&mesh.credentials("web"), &settings).await;
        // Says nothing; says something that is not TLS; speaks TLS and then nothing.
        let mut silent = TcpStream::connect(agent.address).await.unwrap();
        let mut plain = TcpStream::connect(agent.address).await.unwrap();
        plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let tcp = TcpStream::connect(agent.address).await.unwrap();
        let name = ServerName::IpAddress(agent.address.ip().into());
        let config = mesh.credentials("client").client();
        let mut lazy = TlsConnector::from(config).connect(name, tcp).await.unwrap();
        let mut rest = Vec::new();
        assert_eq!(silent.read_to_end(&mut rest).await.unwrap(), 0);
        let _ = plain.read_to_end(&mut rest).await;
        let _ = lazy.read_to_end(&mut rest).await;
        eventually("all are let go", || agent.ended.borrow().len() == 3).await;
        assert!(agent.ended.borrow().iter().all(Result::is_err));
    });
}
