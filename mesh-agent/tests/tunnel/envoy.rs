//! A real Envoy at the other end: as Istio's waypoints and gateways are, which ztunnel is made to work with.
//!
//! Needs the program `envoy`: `$MESH_ENVOY`, or the one that `cargo xtask setup` installs.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mesh_agent::proxy::RelayEnd;
use mesh_agent::proxy::tunnel::TunnelFailure;
use mesh_lab::certificates::{Authority, Issued, Leaf};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{Agent, Client, Mesh, PATIENCE, echo, eventually, identity, on_worker, server, settings};

struct Envoy {
    process: Child,
    directory: TempDir,
}

impl Envoy {
    fn start(authority: &Authority, own: &Issued, resources: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("root.pem", authority.root_pem());
        write("chain.pem", &own.chain);
        write("key.pem", &own.key);
        let admin = "admin: { address: { socket_address: { address: 127.0.0.1, port_value: 0 } } }";
        write("envoy.yaml", &format!("{admin}\nstatic_resources:\n{resources}"));
        let process = Command::new(program())
            .args(["-c", "envoy.yaml", "--admin-address-path", "admin", "--log-path", "log"])
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "info"])
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, directory }
    }

    /// Where its listener is, once it listens.
    async fn listener(&self) -> SocketAddr {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(address) = self.ask_listener().await {
                return address;
            }
            let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "Envoy does not listen\n{log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ask_listener(&self) -> Option<SocketAddr> {
        let admin = fs::read_to_string(self.directory.path().join("admin")).ok()?;
        let mut stream = TcpStream::connect(admin.trim()).await.ok()?;
        let request = b"GET /listeners HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.lines().find_map(|line| line.strip_prefix("tested::"))?.trim().parse().ok()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn program() -> PathBuf {
    let installed = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("tools/envoy/bin/envoy");
    let program = std::env::var_os("MESH_ENVOY").map_or(installed, PathBuf::from);
    assert!(
        program.exists(),
        "{} is not there: run `cargo xtask setup`, or set MESH_ENVOY to an Envoy of your own",
        program.display()
    );
    program
}

/// Mutual TLS 1.3 with HTTP/2, with a peer of this identity.
fn tls(peer: &str) -> String {
    let san = identity(peer);
    format!(
        r#"common_tls_context:
          alpn_protocols: [h2]
          tls_params: {{ tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }}
          tls_certificates:
          - certificate_chain: {{ filename: chain.pem }}
            private_key: {{ filename: key.pem }}
          validation_context:
            trusted_ca: {{ filename: root.pem }}
            match_typed_subject_alt_names:
            - {{ san_type: URI, matcher: {{ exact: "{san}" }} }}"#
    )
}

/// Takes tunnels, and connects everything that is asked for to `upstream`.
fn terminating(upstream: SocketAddr) -> String {
    let tls = tls("client");
    format!(
        r#"
  listeners:
  - name: tested
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          {tls}
      filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: tested
          codec_type: HTTP2
          http2_protocol_options: {{ allow_connect: true }}
          upgrade_configs: [{{ upgrade_type: CONNECT }}]
          route_config:
            virtual_hosts:
            - name: refused
              domains: ["10.1.0.13:80"]
              routes:
              - match: {{ connect_matcher: {{}} }}
                direct_response: {{ status: 401 }}
            - name: all
              domains: ["*"]
              routes:
              - match: {{ connect_matcher: {{}} }}
                route:
                  cluster: upstream
                  upgrade_configs: [{{ upgrade_type: CONNECT, connect_config: {{}} }}]
          http_filters:
          - name: router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: upstream
    type: STATIC
    load_assignment: {assignment}
"#,
        tls = tls.replace('\n', "\n  "),
        assignment = assignment("upstream", upstream),
    )
}

/// Opens a tunnel to `agent` for every TCP connection, and asks it for `destination`.
fn tunnelling(agent: SocketAddr, destination: &str) -> String {
    let tls = tls("web");
    format!(
        r#"
  listeners:
  - name: tested
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tested
          cluster: agent
          tunneling_config: {{ hostname: "{destination}" }}
  clusters:
  - name: agent
    type: STATIC
    load_assignment: {assignment}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{ allow_connect: true }} }}
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        {tls}
"#,
        assignment = assignment("agent", agent),
    )
}

fn assignment(cluster: &str, address: SocketAddr) -> String {
    let (ip, port) = (address.ip(), address.port());
    let address = format!("{{ socket_address: {{ address: {ip}, port_value: {port} }} }}");
    format!(
        "{{ cluster_name: {cluster}, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {address} }} }}] }}] }}"
    )
}

const TOTAL: usize = 8 << 20;

/// Sends back [`TOTAL`] bytes, and ends.
async fn mirror() -> SocketAddr {
    server(|mut tcp| async move {
        let mut bytes = vec![0; TOTAL];
        tcp.read_exact(&mut bytes).await.unwrap();
        tcp.write_all(&bytes).await.unwrap();
    })
    .await
}

/// Sends [`TOTAL`] bytes, ends, and reads them back.
async fn exchange(tcp: &mut TcpStream) {
    let sent: Vec<u8> = (0..=252).cycle().take(TOTAL).collect();
    tcp.write_all(&sent).await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut received = Vec::new();
    tcp.read_to_end(&mut received).await.unwrap();
    assert!(received == sent, "{} bytes came back", received.len());
}

#[test]
fn envoy_serves_our_tunnels() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let own = mesh.authority.issue(&Leaf::workload(identity("web"))).unwrap();
        let envoy = Envoy::start(&mesh.authority, &own, &terminating(mirror().await));
        let gateway = envoy.listener().await;
        let client = Client::new(&mesh.credentials("client"), &settings());
        let route = client.route(gateway, "web", "10.1.0.9:80".parse().unwrap());
        let mut open = Vec::new();
        for _ in 0..3 {
            open.push(client.connection(&route).await);
        }
        for mut connection in open {
            exchange(&mut connection.tcp).await;
            assert!(matches!(connection.relay.await.unwrap(), RelayEnd::Complete));
        }
        assert_eq!(client.tunnels.count(), 1);

        let refused = client.failure(&client.route(gateway, "web", "10.1.0.13:80".parse().unwrap())).await;
        assert!(matches!(refused.cause, TunnelFailure::Denied { .. }), "{refused}");
        let stranger = Client::new(&mesh.credentials("stranger"), &settings());
        let refused = stranger.failure(&stranger.route(gateway, "web", gateway)).await;
        assert!(matches!(refused.cause, TunnelFailure::Tls(_)), "{refused}");
        let refused = client.failure(&client.route(gateway, "db", gateway)).await;
        assert!(matches!(refused.cause, TunnelFailure::Tls(_)), "{refused}");
    });
}

#[test]
fn we_serve_envoys_tunnels() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let agent = Agent::start(&mesh.credentials("web"), &settings()).await;
        let own = mesh.authority.issue(&Leaf::workload(identity("client"))).unwrap();
        let envoy =
            Envoy::start(&mesh.authority, &own, &tunnelling(agent.address, &mirror().await.to_string()));
        let entrance = envoy.listener().await;
        let mut open = Vec::new();
        for _ in 0..3 {
            open.push(TcpStream::connect(entrance).await.unwrap());
        }
        for mut tcp in open {
            exchange(&mut tcp).await;
        }
        eventually("all end", || agent.ends.borrow().len() == 3).await;
        assert!(agent.ends.borrow().iter().all(|end| matches!(end, RelayEnd::Complete)));
        assert_eq!(agent.tunnels.get(), 1);

        let echoing = tunnelling(agent.address, &echo().await.to_string());
        let stranger = mesh.authority.issue(&Leaf::workload("spiffe://evil.example/ns/a/sa/b")).unwrap();
        let envoy = Envoy::start(&mesh.authority, &stranger, &echoing);
        let mut refused = TcpStream::connect(envoy.listener().await).await.unwrap();
        let _ = refused.write_all(b"hello").await;
        assert!(matches!(refused.read(&mut [0; 8]).await, Ok(0) | Err(_)));
        assert_eq!(agent.requests.get(), 3);
    });
}
