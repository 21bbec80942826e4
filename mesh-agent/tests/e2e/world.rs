//! A small mesh to test in, and ways to look at what happened there.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mesh_lab::echo::Answer;
use mesh_lab::traffic::{Load, Report, Traffic};
use mesh_lab::{Kind, Lab, Machine, Manifests, Mesh, Topology};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

/// How long anything may take that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The port every pod answers at, and the port of the service in front of it.
pub(crate) const PORT: u16 = 8080;
pub(crate) const SERVICE_PORT: u16 = 80;

/// The service `web`, in both families.
pub(crate) const VIPS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];

/// STRICT for namespace `shop`.
pub(crate) const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

/// Nobody reaches any pod of `shop`.
pub(crate) const DENY_ALL: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {}
";

/// A routed node, a bridged node, and pods on both: `client-*` and `web-*` of the namespace `shop`, which is
/// enrolled, and `legacy-*` of the namespace `legacy`, which is not.
const TOPOLOGY: &str = "
name: e2e
nodes:
  - name: routed
    cni: routed
    pods:
      - {name: client-r, namespace: shop}
      - {name: web-r, namespace: shop}
      - {name: legacy-r, namespace: legacy}
  - name: bridged
    cni: bridge
    bridgeNetfilter: true
    pods:
      - {name: client-b, namespace: shop}
      - {name: web-b, namespace: shop}
      - {name: legacy-b, namespace: legacy}
hosts:
  - name: control
  - name: outside
";

/// A mesh whose pods all answer.
pub(crate) struct World {
    // Before the mesh: it ends with its lab.
    pub(crate) echoes: Vec<Box<dyn Send>>,
    pub(crate) mesh: Mesh,
}

impl World {
    /// Builds the lab and starts the echo servers; no part of the mesh runs yet.
    pub(crate) fn lab() -> Self {
        let lab = Lab::up(Topology::parse("e2e", TOPOLOGY).unwrap().unique()).unwrap();
        let mut echoes: Vec<Box<dyn Send>> = Vec::new();
        for machine in lab.machines() {
            if *machine.kind() != Kind::Node {
                echoes.push(Box::new(machine.echo(PORT).unwrap()));
            }
        }
        Self { echoes, mesh: Mesh::new(lab, "control").unwrap() }
    }

    /// Builds the lab, writes the usual manifests and starts the mesh.
    pub(crate) fn up() -> Self {
        let mut world = Self::lab();
        world.apply_usual();
        world.mesh.start().unwrap();
        world
    }

    /// An echo server on one more port of a machine.
    pub(crate) fn echo(&mut self, machine: &str, port: u16) {
        let server = self.mesh.lab().machine(machine).unwrap().echo(port).unwrap();
        self.echoes.push(Box::new(server));
    }

    /// Both namespaces, every pod, and the service `web`.
    pub(crate) fn apply_usual(&self) {
        let namespaces = Manifests::new().namespace("shop", true).namespace("legacy", false);
        self.mesh.apply("namespaces.yaml", namespaces.text()).unwrap();
        for pod in self.pods() {
            self.apply_pod(&pod, true, &[]);
        }
        self.apply_service();
    }

    pub(crate) fn apply_service(&self) {
        let vips: Vec<IpAddr> = VIPS.iter().map(|vip| vip.parse().unwrap()).collect();
        let service = Manifests::new().service("shop", "web", &vips, SERVICE_PORT, PORT);
        self.mesh.apply("service.yaml", service.text()).unwrap();
    }

    /// Writes one pod's manifest.
    pub(crate) fn apply_pod(&self, pod: &str, ready: bool, annotations: &[(&str, &str)]) {
        let app = pod.split('-').next().unwrap();
        let manifest = Manifests::new().pod_with(self.machine(pod), app, ready, annotations);
        self.mesh.apply(&format!("{pod}.yaml"), manifest.text()).unwrap();
    }

    /// Names of all pods.
    pub(crate) fn pods(&self) -> Vec<String> {
        let pods = self.mesh.lab().machines().filter(|machine| matches!(machine.kind(), Kind::Pod { .. }));
        pods.map(|machine| machine.name().to_owned()).collect()
    }

    pub(crate) fn machine(&self, name: &str) -> &Machine {
        self.mesh.lab().machine(name).unwrap()
    }

    /// A machine's address and the usual port, in the family of `like`.
    pub(crate) fn address(&self, name: &str, like: IpAddr) -> SocketAddr {
        SocketAddr::new(same_family(self.machine(name), like), PORT)
    }

    /// Sends one request and returns the answer; panics where there is none.
    pub(crate) fn ask(&self, from: &str, to: SocketAddr) -> Answer {
        self.try_ask(from, to).unwrap_or_else(|error| panic!("{from} to {to}: {error}"))
    }

    /// Sends one request.
    pub(crate) fn try_ask(&self, from: &str, to: SocketAddr) -> std::io::Result<Answer> {
        let ask = move || {
            let stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
            who(&stream)
        };
        self.machine(from).namespace().run(ask).unwrap()
    }

    /// Sends one request, and says from where, whatever comes of it.
    pub(crate) fn try_ask_from(&self, from: &str, to: SocketAddr) -> (SocketAddr, std::io::Result<Answer>) {
        let ask = move || {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            // The port is the socket's own before anything is sent; the address follows from where it leads.
            let any: IpAddr =
                if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            socket.bind(&SocketAddr::new(any, 0).into()).unwrap();
            let port = socket.local_addr().unwrap().as_socket().unwrap().port();
            let route = UdpSocket::bind(SocketAddr::new(any, 0)).unwrap();
            route.connect(to).unwrap();
            let local = SocketAddr::new(route.local_addr().unwrap().ip(), port);
            let connected = socket.connect_timeout(&to.into(), Duration::from_secs(2));
            (local, connected.and_then(|()| who(&socket.into())))
        };
        self.machine(from).namespace().run(ask).unwrap()
    }

    /// Opens a connection that stays.
    pub(crate) fn connect(&self, from: &str, to: SocketAddr) -> TcpStream {
        let open = move || TcpStream::connect_timeout(&to, Duration::from_secs(2));
        self.machine(from)
            .namespace()
            .run(open)
            .unwrap()
            .unwrap_or_else(|error| panic!("{from} to {to}: {error}"))
    }

    /// Starts a load of 100 requests a second, each on a connection of its own.
    pub(crate) fn steady(&self, from: &str, to: SocketAddr) -> Traffic {
        let load = Load::http(&format!("http://{to}/")).unwrap();
        let load = load.rate(100.0).connections(4).new_connection_per_request();
        self.machine(from).traffic(load).unwrap()
    }

    /// Runs requests, each on a connection of its own.
    pub(crate) fn requests(&self, from: &str, to: SocketAddr, count: u64) -> Report {
        let load = Load::http(&format!("http://{to}/")).unwrap();
        let load = load.requests(count).connections(8).new_connection_per_request();
        self.machine(from).traffic(load).unwrap().finish()
    }

    /// All lines that a node's agent has written about connections.
    pub(crate) fn log(&self, node: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.mesh.access_log(node)).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for the log line of the connection that came from this source.
    pub(crate) fn logged(&self, node: &str, direction: &str, source: SocketAddr) -> Value {
        let source = source.to_string();
        eventually(&format!("a line about {source} ({direction}) on {node}"), || {
            let lines = self.log(node);
            lines.into_iter().find(|line| line["direction"] == direction && line["src.addr"] == source)
        })
    }

    /// Whether the agent of a node has a connection of this source in its log. Lines are in order of end: a marker
    /// connection that ends later is awaited first.
    pub(crate) fn was_logged(&self, node: &str, source: SocketAddr) -> bool {
        let marker = self.marker(node);
        self.logged(node, "outbound", marker);
        let source = source.to_string();
        self.log(node).iter().any(|line| line["src.addr"] == source)
    }

    /// Has the agent of a node carry a connection; returns its client's address.
    fn marker(&self, node: &str) -> SocketAddr {
        let (client, server) = if node == "routed" { ("client-r", "web-r") } else { ("client-b", "web-b") };
        let to = self.address(server, Ipv6Addr::LOCALHOST.into());
        let stream = self.connect(client, to);
        let own = stream.local_addr().unwrap();
        who(&stream).unwrap();
        own
    }

    /// What a node's kernel programs have counted for an outcome.
    pub(crate) fn counted(&self, node: &str, outcome: &str) -> u64 {
        let report = self.mesh.meshctl(node, &["bpf"]).unwrap();
        report["counters"][outcome].as_u64().unwrap_or_else(|| panic!("no counter {outcome} in {report}"))
    }
}

/// Asks an echo server, over a connection that is open, who it is. The connection can be used again.
pub(crate) fn who(stream: &TcpStream) -> std::io::Result<Answer> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    (&*stream).write_all(b"who\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    serde_json::from_str(&line).map_err(|error| std::io::Error::other(format!("{error}: {line:?}")))
}

/// A machine's address of a family.
pub(crate) fn same_family(machine: &Machine, like: IpAddr) -> IpAddr {
    let same = |address: &IpAddr| address.is_ipv4() == like.is_ipv4();
    machine.addresses().iter().find(same).unwrap()
}

/// Looks until there is something to see.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The path of a process in /proc.
pub(crate) fn proc(pid: u32, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{file}"))
}
