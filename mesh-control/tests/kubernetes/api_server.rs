//! etcd and kube-apiserver on loopback, with a token for an administrator and one for mesh-control.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use kube::{Client, Config};
use rcgen::KeyPair;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

/// A machine with two cores and much to do takes its time.
const DEADLINE: Duration = Duration::from_secs(120);
const ADMINISTRATOR: &str = "the-administrators-token";
const MESH_CONTROL: &str = "the-token-of-mesh-control";

/// A running API server; gone when it is dropped.
pub(super) struct ApiServer {
    kubectl: PathBuf,
    address: String,
    root: TempDir,
    _programs: [Child; 2],
}

/// What a command said.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) succeeded: bool,
    /// What it printed, and below it what it complained of.
    pub(super) text: String,
}

impl ApiServer {
    /// Starts one, if the programs are there.
    pub(super) async fn start() -> Option<Self> {
        let (Some(server), Some(kubectl), Some(etcd)) =
            (program("kube-apiserver"), program("kubectl"), program("etcd"))
        else {
            println!("no kube-apiserver, kubectl and etcd are at hand: nothing to test");
            return None;
        };
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let tokens = format!(
            "{ADMINISTRATOR},admin,1,system:masters\n{MESH_CONTROL},system:serviceaccount:mesh-system:mesh-control,2\n"
        );
        std::fs::write(path("tokens.csv"), tokens).unwrap();
        let accounts = KeyPair::generate().unwrap();
        std::fs::write(path("accounts.key"), accounts.serialize_pem()).unwrap();
        std::fs::write(path("accounts.pub"), accounts.public_key_pem()).unwrap();
        let [client, peer, secure] = free_ports();
        let (storage, peers) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let etcd = Command::new(etcd)
            .arg("--data-dir")
            .arg(path("etcd"))
            .args(["--listen-client-urls", &storage, "--advertise-client-urls", &storage])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}"), "--unsafe-no-fsync"])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(path("etcd.log")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let with = |flag: &str, name: &str| format!("{flag}={}", path(name).display());
        let server = Command::new(server)
            .args([
                &format!("--etcd-servers={storage}"),
                "--bind-address=127.0.0.1",
                &format!("--secure-port={secure}"),
                &with("--cert-dir", "certificates"),
                &with("--token-auth-file", "tokens.csv"),
                "--authorization-mode=RBAC",
                "--service-account-issuer=https://kubernetes.test",
                &with("--service-account-key-file", "accounts.pub"),
                &with("--service-account-signing-key-file", "accounts.key"),
                "--service-cluster-ip-range=10.96.0.0/24",
            ])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(path("kube-apiserver.log")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let address = format!("https://127.0.0.1:{secure}");
        let server = Self { kubectl, address, root, _programs: [etcd, server] };
        std::fs::write(server.path("kubeconfig"), server.kubeconfig()).unwrap();
        server.eventually("ready", &["get", "--raw", "/readyz"], "", |said| said.succeeded).await;
        Some(server)
    }

    /// A client with the rights of mesh-control.
    pub(super) fn client(&self) -> Client {
        let mut config = Config::new(self.address.parse().unwrap());
        config.accept_invalid_certs = true;
        config.auth_info.token = Some(MESH_CONTROL.to_owned().into());
        Client::try_from(config).unwrap()
    }

    /// Runs kubectl as the administrator.
    pub(super) async fn kubectl(&self, arguments: &[&str], input: &str) -> Said {
        self.program(&self.kubectl, arguments, input).await
    }

    /// Runs a program that talks to the server as the administrator.
    pub(super) async fn program(&self, program: &Path, arguments: &[&str], input: &str) -> Said {
        let mut program = Command::new(program)
            .args(arguments)
            // For what it caches, too.
            .env("HOME", self.root.path())
            .env("KUBECONFIG", self.path("kubeconfig"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = program.stdin.take().unwrap();
        // It may end without having read everything.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = program.wait_with_output().await.unwrap();
        let text = [output.stdout, output.stderr].map(|part| String::from_utf8(part).unwrap()).concat();
        Said { succeeded: output.status.success(), text }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: \"{}\", insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: test, user: {{token: {ADMINISTRATOR}}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n",
            self.address
        )
    }

    /// The same, which has to succeed.
    pub(super) async fn run(&self, arguments: &[&str], input: &str) -> String {
        let said = self.kubectl(arguments, input).await;
        assert!(said.succeeded, "{arguments:?}: {}", said.text);
        said.text
    }

    /// Runs kubectl until it says what is wanted.
    pub(super) async fn eventually(
        &self,
        what: &str,
        arguments: &[&str],
        input: &str,
        wanted: impl Fn(&Said) -> bool,
    ) -> Said {
        let until = Instant::now() + DEADLINE;
        loop {
            let said = self.kubectl(arguments, input).await;
            if wanted(&said) {
                return said;
            }
            if Instant::now() > until {
                let log = std::fs::read_to_string(self.path("kube-apiserver.log")).unwrap();
                let end: Vec<_> = log.lines().rev().take(20).collect();
                panic!("never {what}: {said:?}\n{end:#?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Where a program is: with KUBEBUILDER_ASSETS, in the cache of `cargo xtask cluster`, or installed.
fn program(name: &str) -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let built =
        std::fs::read_dir(home.join(".cache/mesh")).into_iter().flatten().flatten().map(|entry| entry.path());
    let built = built.filter(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("kubernetes-"))
    });
    let installed = ["/usr/bin", "/usr/local/bin"].map(PathBuf::from);
    assets
        .into_iter()
        .chain(built)
        .chain(installed)
        .map(|folder| folder.join(name))
        .find(|path: &PathBuf| Path::is_file(path))
}

/// Ports that were free a moment ago.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
