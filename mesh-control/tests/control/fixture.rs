//! A control server on a directory of its own, and what it says over HTTP.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mesh_control::control::Control;
use mesh_control::settings::{Settings, SourceSettings};
use mesh_control::translate::Mesh;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DEADLINE: Duration = Duration::from_secs(30);

pub(super) struct Fixture {
    root: TempDir,
    pub(super) control: Control,
}

pub(super) fn settings(manifests: PathBuf) -> Settings {
    settings_of(SourceSettings::Manifests(vec![manifests]))
}

pub(super) fn settings_of(source: SourceSettings) -> Settings {
    let any = "127.0.0.1:0".parse().unwrap();
    Settings {
        source,
        grpc_address: any,
        tls: None,
        authority: None,
        admission: None,
        leader: None,
        http_address: any,
        max_connections: 100,
        mesh: Mesh::default(),
    }
}

impl Fixture {
    /// A server of these files, by name and text.
    pub(super) async fn start(files: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(root.path().join(name), text).unwrap();
        }
        let control = Control::start(settings(root.path().to_owned())).await.unwrap();
        let fixture = Self { root, control };
        fixture.eventually("ready", || fixture.get("/healthz/ready"), |(status, _)| *status == 200).await;
        fixture
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(super) fn uri(&self) -> String {
        format!("http://{}", self.control.grpc_address)
    }

    pub(super) async fn get(&self, path: &str) -> (u16, String) {
        get(self.control.http_address, path).await
    }

    pub(super) async fn status(&self) -> Value {
        serde_json::from_str(&self.get("/status").await.1).unwrap()
    }

    /// The value of a metric.
    pub(super) async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.1;
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")))
            .unwrap_or_else(|| panic!("{name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Asks until the answer is as wanted.
    pub(super) async fn eventually<T: std::fmt::Debug, F: Future<Output = T>>(
        &self,
        what: &str,
        ask: impl Fn() -> F,
        wanted: impl Fn(&T) -> bool,
    ) -> T {
        let until = Instant::now() + DEADLINE;
        loop {
            let answer = ask().await;
            if wanted(&answer) {
                return answer;
            }
            assert!(Instant::now() < until, "never {what}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The problems of the source, once there are so many.
    pub(super) async fn problems(&self, count: usize) -> Vec<Value> {
        let of = |status: &Value| status["problems"].as_array().unwrap().clone();
        let status =
            self.eventually("as many problems", || self.status(), |status| of(status).len() == count).await;
        of(&status)
    }
}

pub(super) async fn get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: control\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    // Bodies here are sent with their length, in one piece.
    (status, body.to_owned())
}

pub(super) fn service(name: &str, port: u32) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: shop\nspec:\n  clusterIP: 10.96.0.1\n  ports:\n    - port: {port}\n"
    )
}

pub(super) fn pod(name: &str, address: &str, ready: bool) -> String {
    let ready = if ready { "True" } else { "False" };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: n1, containers: []}}\n\
         status: {{podIP: {address}, conditions: [{{type: Ready, status: '{ready}'}}]}}\n"
    )
}

pub(super) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
