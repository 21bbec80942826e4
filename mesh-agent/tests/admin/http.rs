use std::sync::atomic::Ordering;

use http_body_util::{BodyExt, Empty};
use mesh_agent::admin::api::{ConfigOrigin, ConfigStatus};

use crate::server::Server;

/// Asks for `path`; gives back status, content type and body.
fn get(server: &Server, path: &str) -> (u16, String, String) {
    server.runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(server.http).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request =
            http::Request::get(path).header("host", "agent").body(Empty::<bytes::Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, kind, String::from_utf8(body.into()).unwrap())
    })
}

#[test]
fn ready_says_what_is_missing() {
    let server = Server::start();
    assert_eq!(get(&server, "/healthz/live").0, 200);
    let (status, _, body) = get(&server, "/healthz/ready");
    assert_eq!((status, body.as_str()), (200, "ready\n"));

    // The last good state is enough.
    *server.levers.config.lock().unwrap() =
        ConfigStatus { origin: ConfigOrigin::Cache, ..ConfigStatus::default() };
    assert_eq!(get(&server, "/healthz/ready").0, 200);

    server.levers.attached.store(false, Ordering::Relaxed);
    *server.levers.config.lock().unwrap() =
        ConfigStatus { error: Some("connection refused".into()), ..ConfigStatus::default() };
    let (status, _, body) = get(&server, "/healthz/ready");
    assert_eq!(status, 503);
    assert_eq!(
        body,
        "not ready:\n  steering: the kernel programs are not attached\n  \
         configuration: none received and none on disk (connection refused)\n"
    );
    assert_eq!(get(&server, "/healthz/live").0, 200);
}

#[test]
fn metrics_tell_of_the_agent_and_its_connections() {
    let server = Server::start();
    let record = server.open_connection(1);
    let (status, kind, body) = get(&server, "/metrics");
    assert_eq!(status, 200);
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    for line in [
        "mesh_agent_ready 1",
        "mesh_agent_config_connected 1",
        "mesh_agent_config_from_cache 0",
        "mesh_agent_config_age_seconds 5",
        "mesh_agent_config_resources{kind=\"workload\"} 4",
        "mesh_agent_pods{state=\"enrolled\"} 2",
        "mesh_agent_steering_packets_total{outcome=\"capture_outbound\"} 12",
        "mesh_agent_connections_open{direction=\"outbound\"} 1",
        "mesh_agent_access_log_dropped_lines_total 0",
        "mesh_agent_certificates{state=\"valid\"} 1",
        "mesh_agent_certificates{state=\"pending\"} 1",
        "mesh_agent_certificates{state=\"expired\"} 0",
        "mesh_agent_certificates_issued_total 3",
        "mesh_agent_certificate_failures_total{reason=\"refused\"} 2",
    ] {
        assert!(body.lines().any(|known| known == line), "{line} is missing:\n{body}");
    }
    let first = server.levers.identities.lock().unwrap().identities[0].expires.unwrap();
    assert!(body.contains(&format!("\nmesh_agent_certificate_first_expiry_seconds {first}\n")), "{body}");
    assert!(body.contains("mesh_agent_build_info{version=\""));
    let received = body.lines().find(|line| line.starts_with("istio_tcp_received_bytes_total")).unwrap();
    assert!(received.ends_with(" 1536"), "{received}");

    record.traffic.add_sent(4);
    let (_, _, body) = get(&server, "/metrics");
    let received = body.lines().find(|line| line.starts_with("istio_tcp_received_bytes_total")).unwrap();
    assert!(received.ends_with(" 1540"), "{received}");
}

#[test]
fn nothing_else_is_served_over_the_network() {
    let server = Server::start();
    server.runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(server.http).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::get("/v1/dump").header("host", "agent");
        let response =
            sender.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
        assert_eq!(response.status().as_u16(), 404);
    });
}
