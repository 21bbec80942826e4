//! A running Envoy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) struct Envoy {
    process: Child,
    directory: TempDir,
}

impl Envoy {
    /// An Envoy that asks the server at `discovery` for everything, by the delta protocol.
    pub(crate) fn start(discovery: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let (host, port) = discovery.rsplit_once(':').unwrap();
        fs::write(directory.path().join("envoy.yaml"), bootstrap(host, port)).unwrap();
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

    /// What its admin interface says, once it is there.
    pub(crate) async fn ask(&self, path: &str) -> Option<String> {
        let address = fs::read_to_string(self.directory.path().join("admin")).ok()?;
        let mut stream = TcpStream::connect(address.trim()).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
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

fn bootstrap(host: &str, port: &str) -> String {
    format!(
        r#"
node: {{ id: test-envoy, cluster: test }}
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }} }}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services: [{{ envoy_grpc: {{ cluster_name: discovery }} }}]
  cds_config: {{ ads: {{}}, resource_api_version: V3 }}
static_resources:
  clusters:
  - name: discovery
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    load_assignment:
      cluster_name: discovery
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: "{host}", port_value: {port} }} }} }}
"#
    )
}
