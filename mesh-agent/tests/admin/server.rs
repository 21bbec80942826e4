//! An agent's admin side with a small shop behind it: pods `client-1` and `web-1` on this node, `web-2` and the
//! unready `web-3` on another.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use mesh_agent::admin::api::{
    Attachment, Check, ConfigOrigin, ConfigStatus, IdentityReport, IdentityState, IdentityStatus,
    KubeletInfo, PodState, ProgramInfo, RootInfo, SteeringReport,
};
use mesh_agent::admin::{
    AdminSocket, AdminState, AgentFacts, BoxFuture, ConfigInspector, EnrolmentInspector, IdentityInspector,
    KernelAnswer, NodeInspector, SteeringInspector,
};
use mesh_agent::config::{
    Change, LoadBalancing, LocalNode, NetworkAddress, PortMapping, Service, ServiceName, ServicePort, Store,
    TunnelProtocol, Workload,
};
use mesh_agent::pods::{FailureMode, LocalPod, LocalPods, PodDevice, Redirection};
use mesh_agent::telemetry::logging::{self, LogControl, LogFormat};
use mesh_agent::telemetry::{
    ConnectionObserver, ConnectionRecord, ConnectionSecurity, Direction, Peer, Telemetry, TelemetryOptions,
    Traffic, Transport,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// What can be changed while the server runs.
pub(crate) struct Levers {
    pub(crate) attached: AtomicBool,
    pub(crate) stats: AtomicBool,
    pub(crate) config: Mutex<ConfigStatus>,
    pub(crate) identities: Mutex<IdentityReport>,
    pub(crate) checks: Mutex<Vec<Check>>,
}

struct Steering(Arc<Levers>);

impl SteeringInspector for Steering {
    fn is_attached(&self) -> bool {
        self.0.attached.load(Ordering::Relaxed)
    }

    fn report(&self) -> Result<SteeringReport, String> {
        let attachment = |index: u32, device: &str, pod: Option<&str>| Attachment {
            device: device.into(),
            index,
            hook: "tcx".into(),
            pod: pod.map(Into::into),
            ..Attachment::default()
        };
        let program = |name: &str, kind: &str, id| ProgramInfo {
            name: name.into(),
            id,
            kind: kind.into(),
            tag: "0123456789abcdef".into(),
            memory_bytes: 8192,
            verified_instructions: Some(4321),
            run_count: 1000,
            run_nanoseconds: 250_000,
            ..ProgramInfo::default()
        };
        Ok(SteeringReport {
            pin_path: "/sys/fs/bpf/mesh-agent-node-1".into(),
            programs: vec![program("steer", "sched_cls", 40), program("pick_listener", "sk_lookup", 41)],
            attachments: vec![
                attachment(7, "veth1a2b3c", Some("c1//Pod/shop/client-1")),
                attachment(8, "veth4d5e6f", Some("c1//Pod/shop/web-1")),
                attachment(2, "eth0", None),
            ],
            kubelet: KubeletInfo::Found(vec!["/sys/fs/cgroup/system.slice/kubelet.service".into()]),
            listeners: 4,
            counters: self.counters().into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
            maps: BTreeMap::new(),
            stats_enabled: self.0.stats.load(Ordering::Relaxed),
        })
    }

    fn map_entries(&self) -> Result<BTreeMap<String, usize>, String> {
        Ok([("PODS".to_owned(), 4)].into())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("capture_outbound", 12), ("capture_established", 3456), ("pass_not_enrolled", 7)]
    }

    fn knows_kubelet(&self) -> bool {
        true
    }

    fn explain(&self, source: IpAddr, destination: SocketAddr) -> KernelAnswer {
        match (source.to_string().as_str(), destination.ip().to_string().as_str()) {
            (_, "192.168.0.1") => KernelAnswer::Pass("pass_host_address"),
            ("10.0.1.1" | "fd00:1::1", _) => {
                KernelAnswer::Capture { direction: Direction::Outbound, fail_closed: false }
            }
            (_, "10.0.1.2") => KernelAnswer::Capture { direction: Direction::Inbound, fail_closed: true },
            _ => KernelAnswer::Pass("pass_not_enrolled"),
        }
    }

    fn measure_run_times(&self, enabled: bool) -> Result<(), String> {
        self.0.stats.store(enabled, Ordering::Relaxed);
        Ok(())
    }
}

struct Config(Arc<Levers>);

impl ConfigInspector for Config {
    fn status(&self) -> ConfigStatus {
        self.0.config.lock().unwrap().clone()
    }
}

struct Certificates(Arc<Levers>);

impl IdentityInspector for Certificates {
    fn report(&self) -> IdentityReport {
        self.0.identities.lock().unwrap().clone()
    }
}

struct Host(Arc<Levers>);

impl NodeInspector for Host {
    fn check(&self) -> BoxFuture<'_, Vec<Check>> {
        let checks = self.0.checks.lock().unwrap().clone();
        Box::pin(async { checks })
    }
}

struct Enrolment;

impl EnrolmentInspector for Enrolment {
    fn progress(&self) -> HashMap<Arc<str>, (PodState, String)> {
        [("c1//Pod/shop/late-1".into(), (PodState::Pending, "no device yet".into()))].into()
    }
}

/// A running admin server; ends when dropped.
pub(crate) struct Server {
    pub(crate) levers: Arc<Levers>,
    pub(crate) state: Arc<AdminState>,
    pub(crate) store: Mutex<Store>,
    pub(crate) socket: PathBuf,
    pub(crate) http: SocketAddr,
    pub(crate) runtime: Runtime,
    _directory: TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run/admin.sock");
        let levers = Arc::new(Levers {
            attached: true.into(),
            stats: false.into(),
            config: Mutex::new(ConfigStatus {
                origin: ConfigOrigin::Server,
                servers: vec!["http://control:15010".into()],
                connected: Some("http://control:15010".into()),
                since_seconds: Some(3700),
                last_change_seconds: Some(5),
                ..ConfigStatus::default()
            }),
            identities: Mutex::new(identities()),
            checks: Mutex::new(vec![Check::ok("kernel version", "6.18.5")]),
        });
        let store = mesh();
        let state = Arc::new(AdminState {
            facts: AgentFacts { node: "node-1".into(), workers: 2, started: Instant::now() },
            mesh: store.shared(),
            pods: Arc::new(ArcSwap::from_pointee(LocalPods::new(pods()))),
            connect_time: Arc::default(),
            telemetry: Telemetry::new(2, &TelemetryOptions::default()).unwrap(),
            log: log(),
            steering: Arc::new(Steering(Arc::clone(&levers))),
            config: Arc::new(Config(Arc::clone(&levers))),
            identities: Arc::new(Certificates(Arc::clone(&levers))),
            host: Arc::new(Host(Arc::clone(&levers))),
            enrolment: Arc::new(Enrolment),
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let http = runtime.block_on(async {
            let admin = AdminSocket::bind(&socket).unwrap();
            tokio::spawn(mesh_agent::admin::serve_socket(admin, Arc::clone(&state), std::future::pending()));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let http = listener.local_addr().unwrap();
            tokio::spawn(mesh_agent::admin::serve_http(listener, Arc::clone(&state), std::future::pending()));
            http
        });
        Self { levers, state, store: store.into(), socket, http, runtime, _directory: directory }
    }

    /// Opens a connection of `client-1` to `web-2` through the service, as plain text; it stays open.
    pub(crate) fn open_connection(&self, id: u64) -> Arc<ConnectionRecord> {
        self.open(id, Transport::Plain, ConnectionSecurity::None)
    }

    /// The same through a tunnel, in which both ends have proved who they are.
    pub(crate) fn open_tunnelled(&self, id: u64) -> Arc<ConnectionRecord> {
        self.open(id, Transport::Hbone, ConnectionSecurity::MutualTls)
    }

    fn open(&self, id: u64, transport: Transport, security: ConnectionSecurity) -> Arc<ConnectionRecord> {
        let mesh = self.state.mesh.load();
        let peer = |address: &str| {
            let address: SocketAddr = address.parse().unwrap();
            let workload = mesh.workload_by_address(address.ip()).cloned();
            let proven = workload.as_ref().filter(|_| security != ConnectionSecurity::None);
            let identity = proven.map(|workload| Arc::new(workload.identity()));
            Peer { address, workload, identity }
        };
        let record = Arc::new(ConnectionRecord {
            id,
            direction: Direction::Outbound,
            source: peer("10.0.1.1:40000"),
            original_destination: "10.96.0.1:80".parse().unwrap(),
            destination: Some(peer("10.0.2.2:8080")),
            service: mesh.service(&web()).map(|entry| Arc::clone(&entry.service)),
            transport,
            security,
            attempts: 1,
            worker: 0,
            opened_at: SystemTime::now(),
            opened: Instant::now() - Duration::from_secs(125),
            traffic: Arc::new(Traffic::default()),
        });
        record.traffic.add_sent(1536);
        record.traffic.add_received(10 << 20);
        self.state.telemetry.opened(&record);
        record
    }
}

/// One per process: logging is set up once.
fn log() -> Arc<LogControl> {
    static LOG: OnceLock<Arc<LogControl>> = OnceLock::new();
    Arc::clone(LOG.get_or_init(|| Arc::new(logging::init("warn", LogFormat::Text).unwrap())))
}

/// `client-1` is well; `web-1` waits for a certificate that it is refused.
fn identities() -> IdentityReport {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let client = IdentityStatus {
        identity: "spiffe://cluster.local/ns/shop/sa/client".into(),
        state: IdentityState::Valid,
        serial: Some("5e1f".into()),
        issuer: Some("mesh CA".into()),
        not_before: Some(now - 3600),
        // Half a minute more, so that it is not less when it is shown.
        expires: Some(now + 23 * 3600 + 30),
        next_request: Some(now + 11 * 3600 + 30),
        failures: 0,
        last_error: None,
        pods: vec!["c1//Pod/shop/client-1".into()],
    };
    let web = IdentityStatus {
        identity: "spiffe://cluster.local/ns/shop/sa/web".into(),
        state: IdentityState::Pending,
        serial: None,
        issuer: None,
        not_before: None,
        expires: None,
        next_request: None,
        failures: 2,
        last_error: Some("the token expired".into()),
        pods: vec!["c1//Pod/shop/web-1".into()],
    };
    let root =
        RootInfo { subject: "CN=mesh root".into(), serial: "1".into(), expires: now + 365 * 24 * 3600 + 30 };
    IdentityReport {
        identities: vec![client, web],
        roots: vec![root],
        issued: 3,
        failures: [("refused".to_owned(), 2)].into(),
    }
}

fn web() -> ServiceName {
    ServiceName { namespace: "shop".into(), hostname: "web.shop.svc.cluster.local".into() }
}

fn mesh() -> Store {
    let mut store = Store::new(LocalNode {
        name: "node-1".into(),
        cluster: "c1".into(),
        trust_domain: "cluster.local".into(),
        ..LocalNode::default()
    });
    let address = |text: &str| NetworkAddress { network: "".into(), address: text.parse().unwrap() };
    let service = |namespace: &str, name: &str, addresses: &[&str]| {
        Change::Service(Arc::new(Service {
            id: ServiceName {
                namespace: namespace.into(),
                hostname: format!("{name}.{namespace}.svc.cluster.local").into(),
            },
            name: name.into(),
            addresses: addresses.iter().map(|text| address(text)).collect(),
            ports: vec![ServicePort { service_port: 80, target_port: 8080 }],
            subject_alt_names: vec![],
            waypoint: None,
            load_balancing: LoadBalancing::default(),
        }))
    };
    let workload = |name: &str, addresses: &[&str], node: &str, healthy: bool, behind: &[&str]| {
        Change::Workload(Arc::new(Workload {
            uid: format!("c1//Pod/shop/{name}").into(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            node: node.into(),
            healthy,
            terminating: false,
            locality: Default::default(),
            own_name: None,
            load: Default::default(),
            template: Arc::new(mesh_agent::config::Template {
                namespace: "shop".into(),
                service_account: name.split('-').next().unwrap().into(),
                trust_domain: "cluster.local".into(),
                hostname: "".into(),
                network: "".into(),
                cluster: "c1".into(),
                host_network: false,
                canonical_name: name.into(),
                canonical_revision: "latest".into(),
                workload_name: name.into(),
                tunnel: TunnelProtocol::Hbone,
                waypoint: None,
                network_gateway: None,
                weight: 1,
                services: behind
                    .iter()
                    .map(|name| {
                        let hostname = format!("{name}.shop.svc.cluster.local").into();
                        let id = ServiceName { namespace: "shop".into(), hostname };
                        (id, vec![PortMapping { service_port: 80, target_port: 8080 }])
                    })
                    .collect(),
                authorization_policies: vec![],
                mutual_tls: Default::default(),
                redirection: Redirection::default(),
                failure_mode: None,
            }),
        }))
    };
    store.apply([
        service("shop", "web", &["10.96.0.1", "fd00:96::1"]),
        service("shop", "headless", &[]),
        service("bank", "api", &["10.96.0.2"]),
        service("shop", "api", &["10.96.0.3"]),
        workload("client-1", &["10.0.1.1", "fd00:1::1"], "node-1", true, &[]),
        workload("web-1", &["10.0.1.2"], "node-1", true, &["web"]),
        workload("web-2", &["10.0.2.2"], "node-2", true, &["web", "headless"]),
        workload("web-3", &["10.0.2.3"], "node-2", false, &["web"]),
    ]);
    store
}

fn pods() -> Vec<Arc<LocalPod>> {
    let pod = |namespace: &str, name: &str, addresses: &[&str], device: Option<(u32, &str)>| LocalPod {
        uid: format!("c1//Pod/{namespace}/{name}").into(),
        name: name.into(),
        namespace: namespace.into(),
        kubernetes_uid: None,
        service_account: "default".into(),
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        device: device.map(|(index, name)| PodDevice { index, name: name.into() }),
        enrolled: true,
        redirection: Redirection::default(),
        failure_mode: FailureMode::Open,
    };
    let client = LocalPod {
        redirection: Redirection { exclude_outbound_ports: [5432].into(), ..Redirection::default() },
        ..pod("shop", "client-1", &["10.0.1.1", "fd00:1::1"], Some((7, "veth1a2b3c")))
    };
    let web = LocalPod {
        failure_mode: FailureMode::Closed,
        ..pod("shop", "web-1", &["10.0.1.2"], Some((8, "veth4d5e6f")))
    };
    let late = LocalPod { enrolled: false, ..pod("shop", "late-1", &["10.0.1.3"], None) };
    let double = LocalPod { enrolled: false, ..pod("bank", "client-1", &["10.0.1.4"], None) };
    [client, web, late, double].map(Arc::new).into()
}
