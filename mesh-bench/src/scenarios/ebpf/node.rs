//! A node whose pods are steered, with a plain listener in the place of the proxy.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mesh_agent::pods::{FailureMode, LocalPod, PodDevice, Redirection};
use mesh_agent::steering::host::namespace::{AgentNamespace, NamespaceThread, STEERED};
use mesh_agent::steering::host::{HostSettings, Mark};
use mesh_agent::steering::{
    AttachMode, CoreListeners, DeviceWatch, ListenerPair, PassageKey, Steering, SteeringSettings,
};
use mesh_lab::{Lab, Machine, Topology};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use socket2::{Domain, Socket, Type};
use tokio_util::sync::CancellationToken;

const TOPOLOGY: &str = "
name: ebpf
nodes: [{name: node, cni: routed, pods: [{name: client}, {name: server}, {name: stranger}]}]
hosts: [{name: outside}]
";
const CAPTURE: Mark = Mark { value: 0x1000, mask: 0x1040 };
const AGENT: Mark = Mark { value: 0x40, mask: 0x1040 };
/// The node's device towards everything outside.
const UPLINK: &str = "eth0";
/// How long the last packet of a handshake may take to be processed.
const PATIENCE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(1);
/// Where the servers listen.
pub(super) const PORT: u16 = 8080;

/// An established connection: the client's end, and whoever accepted it.
pub(super) struct Connected {
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
    _ends: (TcpStream, TcpStream),
}

/// Pods `client` and `server` are enrolled, `stranger` is not; `outside` is behind the uplink.
pub(in crate::scenarios) struct SteeredNode {
    // In the order in which they have to go.
    _watch: Watch,
    steering: Steering,
    listeners: [TcpListener; 2],
    _bpffs: BpfFs,
    lab: Lab,
}

impl SteeredNode {
    pub(super) fn up() -> Result<Self> {
        let lab = Lab::up(Topology::parse("ebpf", TOPOLOGY)?.unique())?;
        Self::on(lab, &[("client", true), ("server", true), ("stranger", false)])
    }

    /// Steers the node of a lab, with these pods, enrolled or not.
    pub(in crate::scenarios) fn on(lab: Lab, pods: &[(&str, bool)]) -> Result<Self> {
        let bpffs = BpfFs::mount()?;
        let namespace = lab.node("node")?.namespace();
        let steering = namespace.run(|| Steering::load_or_adopt(&settings(&bpffs)))??;
        let (watch, listeners) = Watch::start(&lab, steering.clone())?;
        let cores = [&listeners[0], &listeners[1]].map(|listener| {
            let pair = ListenerPair { v4: Some(listener.as_fd()), v6: None };
            CoreListeners { steered: pair, around: pair }
        });
        steering.set_listeners(&cores)?;
        let node = Self { _watch: watch, steering, listeners, _bpffs: bpffs, lab };
        for (name, enrolled) in pods {
            let pod = node.pod(name, *enrolled)?;
            node.lab.node("node")?.namespace().run(|| node.steering.enrol(&pod))??;
        }
        Ok(node)
    }

    pub(super) fn steering(&self) -> &Steering {
        &self.steering
    }

    /// The machine with this name.
    pub(super) fn machine(&self, name: &str) -> Result<&Machine> {
        Ok(self.lab.machine(name)?)
    }

    /// An address of a machine.
    pub(super) fn address(&self, name: &str) -> Result<IpAddr> {
        self.machine(name)?.address().with_context(|| format!("{name} has no address"))
    }

    /// The index of the node's device that leads to a pod, or of the uplink.
    pub(super) fn device(&self, name: &str) -> Result<u32> {
        let pod = self.lab.topology().pods().find(|(_, pod)| pod.name == name);
        let device = pod.map_or_else(|| UPLINK.to_owned(), |(_, pod)| pod.device.clone());
        let index =
            self.lab.node("node")?.namespace().run(|| nix::net::if_::if_nametoindex(device.as_str()))?;
        index.with_context(|| format!("the node has no device {device}"))
    }

    /// The node's end of the device that steered packets take.
    pub(super) fn agent_device(&self) -> Result<u32> {
        let index = self.lab.node("node")?.namespace().run(|| nix::net::if_::if_nametoindex(STEERED))?;
        index.context("the node has no device to the agent")
    }

    fn pod(&self, name: &str, enrolled: bool) -> Result<LocalPod> {
        let machine = self.machine(name)?;
        Ok(LocalPod {
            uid: uid(name).into(),
            name: name.into(),
            namespace: "default".into(),
            kubernetes_uid: None,
            service_account: "default".into(),
            addresses: machine.addresses().iter().collect(),
            device: Some(PodDevice { index: self.device(name)?, name: format!("to-{name}") }),
            enrolled,
            redirection: Redirection::default(),
            failure_mode: FailureMode::Open,
        })
    }

    /// Lets connections from `client` to this port of `server` pass.
    pub(super) fn allow(&self, port: u16) -> Result<()> {
        let destination = SocketAddr::new(self.address("server")?, port);
        let passage = PassageKey { source: self.address("client")?, destination };
        ensure!(
            self.steering.allow_passage(passage, Some(&uid("client")), Some(&uid("server")))?,
            "no verdict for {destination}"
        );
        Ok(())
    }

    /// Connects from `client` to `server`, straight.
    pub(super) fn connect_passed(&self, port: u16) -> Result<Connected> {
        let server = SocketAddr::new(self.address("server")?, port);
        let listener = self.machine("server")?.namespace().run(|| TcpListener::bind(server))??;
        self.connect(server, &listener)
    }

    /// Connects from `client` to something outside, through the agent.
    pub(super) fn connect_proxied(&self) -> Result<Connected> {
        let server = SocketAddr::new(self.address("outside")?, PORT);
        let stream = self.machine("client")?.namespace().run(|| TcpStream::connect(server))??;
        let client = stream.local_addr()?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            for listener in &self.listeners {
                match listener.accept() {
                    Ok((accepted, _)) => return Ok(Connected { client, server, _ends: (stream, accepted) }),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
            std::thread::sleep(POLL);
        }
        bail!("the connection did not reach the agent")
    }

    fn connect(&self, server: SocketAddr, listener: &TcpListener) -> Result<Connected> {
        let stream = self.machine("client")?.namespace().run(|| TcpStream::connect(server))??;
        let (accepted, client) = listener.accept()?;
        Ok(Connected { client, server, _ends: (stream, accepted) })
    }
}

fn uid(name: &str) -> String {
    format!("bench//Pod/default/{name}")
}

fn settings(bpffs: &BpfFs) -> SteeringSettings {
    SteeringSettings {
        directory: bpffs.0.join("mesh-agent-node"),
        mark_mask: CAPTURE.mask,
        capture_mark: CAPTURE.value,
        agent_mark: AGENT.value,
        attach: AttachMode::Auto,
    }
}

/// A listener as the proxy has it: it answers from addresses that are not its own.
fn listen() -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_ip_transparent_v4(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(128)?;
    Ok(socket.into())
}

/// Keeps the programs attached to the node's devices.
struct Watch {
    shutdown: CancellationToken,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Watch {
    /// Starts them, and opens the listeners in the network namespace that steered packets are delivered in.
    fn start(lab: &Lab, steering: Steering) -> Result<(Self, [TcpListener; 2])> {
        let shutdown = CancellationToken::new();
        let (started, wait) = mpsc::channel();
        let task = {
            let shutdown = shutdown.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let host = HostSettings::new(CAPTURE, AGENT, "/nonexistent");
                    let namespace = AgentNamespace::connect(NamespaceThread::start()?, &host).await?;
                    steering.deliver_to(&namespace)?;
                    let listeners = [namespace.thread().run(listen)??, namespace.thread().run(listen)??];
                    let watch = DeviceWatch::start(steering).await?;
                    started.send(listeners)?;
                    watch.run(shutdown).await;
                    Ok(())
                })
            }
        };
        let thread = lab.node("node")?.namespace().spawn("steering", task)?;
        let watch = Self { shutdown, thread: Some(thread) };
        let listeners = wait.recv().context("steering did not start")?;
        Ok((watch, listeners))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// A BPF file system of its own.
struct BpfFs(PathBuf);

impl BpfFs {
    fn mount() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("mesh-bench-bpf-{}-{number}", std::process::id()));
        std::fs::create_dir(&path)?;
        let bpffs = Self(path);
        mount(Some("bpf"), &bpffs.0, Some("bpf"), MsFlags::empty(), None::<&Path>)
            .context("cannot mount a BPF file system")?;
        Ok(bpffs)
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        drop(std::fs::remove_dir(&self.0));
    }
}
