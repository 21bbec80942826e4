//! A node without kernel programs: a network namespace in which every test address is local, and a proxy whose
//! listeners take any address, so that a client's connection reaches them with its original destination.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_agent::config::{
    Change, LoadBalancing, LocalNode, NetworkAddress, PortMapping, Service, ServiceName, ServicePort, Store,
    TunnelProtocol, Workload,
};
use mesh_agent::identity::{Credentials, Identities, Identity, RootSource, SystemClock, Trust};
use mesh_agent::pods::{FailureMode, LocalPod, LocalPods, PodDevice, Redirection};
use mesh_agent::proxy::{NodeSockets, Proxy, ProxyInputs, ProxySettings};
use mesh_agent::telemetry::{
    ConnectionEnd, ConnectionObserver, ConnectionRecord, Direction, Incident, ResponseFlag,
};
use mesh_lab::certificates::{Authority, Leaf};
use nix::sched::{CloneFlags, unshare};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use socket2::{Domain, Socket, Type};

/// Mark of client sockets that a policy route brings to the proxy whatever their destination.
const STEERED: u32 = 0x77;

const TRUST_DOMAIN: &str = "cluster.local";

/// How long a test waits for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `test` in a network namespace of its own where all of 10.0.0.0/8 and fd00::/16 is local.
pub fn on_a_node<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    in_namespace(|| {
        for command in [
            "link set lo up",
            "route add local 10.0.0.0/8 dev lo",
            "-6 route add local fd00::/16 dev lo",
            "rule add fwmark 0x77 lookup 100",
            "route add local default dev lo table 100",
            "-6 rule add fwmark 0x77 lookup 100",
            "-6 route add local default dev lo table 100",
        ] {
            ip(command);
        }
        std::fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1").unwrap();
        test()
    })
}

/// Runs `test` on a thread that has left the network namespace of the process.
pub fn in_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let body = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        test()
    };
    match thread::scope(|scope| scope.spawn(body).join()) {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "still waiting: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// What the proxy told about a connection, without its clock.
#[derive(Debug, Clone)]
pub struct Told {
    pub direction: Direction,
    pub source: Option<String>,
    pub destination: Option<(SocketAddr, Option<String>)>,
    pub service: Option<String>,
    pub attempts: u32,
    pub sent: u64,
    pub received: u64,
    pub flag: ResponseFlag,
    pub detail: Option<String>,
}

/// Remembers everything the proxy tells.
#[derive(Default)]
pub struct Recorder {
    pub open: Mutex<Vec<Arc<ConnectionRecord>>>,
    pub closed: Mutex<Vec<Told>>,
    pub incidents: Mutex<Vec<Incident>>,
}

impl ConnectionObserver for Recorder {
    fn opened(&self, record: &Arc<ConnectionRecord>) {
        self.open.lock().unwrap().push(Arc::clone(record));
    }

    fn closed(&self, record: &Arc<ConnectionRecord>, end: &ConnectionEnd) {
        self.open.lock().unwrap().retain(|open| open.id != record.id);
        let uid = |workload: &Option<Arc<Workload>>| workload.as_ref().map(|known| known.name().to_owned());
        self.closed.lock().unwrap().push(Told {
            direction: record.direction,
            source: uid(&record.source.workload),
            destination: record.destination.as_ref().map(|peer| (peer.address, uid(&peer.workload))),
            service: record.service.as_ref().map(|service| service.name.to_string()),
            attempts: record.attempts,
            sent: record.traffic.sent(),
            received: record.traffic.received(),
            flag: end.flag,
            detail: end.detail.clone(),
        });
    }

    fn incident(&self, incident: Incident) {
        self.incidents.lock().unwrap().push(incident);
    }
}

impl Recorder {
    /// Waits for `count` ends and returns all of them.
    pub fn ends(&self, count: usize) -> Vec<Told> {
        eventually("connections to end", || self.closed.lock().unwrap().len() >= count);
        self.closed.lock().unwrap().clone()
    }

    /// Waits for the end of the only connection.
    pub fn end(&self) -> Told {
        let ends = self.ends(1);
        assert_eq!(ends.len(), 1, "{ends:?}");
        ends.into_iter().next().unwrap()
    }
}

/// A running proxy and the state it decides from.
pub struct Mesh {
    pub store: Store,
    pub pods: Arc<ArcSwap<LocalPods>>,
    pub recorder: Arc<Recorder>,
    pub proxy: Proxy,
}

pub fn settings() -> ProxySettings {
    ProxySettings {
        workers: NonZeroUsize::MIN,
        listen_v4: Ipv4Addr::UNSPECIFIED,
        listen_v6: Ipv6Addr::UNSPECIFIED,
        ..ProxySettings::new(0x40)
    }
}

impl Mesh {
    /// A proxy with one enrolled pod, `client` at 10.1.0.1 and fd00::1.
    pub fn start(settings: ProxySettings) -> Self {
        let node = LocalNode { name: "n1".into(), trust_domain: TRUST_DOMAIN.into(), ..LocalNode::default() };
        let store = Store::new(node);
        let pods = Arc::new(ArcSwap::from_pointee(LocalPods::default()));
        let recorder = Arc::new(Recorder::default());
        let inputs = ProxyInputs {
            snapshot: store.shared(),
            pods: Arc::clone(&pods),
            connect_time: Arc::default(),
            passage: mesh_agent::passage::proposals(false).0,
            identities: identities(),
            observer: Arc::clone(&recorder) as Arc<dyn ConnectionObserver>,
            node_sockets: NodeSockets::default(),
        };
        let proxy = Proxy::start(settings, inputs).unwrap();
        let mut mesh = Self { store, pods, recorder, proxy };
        mesh.add_pod("client", &["10.1.0.1", "fd00::1"], &[]);
        mesh
    }

    /// The port that the listener of the address's family is on: all services have to have it.
    pub fn port(&self, like: &str) -> u16 {
        let v4 = address(like).is_ipv4();
        let listener = self.proxy.listeners().iter().find(|known| known.address().is_ipv4() == v4);
        listener.unwrap().address().port()
    }

    /// Adds a workload on `node` that serves `services`, each `(name, port of the service, own port)`.
    pub fn add_workload(
        &mut self,
        name: &str,
        addresses: &[&str],
        node: &str,
        services: &[(&str, u16, u16)],
    ) {
        self.store.apply([Change::Workload(Arc::new(workload(name, addresses, node, services)))]);
    }

    /// Adds a workload of another node that takes tunnels.
    pub fn add_tunnelled_workload(&mut self, name: &str, addresses: &[&str], services: &[(&str, u16, u16)]) {
        let mut workload = workload(name, addresses, "n2", services);
        Arc::make_mut(&mut workload.template).tunnel = TunnelProtocol::Hbone;
        self.store.apply([Change::Workload(Arc::new(workload))]);
    }

    /// Adds a workload that is an enrolled pod of this node.
    pub fn add_pod(&mut self, name: &str, addresses: &[&str], services: &[(&str, u16, u16)]) {
        self.add_workload(name, addresses, "n1", services);
        let pod = Arc::new(LocalPod {
            uid: uid(name).into(),
            name: name.into(),
            namespace: "shop".into(),
            kubernetes_uid: None,
            service_account: "default".into(),
            addresses: addresses.iter().map(|text| address(text)).collect(),
            device: Some(PodDevice { index: 7, name: "veth7".into() }),
            enrolled: true,
            redirection: Redirection::default(),
            failure_mode: FailureMode::Open,
        });
        self.pods.rcu(|pods| LocalPods::new(pods.iter().cloned().chain([Arc::clone(&pod)])));
    }

    pub fn add_service(&mut self, name: &str, addresses: &[&str], port: u16) {
        self.store.apply([Change::Service(Arc::new(Service {
            id: service_name(name),
            name: name.into(),
            addresses: addresses
                .iter()
                .map(|text| NetworkAddress { network: "".into(), address: address(text) })
                .collect(),
            ports: vec![ServicePort { service_port: port, target_port: 0 }],
            subject_alt_names: vec![],
            waypoint: None,
            load_balancing: LoadBalancing::default(),
        }))]);
    }

    /// Connects from one address to another, on the port of the proxy, through the proxy.
    pub fn connect(&self, from: &str, to: &str) -> TcpStream {
        connect(from, SocketAddr::new(address(to), self.port(to))).unwrap()
    }
}

/// Those of the pods of this node: all of them have one service account.
fn identities() -> Identities {
    let authority = Authority::root("mesh").unwrap();
    let root = CertificateDer::from_pem_slice(authority.root_pem().as_bytes()).unwrap();
    let trust = Trust::new([TRUST_DOMAIN.into()], Arc::new(SystemClock));
    trust.set_roots(RootSource::File, [root]).unwrap();
    let leaf = Leaf::workload(Identity::new(TRUST_DOMAIN, "shop", "default"));
    let issued = authority.issue(&leaf).unwrap();
    let credentials = Credentials::from_pem(&issued.chain, &issued.key, &trust).unwrap();
    Identities::fixed(trust, [Arc::new(credentials)])
}

fn uid(name: &str) -> String {
    format!("c//Pod/shop/{name}")
}

fn service_name(name: &str) -> ServiceName {
    ServiceName { namespace: "shop".into(), hostname: format!("{name}.shop").into() }
}

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn workload(name: &str, addresses: &[&str], node: &str, services: &[(&str, u16, u16)]) -> Workload {
    Workload {
        uid: uid(name).into(),
        addresses: addresses.iter().map(|text| address(text)).collect(),
        node: node.into(),
        healthy: true,
        terminating: false,
        locality: Default::default(),
        own_name: None,
        load: Default::default(),
        template: Arc::new(mesh_agent::config::Template {
            namespace: "shop".into(),
            service_account: "default".into(),
            trust_domain: TRUST_DOMAIN.into(),
            hostname: "".into(),
            network: "".into(),
            cluster: "c".into(),
            host_network: false,
            canonical_name: name.into(),
            canonical_revision: "latest".into(),
            workload_name: name.into(),
            tunnel: TunnelProtocol::None,
            waypoint: None,
            network_gateway: None,
            weight: 1,
            services: services
                .iter()
                .map(|(service, service_port, target_port)| {
                    let ports = PortMapping { service_port: *service_port, target_port: *target_port };
                    (service_name(service), vec![ports])
                })
                .collect(),
            authorization_policies: vec![],
            mutual_tls: Default::default(),
            redirection: Redirection::default(),
            failure_mode: None,
        }),
    }
}

/// Connects a steered socket.
pub fn connect(from: &str, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = steered(from);
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// A client's socket that is not connected yet, and which steering brings to the proxy.
pub fn steered(from: &str) -> Socket {
    let from = SocketAddr::new(address(from), 0);
    let socket = Socket::new(Domain::for_address(from), Type::STREAM, None).unwrap();
    socket.set_mark(STEERED).unwrap();
    socket.bind(&from.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A server on a thread of its own; `serve` is given every connection and who it came from.
pub struct Server {
    pub port: u16,
    address: SocketAddr,
}

impl Server {
    pub fn start(at: &str, serve: impl Fn(TcpStream, SocketAddr) + Clone + Send + 'static) -> Self {
        Self::start_on(at, 0, serve)
    }

    pub fn start_on(
        at: &str,
        port: u16,
        serve: impl Fn(TcpStream, SocketAddr) + Clone + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(SocketAddr::new(address(at), port)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            loop {
                let Ok((stream, client)) = listener.accept() else {
                    // Out of descriptors, which a test may have brought about.
                    thread::sleep(Duration::from_millis(5));
                    continue;
                };
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let serve = serve.clone();
                thread::spawn(move || serve(stream, client));
            }
        });
        Self { port: address.port(), address }
    }

    /// Answers each connection with the server's name and the client's address, and closes.
    pub fn named(name: &'static str, at: &str) -> Self {
        Self::start(at, move |mut stream, client| {
            let _ = write!(stream, "{name} {}", client.ip());
        })
    }

    /// Sends everything back.
    pub fn echo(at: &str) -> Self {
        Self::start(at, |stream, _| {
            let _ = std::io::copy(&mut &stream, &mut &stream);
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Reads to the end.
pub fn read_all(mut stream: TcpStream) -> std::io::Result<String> {
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
