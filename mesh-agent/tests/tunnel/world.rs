//! A mesh in one process: an authority, agents that serve tunnels, servers behind them, and clients.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_agent::identity::{Credentials, Identity, Revocation, RootSource, SystemClock, Trust};
use mesh_agent::proxy::decision::TunnelPath;
use mesh_agent::proxy::tunnel::{
    Authority as Target, ConnectRequest, ServerError, TunnelError, TunnelRoute, TunnelServer, TunnelStream,
    Tunnels, relay,
};
use mesh_agent::proxy::{BufferPool, Lifetime, NodeSockets, ProxySettings, RelayEnd, Stream};
use mesh_agent::telemetry::Traffic;
use mesh_lab::certificates::{Authority, Leaf};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use webpki::OwnedCertRevocationList;

pub const PATIENCE: Duration = Duration::from_secs(20);

thread_local! {
    /// Whether agents may speak what is their own with each other.
    static TRUNKS: Cell<bool> = const { Cell::new(true) };
}

/// Runs a test as a worker runs, on one thread: once with trunks between the agents, once with HBONE.
pub fn on_worker<F: Future<Output = ()>>(test: impl Fn() -> F) {
    for trunks in [true, false] {
        println!("tunnels speak {}", if trunks { "the agents' own protocol" } else { "HBONE" });
        TRUNKS.set(trunks);
        on_worker_once(test());
    }
}

/// Runs a test on one thread, with what the agents speak by default.
pub fn on_worker_once(test: impl Future<Output = ()>) {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
    runtime.block_on(async {
        tokio::time::timeout(3 * PATIENCE, test).await.expect("the test takes too long");
    });
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub fn identity(name: &str) -> Identity {
    Identity::new("cluster.local", "shop", name)
}

pub fn settings() -> ProxySettings {
    let mut settings = ProxySettings::new(0x40);
    settings.tunnel.trunks = TRUNKS.get();
    settings
}

/// Who signs, and who is trusted.
pub struct Mesh {
    pub authority: Authority,
    pub trust: Arc<Trust>,
}

impl Mesh {
    pub fn new() -> Self {
        let authority = Authority::root("mesh").unwrap();
        let trust = trust(&[&authority]);
        Self { authority, trust }
    }

    /// Good credentials.
    pub fn credentials(&self, name: &str) -> Arc<Credentials> {
        self.credentials_of(&Leaf::workload(identity(name)))
    }

    pub fn credentials_of(&self, leaf: &Leaf) -> Arc<Credentials> {
        credentials(&self.authority, leaf, &self.trust)
    }
}

pub fn credentials(authority: &Authority, leaf: &Leaf, trust: &Arc<Trust>) -> Arc<Credentials> {
    let issued = authority.issue(leaf).unwrap();
    Arc::new(Credentials::from_pem(&issued.chain, &issued.key, trust).unwrap())
}

pub fn trust(roots: &[&Authority]) -> Arc<Trust> {
    let trust = Trust::new(["cluster.local".into()], Arc::new(SystemClock));
    set_roots(&trust, roots);
    trust
}

pub fn set_roots(trust: &Trust, roots: &[&Authority]) {
    let root =
        |authority: &&Authority| CertificateDer::from_pem_slice(authority.root_pem().as_bytes()).unwrap();
    trust.set_roots(RootSource::File, roots.iter().map(root)).unwrap();
}

pub fn set_revoked(trust: &Trust, list: &str) {
    let list = CertificateRevocationListDer::from_pem_slice(list.as_bytes()).unwrap();
    let list = OwnedCertRevocationList::from_der(&list).unwrap();
    trust.set_revocation(Revocation::Lists(vec![list.into()]));
}

/// An agent that serves tunnels.
pub struct Agent {
    pub address: SocketAddr,
    seen: Rc<Seen>,
}

/// What an agent has seen.
#[derive(Default)]
pub struct Seen {
    pub tunnels: Cell<usize>,
    pub requests: Cell<usize>,
    pub open: Cell<usize>,
    pub ends: RefCell<Vec<RelayEnd>>,
    /// Tunnels that ended.
    pub ended: RefCell<Vec<Result<(), ServerError>>>,
    pub drain: Notify,
    /// Ends open tunnels as a crash would.
    pub kill: Notify,
}

impl Agent {
    /// An agent that connects everything to one server.
    pub async fn leading_to(
        credentials: &Arc<Credentials>,
        settings: &ProxySettings,
        server: SocketAddr,
    ) -> Self {
        let own = settings.clone();
        let buffers = BufferPool::new(settings.buffer_memory);
        Self::with(credentials, settings, move |mut request, seen| {
            request.authority = Target::Address(server);
            spawn_local(connect(request, seen, own.clone(), Rc::clone(&buffers)));
        })
        .await
    }

    /// An agent that connects whatever is asked for.
    pub async fn start(credentials: &Arc<Credentials>, settings: &ProxySettings) -> Self {
        let settings = settings.clone();
        let buffers = BufferPool::new(settings.buffer_memory);
        Self::with(credentials, &settings.clone(), move |request, seen| {
            let (settings, buffers) = (settings.clone(), Rc::clone(&buffers));
            spawn_local(connect(request, seen, settings, buffers));
        })
        .await
    }

    /// An agent that treats requests its own way.
    pub async fn with(
        credentials: &Arc<Credentials>,
        settings: &ProxySettings,
        handler: impl Fn(ConnectRequest, Rc<Seen>) + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Rc<Seen> = Rc::default();
        let buffers = BufferPool::new(settings.buffer_memory);
        let server = Rc::new(TunnelServer::new(&settings.tunnel, buffers));
        let (credentials, noted, handler) = (Arc::clone(credentials), Rc::clone(&seen), Rc::new(handler));
        spawn_local(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                noted.tunnels.set(noted.tunnels.get() + 1);
                let (server, credentials) = (Rc::clone(&server), Arc::clone(&credentials));
                let (seen, handler) = (Rc::clone(&noted), Rc::clone(&handler));
                spawn_local(async move {
                    let drain = seen.drain.notified();
                    let connect = |request: ConnectRequest| {
                        seen.requests.set(seen.requests.get() + 1);
                        handler(request, Rc::clone(&seen));
                    };
                    let serving = server.serve(Stream::new(tcp), &credentials, drain, connect);
                    let end = tokio::select! {
                        end = serving => end,
                        () = seen.kill.notified() => return,
                    };
                    seen.ended.borrow_mut().push(end);
                });
            }
        });
        Self { address, seen }
    }
}

impl std::ops::Deref for Agent {
    type Target = Seen;

    fn deref(&self) -> &Seen {
        &self.seen
    }
}

async fn connect(request: ConnectRequest, seen: Rc<Seen>, settings: ProxySettings, buffers: Rc<BufferPool>) {
    let address = request.authority.to_string();
    let tcp = match TcpStream::connect(&address).await {
        Ok(tcp) => tcp,
        Err(error) => return request.reject(http::StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    };
    let (mut server, mut tunnel) = (Stream::new(tcp), request.accept().unwrap());
    seen.open.set(seen.open.get() + 1);
    let lifetime = Lifetime::new(settings.idle_timeout);
    let end = relay(&mut server, &mut tunnel, &Arc::default(), &buffers, &lifetime).await;
    seen.open.set(seen.open.get() - 1);
    seen.ends.borrow_mut().push(end);
}

/// A client's agent.
pub struct Client {
    pub tunnels: Tunnels,
    pub credentials: Arc<Credentials>,
    settings: Arc<ProxySettings>,
    pub buffers: Rc<BufferPool>,
}

impl Client {
    pub fn new(credentials: &Arc<Credentials>, settings: &ProxySettings) -> Self {
        let (settings, buffers) = (Arc::new(settings.clone()), BufferPool::new(settings.buffer_memory));
        let tunnels = Tunnels::new(Arc::clone(&settings), Rc::clone(&buffers), NodeSockets::default());
        Self { tunnels, credentials: Arc::clone(credentials), settings, buffers }
    }

    /// The way to `destination` through an agent.
    pub fn route(&self, agent: SocketAddr, expected: &str, destination: SocketAddr) -> TunnelRoute {
        let path = TunnelPath {
            gateway: agent,
            expected: [identity(expected)].into(),
            authority: destination.to_string().into(),
            inner: None,
        };
        self.route_of(path)
    }

    pub fn route_of(&self, path: TunnelPath) -> TunnelRoute {
        TunnelRoute {
            credentials: Arc::clone(&self.credentials),
            source: None,
            path: Arc::new(path),
            client: "10.1.0.1:4000".parse().unwrap(),
            service: None,
            baggage: None,
            trace_parent: None,
        }
    }

    /// Why a connection is not opened.
    pub async fn failure(&self, route: &TunnelRoute) -> TunnelError {
        match self.open(route).await {
            Ok(_) => panic!("opened"),
            Err(error) => error,
        }
    }

    pub async fn open(&self, route: &TunnelRoute) -> Result<TunnelStream, TunnelError> {
        self.tunnels.open(route, Instant::now() + PATIENCE).await
    }

    /// Opens a connection and relays it to a socket, whose other end is returned with the relay's.
    pub async fn connection(&self, route: &TunnelRoute) -> Connection {
        let mut tunnel = self.open(route).await.unwrap_or_else(|error| panic!("{error}"));
        let (tcp, ours) = pair().await;
        let (buffers, idle_timeout) = (Rc::clone(&self.buffers), self.settings.idle_timeout);
        let traffic: Arc<Traffic> = Arc::default();
        let counted = Arc::clone(&traffic);
        let relay = spawn_local(async move {
            relay(&mut Stream::new(ours), &mut tunnel, &counted, &buffers, &Lifetime::new(idle_timeout)).await
        });
        Connection { tcp, relay, traffic }
    }
}

/// A client's connection.
pub struct Connection {
    pub tcp: TcpStream,
    pub relay: tokio::task::JoinHandle<RelayEnd>,
    pub traffic: Arc<Traffic>,
}

impl Connection {
    /// Sends a text and reads it back.
    pub async fn echo(&mut self, text: &str) {
        self.tcp.write_all(text.as_bytes()).await.unwrap();
        self.expect(text).await;
    }

    pub async fn expect(&mut self, text: &str) {
        let mut bytes = vec![0; text.len()];
        self.tcp.read_exact(&mut bytes).await.unwrap();
        assert_eq!(bytes, text.as_bytes());
    }
}

/// Two ends of a connection.
pub async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    (near, far)
}

/// A server that treats every connection as told.
pub async fn server<F: Future<Output = ()> + 'static>(
    serve: impl Fn(TcpStream) -> F + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            spawn_local(serve(tcp));
        }
    });
    address
}

/// A server that sends back what it gets.
pub async fn echo() -> SocketAddr {
    server(|mut tcp| async move {
        let (mut read, mut write) = tcp.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

/// A wire between a client and an agent, which can be held still.
pub struct Wire {
    pub address: SocketAddr,
    held: Rc<Cell<bool>>,
}

impl Wire {
    pub async fn to(agent: SocketAddr) -> Self {
        let held: Rc<Cell<bool>> = Rc::default();
        let hold = Rc::clone(&held);
        let address = server(move |near| {
            let hold = Rc::clone(&hold);
            async move {
                let far = TcpStream::connect(agent).await.unwrap();
                let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                spawn_local(carry(near_read, far_write, Rc::clone(&hold)));
                carry(far_read, near_write, hold).await;
            }
        })
        .await;
        Self { address, held }
    }

    /// From here on nothing gets through, and no end is seen.
    pub fn hold(&self) {
        self.held.set(true);
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, held: Rc<Cell<bool>>) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if held.get() {
            std::future::pending::<()>().await;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            break;
        }
    }
}
