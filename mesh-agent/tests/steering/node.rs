//! A node with pods, servers in them, and an agent that is nothing but steering and listeners.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aya::programs::{SchedClassifier, TcAttachType};
use mesh_agent::pods::{LocalPod, PodDevice};
use mesh_agent::steering::host::namespace::{AgentNamespace, NamespaceThread};
use mesh_agent::steering::host::{HostSettings, Mark};
use mesh_agent::steering::{
    AttachMode, CoreListeners, DeviceWatch, ListenerPair, Steering, SteeringSettings,
};
use mesh_common::Arrival;
use mesh_lab::{Lab, Machine, Topology};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

pub(crate) const PORT: u16 = 8080;
/// Here the server, and the agent, closes as soon as it has greeted.
pub(crate) const CLOSING_PORT: u16 = 8081;
/// Here a test listens itself.
pub(crate) const QUIET_PORT: u16 = 8082;
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) const CAPTURE_MARK: u32 = 0x1000;
pub(crate) const AGENT_MARK: u32 = 0x40;
pub(crate) const MARK_MASK: u32 = CAPTURE_MARK | AGENT_MARK;

/// How the pods are wired to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wiring {
    Routed,
    Bridge,
    BridgeNetfilter,
}

/// Pods `a`, `b` and `c` on one node, and `outside` behind its uplink.
pub(crate) struct Node {
    pub(crate) runtime: Runtime,
    lab: Lab,
    bpffs: BpfFs,
}

impl Node {
    pub(crate) fn new(wiring: Wiring) -> Self {
        let cni = match wiring {
            Wiring::Routed => "cni: routed",
            Wiring::Bridge => "cni: bridge, bridgeNetfilter: false",
            Wiring::BridgeNetfilter => "cni: bridge, bridgeNetfilter: true",
        };
        let topology = format!(
            "name: steering\nnodes: [{{name: node, {cni}, pods: [{{name: a}}, {{name: b}}, {{name: c}}]}}]\n\
             hosts: [{{name: outside}}]\n"
        );
        let lab = Lab::up(Topology::parse("test", &topology).unwrap().unique()).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let node = Self { runtime, lab, bpffs: BpfFs::mount() };
        for name in ["a", "b", "c", "outside", "node"] {
            node.serve(name, PORT);
        }
        node.serve("outside", CLOSING_PORT);
        node
    }

    pub(crate) fn machine(&self, name: &str) -> &Machine {
        match name {
            "node" => self.lab.node("node").unwrap(),
            "outside" => self.lab.host("outside").unwrap(),
            pod => self.lab.pod(pod).unwrap(),
        }
    }

    pub(crate) fn address(&self, name: &str, family: Family) -> IpAddr {
        let machine = self.machine(name);
        match family {
            Family::V4 => machine.ipv4().unwrap().into(),
            Family::V6 => machine.ipv6().unwrap().into(),
        }
    }

    pub(crate) fn pin_directory(&self) -> PathBuf {
        self.bpffs.0.join("mesh-agent-node")
    }

    /// The pod as the agent knows it: enrolled, everything steered.
    pub(crate) fn pod(&self, name: &str) -> LocalPod {
        let device = self.lab.topology().pods().find(|(_, pod)| pod.name == name).unwrap().1.device.clone();
        let index = self.inside(|| nix::net::if_::if_nametoindex(device.as_str()).unwrap());
        LocalPod {
            uid: format!("test//Pod/default/{name}").into(),
            name: name.into(),
            namespace: "default".into(),
            kubernetes_uid: None,
            service_account: "default".into(),
            addresses: self.machine(name).addresses().iter().collect(),
            device: Some(PodDevice { index, name: device }),
            enrolled: true,
            redirection: mesh_agent::pods::Redirection::default(),
            failure_mode: mesh_agent::pods::FailureMode::Open,
        }
    }

    /// The pod as the agent knows it while it is not enrolled.
    pub(crate) fn known_pod(&self, name: &str) -> LocalPod {
        LocalPod { enrolled: false, ..self.pod(name) }
    }

    /// Takes a pod into the mesh, as the agent does: from the node's network namespace, where the pod's device is.
    pub(crate) fn enrol(&self, agent: &Agent, pod: &LocalPod) {
        self.inside(|| agent.steering.enrol(pod)).unwrap();
    }

    /// Runs something in the node's network namespace.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.machine("node").namespace().run(work).unwrap()
    }

    /// A server on all addresses of a machine.
    pub(crate) fn serve(&self, name: &str, port: u16) {
        for address in ["0.0.0.0", "::"] {
            let address = SocketAddr::new(address.parse().unwrap(), port);
            let listener = self.machine(name).namespace().tcp_listener(address).unwrap();
            self.runtime.spawn(serve(name.to_owned(), listener));
        }
    }

    /// Runs a shell command in the node's network namespace.
    pub(crate) fn shell(&self, command: &str) -> String {
        let output =
            self.inside(|| std::process::Command::new("sh").args(["-ec", command]).output().unwrap());
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The programs at the ingress of a pod's device, with tcx or clsact.
    pub(crate) fn program_ids(&self, pod: &str) -> Vec<u32> {
        self.program_ids_at(pod, TcAttachType::Ingress)
    }

    /// The same at its egress.
    pub(crate) fn guard_ids(&self, pod: &str) -> Vec<u32> {
        self.program_ids_at(pod, TcAttachType::Egress)
    }

    fn program_ids_at(&self, pod: &str, hook: TcAttachType) -> Vec<u32> {
        let device = self.pod(pod).device.unwrap().name;
        let tcx = self.tcx_programs(&device, hook).unwrap_or_default();
        let side = if hook == TcAttachType::Ingress { "ingress" } else { "egress" };
        let filters = self.shell(&format!("tc filter show dev {device} {side}"));
        let mut words = filters.split_whitespace();
        let clsact =
            std::iter::from_fn(|| words.by_ref().find(|word| *word == "id").and_then(|_| words.next()));
        tcx.iter().map(aya::programs::ProgramInfo::id).chain(clsact.map(|id| id.parse().unwrap())).collect()
    }

    /// What [`AttachMode::Auto`] comes to on this kernel: a test that names tcx would fail before Linux 6.6.
    pub(crate) fn best_mode(&self) -> AttachMode {
        if self.tcx_programs("lo", TcAttachType::Ingress).is_some() {
            AttachMode::Tcx
        } else {
            AttachMode::Clsact
        }
    }

    /// `None` if the kernel does not know tcx.
    fn tcx_programs(&self, device: &str, hook: TcAttachType) -> Option<Vec<aya::programs::ProgramInfo>> {
        let answer = self.inside(|| SchedClassifier::query_tcx(device, hook));
        answer.ok().map(|(_, programs)| programs)
    }

    /// Connects and reads who answered.
    pub(crate) fn connect(&self, from: &str, to: SocketAddr) -> io::Result<Connection> {
        self.connect_within(from, None, to, PATIENCE)
    }

    /// Connects from a given address and port.
    pub(crate) fn connect_from(
        &self,
        from: &str,
        local: SocketAddr,
        to: SocketAddr,
    ) -> io::Result<Connection> {
        self.connect_within(from, Some(local), to, PATIENCE)
    }

    /// Connects with a pod's address, as the agent does on its behalf.
    pub(crate) fn connect_as_agent(
        &self,
        agent: &Agent,
        local: SocketAddr,
        to: SocketAddr,
    ) -> io::Result<Connection> {
        let socket = move || {
            if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
        };
        let socket = agent.namespace.thread().run(socket).unwrap()?;
        let options = socket2::SockRef::from(&socket);
        // Takes IPv6 addresses that are not the node's too.
        options.set_ip_transparent_v4(true)?;
        socket.bind(local)?;
        self.runtime.block_on(async {
            let stream = tokio::time::timeout(PATIENCE, socket.connect(to)).await??;
            Connection::greet(stream).await
        })
    }

    /// Connects where nothing is expected to answer.
    pub(crate) fn call_briefly(&self, from: &str, to: &str, family: Family) -> io::Result<Connection> {
        let to = SocketAddr::new(self.address(to, family), PORT);
        self.connect_within(from, None, to, Duration::from_millis(300))
    }

    fn connect_within(
        &self,
        from: &str,
        local: Option<SocketAddr>,
        to: SocketAddr,
        patience: Duration,
    ) -> io::Result<Connection> {
        let socket = self.machine(from).namespace().tokio_tcp_socket(to)?;
        if let Some(local) = local {
            socket.set_reuseaddr(true)?;
            socket.bind(local)?;
        }
        self.runtime.block_on(async {
            let stream = tokio::time::timeout(patience, socket.connect(to)).await??;
            Connection::greet(stream).await
        })
    }

    /// Connects, over IPv6, with options for the destination in front of the TCP header.
    pub(crate) fn connect_behind_options(&self, from: &str, to: SocketAddr) -> io::Result<()> {
        /// Nothing but padding.
        const OPTIONS: [u8; LENGTH as usize] = [0, 0, 1, 4, 0, 0, 0, 0];
        const LENGTH: libc::socklen_t = 8;
        self.machine(from).namespace().run(|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
            // SAFETY: the kernel reads as many bytes as it is told there are.
            let result = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::IPPROTO_IPV6,
                    libc::IPV6_DSTOPTS,
                    OPTIONS.as_ptr().cast(),
                    LENGTH,
                )
            };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
            socket.connect_timeout(&to.into(), Duration::from_millis(500))
        })?
    }

    /// Reads to the end of a connection that the other side closes, and waits until the client's end is gone too.
    pub(crate) fn finish(&self, mut connection: Connection) {
        let (local, peer) = (connection.local_address(), connection.stream.get_ref().peer_addr().unwrap());
        self.runtime.block_on(async {
            let mut rest = Vec::new();
            tokio::time::timeout(PATIENCE, connection.stream.read_to_end(&mut rest)).await.unwrap().unwrap();
        });
        drop(connection);
        let pod = self
            .lab
            .topology()
            .pods()
            .map(|(_, pod)| pod.name.clone())
            .find(|name| self.machine(name).addresses().iter().any(|address| address == local.ip()));
        let namespace = self.machine(&pod.unwrap()).namespace();
        let gone = || {
            let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
            let open: String = namespace
                .run(|| tables.map(|table| std::fs::read_to_string(table).unwrap()))
                .unwrap()
                .concat();
            !open.contains(&format!(":{:04X} ", local.port()))
                || !open.contains(&format!(":{:04X} ", peer.port()))
        };
        until("the client's end is closed", gone);
    }

    /// Sends one SYN with a source address that is not the sender's.
    pub(crate) fn forge(&self, from: &str, source: IpAddr, destination: IpAddr) {
        let address = SocketAddr::new(source, 0);
        self.machine(from)
            .namespace()
            .run(|| {
                let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
                socket.set_ip_transparent_v4(true).unwrap();
                socket.bind(&address.into()).unwrap();
                socket.set_nonblocking(true).unwrap();
                let error = socket.connect(&SocketAddr::new(destination, PORT).into()).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
            })
            .unwrap();
    }

    /// Waits for a condition.
    pub(crate) fn until(&self, condition: impl FnMut() -> bool, what: &str) {
        until(what, condition);
    }

    /// Connects to another machine's server.
    pub(crate) fn call(&self, from: &str, to: &str, family: Family) -> io::Result<Connection> {
        self.connect(from, SocketAddr::new(self.address(to, family), PORT))
    }

    /// Sends something over a connection and waits for it to come back.
    pub(crate) fn echo(&self, connection: &mut Connection) -> io::Result<()> {
        self.runtime.block_on(connection.echo())
    }

    /// Sends this much over a connection to an echo server and waits for it to come back.
    pub(crate) fn exchange(&self, connection: &mut Connection, bytes: usize) -> io::Result<()> {
        self.runtime.block_on(connection.exchange(bytes))
    }

    /// Closes the client's end, and waits for the server's.
    pub(crate) fn finish_first(&self, mut connection: Connection) {
        self.runtime.block_on(async {
            connection.stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            tokio::time::timeout(PATIENCE, connection.stream.read_to_end(&mut rest)).await.unwrap().unwrap();
        });
    }

    /// Connects to [`QUIET_PORT`], where nobody greets or answers, and returns both ends.
    pub(crate) fn call_and_accept(&self, from: &str, to: &str, family: Family) -> (Connection, Connection) {
        let to_address = SocketAddr::new(self.address(to, family), QUIET_PORT);
        let listener = self.machine(to).namespace().tcp_listener(to_address).unwrap();
        let socket = self.machine(from).namespace().tokio_tcp_socket(to_address).unwrap();
        self.runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            let both = async { tokio::try_join!(socket.connect(to_address), listener.accept()) };
            let (client, (server, _)) = tokio::time::timeout(PATIENCE, both).await.unwrap().unwrap();
            (Connection::quiet(client), Connection::quiet(server))
        })
    }

    /// How a connection ends that is read from, and how soon at the latest.
    pub(crate) fn end_of(&self, mut connection: Connection, within: Duration) -> io::ErrorKind {
        self.runtime.block_on(async {
            let mut rest = Vec::new();
            let end = tokio::time::timeout(within, connection.stream.read_to_end(&mut rest)).await;
            end.expect("an end in time").expect_err("a reset").kind()
        })
    }

    /// Sends until that fails.
    pub(crate) fn send_for_ever(&self, mut connection: Connection) -> tokio::task::JoinHandle<io::ErrorKind> {
        self.runtime.spawn(async move {
            let data = vec![0; 65_536];
            loop {
                if let Err(error) = connection.stream.write_all(&data).await {
                    return error.kind();
                }
            }
        })
    }

    /// Reads that much, and gives the connection back.
    pub(crate) fn read_some(&self, mut connection: Connection, bytes: usize) -> Connection {
        self.runtime.block_on(async {
            let mut data = vec![0; bytes];
            tokio::time::timeout(PATIENCE, connection.stream.read_exact(&mut data)).await.unwrap().unwrap();
        });
        connection
    }

    /// Starts an agent.
    pub(crate) fn agent(&self) -> Agent {
        self.agent_with(AttachMode::Auto)
    }

    pub(crate) fn agent_with(&self, attach: AttachMode) -> Agent {
        let settings = SteeringSettings {
            directory: self.pin_directory(),
            mark_mask: MARK_MASK,
            capture_mark: CAPTURE_MARK,
            agent_mark: AGENT_MARK,
            attach,
        };
        let steering = self.inside(|| Steering::load_or_adopt(&settings)).unwrap();
        let shutdown = CancellationToken::new();
        let (started, wait) = mpsc::channel();
        let task = {
            let (steering, shutdown) = (steering.clone(), shutdown.clone());
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let mark = |value| Mark { value, mask: MARK_MASK };
                    let host = HostSettings::new(mark(CAPTURE_MARK), mark(AGENT_MARK), "/nonexistent");
                    let thread = NamespaceThread::start().unwrap();
                    let namespace = Arc::new(AgentNamespace::connect(thread, &host).await.unwrap());
                    steering.deliver_to(&namespace).unwrap();
                    let listeners = listen(&namespace);
                    let watch = DeviceWatch::start(steering).await.unwrap();
                    started.send((namespace, listeners)).unwrap();
                    watch.run(shutdown).await;
                });
            }
        };
        let watching = self.machine("node").namespace().spawn("agent", task).unwrap();
        let (namespace, listeners) = wait.recv().expect("the agent starts");
        let pair =
            |of: usize| ListenerPair { v4: Some(listeners[of].as_fd()), v6: Some(listeners[of + 1].as_fd()) };
        let cores = [0, 4].map(|core| CoreListeners { steered: pair(core), around: pair(core + 2) });
        steering.set_listeners(&cores).unwrap();
        let accepting = listeners
            .into_iter()
            .map(|listener| self.runtime.spawn(serve("agent".to_owned(), listener)))
            .collect();
        Agent { steering, namespace, shutdown, watching: Some(watching), accepting }
    }
}

/// Listeners of two cores: for each those for what is steered, then those for what is turned around, of both families.
fn listen(namespace: &AgentNamespace) -> Vec<std::net::TcpListener> {
    let listeners = || {
        let arrivals = [Arrival::Steered, Arrival::Around, Arrival::Steered, Arrival::Around];
        let all = arrivals.into_iter().flat_map(|arrival| [("127.0.0.1:0", arrival), ("[::1]:0", arrival)]);
        all.map(|(address, arrival)| transparent(address, arrival)).collect()
    };
    namespace.thread().run(listeners).unwrap()
}

/// A listener as the proxy has it: it answers from addresses that are not its own.
fn transparent(address: &str, arrival: Arrival) -> std::net::TcpListener {
    let address: SocketAddr = address.parse().unwrap();
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    if address.is_ipv4() {
        socket.set_ip_transparent_v4(true).unwrap();
    }
    if arrival == Arrival::Around {
        socket.set_mark(AGENT_MARK).unwrap();
        socket.set_tcp_mss(1220).unwrap();
    }
    socket.set_nonblocking(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(128).unwrap();
    socket.into()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Steering with listeners. Dropping it is a crash: what is pinned stays.
pub(crate) struct Agent {
    pub(crate) steering: Steering,
    namespace: Arc<AgentNamespace>,
    shutdown: CancellationToken,
    watching: Option<JoinHandle<()>>,
    accepting: Vec<tokio::task::JoinHandle<()>>,
}

impl Agent {
    pub(crate) fn count(&self, outcome: &str) -> u64 {
        let counters = self.steering.counters().unwrap();
        counters.iter().find(|count| count.outcome == outcome).expect("a known outcome").packets
    }

    /// Stops to follow the node's devices.
    pub(crate) fn stop_watching(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.watching.take() {
            thread.join().unwrap();
        }
    }

    /// Closes the listeners.
    pub(crate) fn close(&mut self) {
        for task in &self.accepting {
            task.abort();
        }
        until("the listeners are closed", || self.accepting.iter().all(tokio::task::JoinHandle::is_finished));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        for task in &self.accepting {
            task.abort();
        }
        // A listener that is still there would take one more connection, and break it.
        let deadline = Instant::now() + PATIENCE;
        while !self.accepting.iter().all(tokio::task::JoinHandle::is_finished) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        self.shutdown.cancel();
        if let Some(thread) = self.watching.take() {
            drop(thread.join());
        }
    }
}

/// A connection whose other end has said who it is.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
    /// Machine, or `agent`.
    pub(crate) who: String,
    /// The address the other end was reached at.
    pub(crate) reached: SocketAddr,
    /// The address the other end saw.
    pub(crate) seen: SocketAddr,
    /// Length of what it said.
    pub(crate) greeting: u64,
}

impl Connection {
    async fn greet(stream: TcpStream) -> io::Result<Self> {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        tokio::time::timeout(PATIENCE, stream.read_line(&mut line)).await??;
        let mut words = line.split_whitespace().map(str::to_owned);
        let mut word = || words.next().ok_or_else(|| io::Error::other(format!("greeting {line:?}")));
        let (who, reached, seen) = (word()?, word()?, word()?);
        let greeting = line.len() as u64;
        Ok(Self { stream, who, reached: reached.parse().unwrap(), seen: seen.parse().unwrap(), greeting })
    }

    /// One whose other end says nothing.
    fn quiet(stream: TcpStream) -> Self {
        let (reached, seen) = (stream.peer_addr().unwrap(), stream.local_addr().unwrap());
        Self { stream: BufReader::new(stream), who: String::new(), reached, seen, greeting: 0 }
    }

    async fn exchange(&mut self, bytes: usize) -> io::Result<()> {
        let (read, write) = tokio::io::split(&mut self.stream);
        let (mut read, mut write, data) = (read, write, vec![7; bytes]);
        let mut answer = vec![0; bytes];
        let both = async { tokio::try_join!(write.write_all(&data), read.read_exact(&mut answer)) };
        tokio::time::timeout(PATIENCE, both).await??;
        assert_eq!(data, answer);
        Ok(())
    }

    /// Breaks it off.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(self.stream.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
    }

    async fn echo(&mut self) -> io::Result<()> {
        self.stream.write_all(b"echo").await?;
        let mut answer = [0; 4];
        tokio::time::timeout(PATIENCE, self.stream.read_exact(&mut answer)).await??;
        assert_eq!(&answer, b"echo");
        Ok(())
    }

    pub(crate) fn local_address(&self) -> SocketAddr {
        self.stream.get_ref().local_addr().unwrap()
    }
}

async fn serve(name: String, listener: std::net::TcpListener) {
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        let Ok((mut stream, peer)) = listener.accept().await else { return };
        let local = stream.local_addr().unwrap();
        let greeting = format!("{name} {local} {peer}\n");
        tokio::spawn(async move {
            let greeted = stream.write_all(greeting.as_bytes()).await.is_ok();
            if greeted && local.port() != CLOSING_PORT {
                let (mut read, mut write) = stream.split();
                drop(tokio::io::copy(&mut read, &mut write).await);
            }
        });
    }
}

/// Waits for a condition.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A BPF file system of its own.
struct BpfFs(PathBuf);

impl BpfFs {
    fn mount() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("mesh-bpf-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&Path>).unwrap();
        Self(path)
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        drop(std::fs::remove_dir(&self.0));
    }
}
