//! A data-plane worker: one thread that accepts connections and relays them, all by itself.
//!
//! Its runtime has one thread and nothing is moved between workers: a connection's bytes stay in one core's cache,
//! and its state needs no lock. Everything else of the agent runs on another runtime.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_common::Arrival;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;
use tokio::time::{sleep, timeout_at};
use tokio_util::task::TaskTracker;

use super::affinity::Affinity;
use super::connection::{Accepted, Origin, serve};
use super::guards::{self, Guards};
use super::limits::Limits;
use super::node_sockets::NodeSockets;
use super::relay::{BufferPool, Lifetime};
use super::settings::ProxySettings;
use super::socket::{Reach, Stream, control_congestion};
use super::tunnel::{TunnelServer, Tunnels};
use crate::config::SharedSnapshot;
use crate::connect_time::ConnectTime;
use crate::identity::{Credentials, Identities, Identity, NoCredentials};
use crate::passage::PassageProposals;
use crate::pods::LocalPods;
use crate::telemetry::{ConnectionObserver, Incident};

/// First pause after the kernel had no descriptor or memory for another connection; doubled while that goes on.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// Longest pause. Connections wait in the kernel's queue meanwhile, open ones go on.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What the workers are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Accept connections.
    Serving,
    /// Accept no more, serve those that are open.
    Draining,
    /// End those at a moment at which nothing is on the way.
    Ending,
    /// End those as well.
    Cut,
}

/// What a worker shares with the others and with the rest of the agent.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) settings: Arc<ProxySettings>,
    pub(super) snapshot: Arc<SharedSnapshot>,
    pub(super) pods: Arc<ArcSwap<LocalPods>>,
    pub(super) connect_time: Arc<ConnectTime>,
    pub(super) observer: Arc<dyn ConnectionObserver>,
    pub(super) limits: Arc<Limits>,
    pub(super) affinity: Arc<Affinity>,
    pub(super) identities: Identities,
    pub(super) node_sockets: NodeSockets,
    pub(super) passage: PassageProposals,
}

/// What the connections of one worker have in common.
pub(super) struct Worker {
    pub(super) index: usize,
    shared: Shared,
    pub(super) buffers: Rc<BufferPool>,
    pub(super) lifetime: Lifetime,
    pub(super) guards: Rc<Guards>,
    pub(super) tunnels: Tunnels,
    pub(super) tunnel_server: TunnelServer,
    phase: watch::Receiver<Phase>,
    connections: TaskTracker,
    reported: Cell<u64>,
}

impl std::ops::Deref for Worker {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Worker {
    /// Serves an accepted connection from now on.
    fn take(self: &Rc<Self>, stream: TcpStream, client: SocketAddr, arrival: Arrival) {
        let Ok(original_destination) = stream.local_addr() else {
            return; // Reset while it waited in the queue.
        };
        control_congestion(&stream, self.reach(client.ip()), &self.settings);
        let origin = Origin::now(client, original_destination, arrival);
        let accepted = Box::new(Accepted { stream: Stream::new(stream), origin });
        self.spawn(serve(Rc::clone(self), accepted));
    }

    /// How far a connection with this address goes.
    pub(super) fn reach(&self, address: IpAddr) -> Reach {
        let is_here = self.pods.load().by_address(address).is_some();
        if is_here { Reach::Node } else { Reach::Network }
    }

    /// The credentials of a local pod's identity. Waits for the first ones of a pod that just came, unless the
    /// authority has already failed to sign them.
    pub(super) async fn credentials(
        &self,
        identity: &Identity,
        deadline: Instant,
    ) -> Result<Arc<Credentials>, NoCredentials> {
        let reason = match self.identities.current(identity) {
            Err(reason @ NoCredentials::Pending { last_error: None, .. }) => reason,
            outcome => return outcome,
        };
        timeout_at(deadline.into(), self.identities.ready(identity)).await.unwrap_or(Err(reason))
    }

    /// Runs what the proxy has to wait for when it is drained.
    pub(super) fn spawn(&self, connection: impl Future<Output = ()> + 'static) {
        self.connections.spawn_local(connection);
    }

    /// Resolves when no more connections are taken.
    pub(super) fn draining(&self) -> impl Future<Output = ()> + use<> {
        let mut phase = self.phase.clone();
        async move { reached(&mut phase, Phase::Draining).await }
    }

    /// An id that no other connection has, of any worker.
    pub(super) fn next_id(&self) -> u64 {
        let reported = self.reported.get();
        self.reported.set(reported + 1);
        let workers = u64::try_from(self.settings.workers.get()).unwrap_or(u64::MAX);
        let index = u64::try_from(self.index).unwrap_or_default();
        reported.wrapping_mul(workers).wrapping_add(index)
    }
}

/// Runs a worker until it is drained or cut. Returns the number of connections that were cut.
pub(super) fn run(
    index: usize,
    shared: Shared,
    listeners: Vec<(std::net::TcpListener, Arrival)>,
    connections: TaskTracker,
    mut phase: watch::Receiver<Phase>,
) -> io::Result<usize> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    let buffers = BufferPool::new(shared.settings.buffer_memory);
    let tunnels =
        Tunnels::new(Arc::clone(&shared.settings), Rc::clone(&buffers), shared.node_sockets.clone());
    let tunnel_server = TunnelServer::new(&shared.settings.tunnel, Rc::clone(&buffers));
    let worker = Rc::new(Worker {
        index,
        lifetime: Lifetime::new(shared.settings.idle_timeout),
        shared,
        buffers,
        guards: Rc::default(),
        tunnels,
        tunnel_server,
        phase: phase.clone(),
        connections,
        reported: Cell::new(0),
    });
    let served = runtime.block_on(async {
        tokio::task::spawn_local(guards::enforce(Rc::clone(&worker)));
        let (mut ending, lifetime) = (phase.clone(), worker.lifetime.clone());
        tokio::task::spawn_local(async move {
            reached(&mut ending, Phase::Ending).await;
            lifetime.end_at_rest();
        });
        let mut accepting = Vec::new();
        for (listener, arrival) in listeners {
            let listener = TcpListener::from_std(listener)?;
            let accepted = accept(Rc::clone(&worker), listener, arrival, phase.clone());
            accepting.push(tokio::task::spawn_local(accepted));
        }
        for loop_of_listener in accepting {
            // A panic in it ends its listener; the other goes on.
            let _ = loop_of_listener.await;
        }
        worker.connections.close();
        tokio::select! {
            () = worker.connections.wait() => {}
            () = reached(&mut phase, Phase::Cut) => {}
        }
        Ok(())
    });
    let cut = worker.connections.len();
    // Drops what is still open: every connection resets its sockets and reports that it was cut.
    drop(runtime);
    served.map(|()| cut)
}

/// Waits for a phase; a proxy whose handle is gone is in the last one.
async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    let _ = phase.wait_for(|current| *current >= wanted).await;
}

/// Accepts until draining starts.
async fn accept(
    worker: Rc<Worker>,
    listener: TcpListener,
    arrival: Arrival,
    mut phase: watch::Receiver<Phase>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let accepted = tokio::select! {
            biased;
            () = reached(&mut phase, Phase::Draining) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                pause = FIRST_PAUSE;
                worker.take(stream, client, arrival);
            }
            Err(error) => {
                worker.observer.incident(Incident::AcceptFailure);
                if concerns_one_connection(&error) {
                    continue;
                }
                if pause == FIRST_PAUSE {
                    tracing::warn!(
                        worker = worker.index, %error,
                        "cannot accept connections; they wait in the kernel until descriptors are free"
                    );
                }
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
    // What the kernel completed before steering stopped is still ours to serve.
    let Ok(listener) = listener.into_std() else {
        return;
    };
    while let Ok((stream, client)) = listener.accept() {
        if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
            worker.take(stream, client, arrival);
        }
    }
}

/// Errors that `accept` hands on from a connection that died in the queue (accept(2)); the next may be fine.
fn concerns_one_connection(error: &io::Error) -> bool {
    !matches!(
        error.raw_os_error(),
        None | Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::ENOMEM
                | libc::ENOBUFS
                | libc::EBADF
                | libc::EINVAL
                | libc::ENOTSOCK
        )
    )
}
