//! Takes the connections that steering sends, decides where they lead, and relays them.
//!
//! The way of a connection, one phase after the other (`outbound`, `inbound`):
//!
//! 1. *accept*: a worker's listener yields a socket whose peer is the client and whose own address is where the
//!    client wanted to go (`worker`, `listener`, `socket`);
//! 2. *identify*, *route*: whose connection it is and where it leads, a pure decision ([`decision`]);
//! 3. *authorize*: whether it may (`limits`);
//! 4. *connect*: to an endpoint (`balance`, `affinity`, `dial`);
//! 5. *relay*: bytes both ways (`relay`);
//! 6. *report*: to metrics, log and `meshctl` (`report`).
//!
//! Accepting comes before connecting: a client of an endpoint that is down sees its connection open and then reset.

mod affinity;
mod authorize;
mod balance;
mod connection;
pub mod decision;
mod dial;
#[cfg(test)]
pub(crate) mod fixtures;
mod guards;
mod inbound;
mod limits;
mod listener;
mod node_sockets;
mod outbound;
mod relay;
mod report;
mod settings;
mod socket;
pub mod tunnel;
mod tunnelled;
mod worker;

use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_common::Arrival;
use thiserror::Error;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::config::SharedSnapshot;
use crate::connect_time::ConnectTime;
use crate::identity::Identities;
use crate::passage::PassageProposals;
use crate::pods::LocalPods;
use crate::telemetry::ConnectionObserver;

pub use listener::Listener;
pub use node_sockets::NodeSockets;
pub use relay::{BufferPool, Lifetime, RelayEnd};
pub use settings::{InvalidSettings, Keepalive, ProxySettings};
pub use socket::Stream;

use limits::Limits;
use worker::{Phase, Shared};

/// Of the time that open connections have to end, what those have that only wait for their next request.
const AT_REST: Duration = Duration::from_secs(5);

/// What the proxy needs from the rest of the agent.
#[derive(Clone)]
pub struct ProxyInputs {
    /// The mesh's configuration.
    pub snapshot: Arc<SharedSnapshot>,
    /// The pods of this node.
    pub pods: Arc<ArcSwap<LocalPods>>,
    /// What the kernel balances by itself.
    pub connect_time: Arc<ConnectTime>,
    /// Where connections are proposed that the kernel may pass by itself.
    pub passage: PassageProposals,
    /// The identities of the node's pods.
    pub identities: Identities,
    /// Who hears of connections.
    pub observer: Arc<dyn ConnectionObserver>,
    /// Sockets of the node, if the proxy is started elsewhere.
    pub node_sockets: NodeSockets,
}

/// The proxy could not be started.
#[derive(Debug, Error)]
pub enum ProxyError {
    /// The settings cannot work.
    #[error(transparent)]
    Settings(#[from] InvalidSettings),
    /// A listener could not be opened.
    #[error("cannot listen on {address}: {source} (transparent listeners need CAP_NET_ADMIN)")]
    Listen {
        /// Where.
        address: IpAddr,
        /// Why.
        source: io::Error,
    },
    /// A worker's thread could not be started.
    #[error("cannot start the thread of a data-plane worker: {0}")]
    Thread(io::Error),
}

/// A running proxy. Dropping it ends it at once; [`drain`](Self::drain) does so with care.
#[derive(Debug)]
pub struct Proxy {
    listeners: Vec<Listener>,
    workers: Vec<RunningWorker>,
    phase: watch::Sender<Phase>,
}

#[derive(Debug)]
struct RunningWorker {
    connections: TaskTracker,
    /// Resolves with the number of connections cut when the worker's thread has ended.
    ended: oneshot::Receiver<io::Result<usize>>,
}

/// How draining ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still open at the deadline and were reset.
    pub cut: usize,
}

impl Proxy {
    /// Opens the listeners and starts the workers, all in the network namespace of the calling thread. Connections come once steering knows the
    /// [`listeners`](Self::listeners).
    pub fn start(settings: ProxySettings, inputs: ProxyInputs) -> Result<Self, ProxyError> {
        settings.validate()?;
        let listeners = listener::open_all(&settings)?;
        let shared = Shared {
            limits: Arc::new(Limits::new(&settings)),
            affinity: Arc::default(),
            settings: Arc::new(settings),
            snapshot: inputs.snapshot,
            pods: inputs.pods,
            connect_time: inputs.connect_time,
            observer: inputs.observer,
            passage: inputs.passage,
            identities: inputs.identities,
            node_sockets: inputs.node_sockets,
        };
        let phase = watch::Sender::new(Phase::Serving);
        let mut workers = Vec::new();
        for index in 0..shared.settings.workers.get() {
            let own = listeners.iter().filter(|listener| listener.worker() == index);
            let sockets = own.map(Listener::socket).collect::<Result<Vec<_>, _>>()?;
            workers.push(RunningWorker::start(index, shared.clone(), sockets, phase.subscribe())?);
        }
        Ok(Self { listeners, workers, phase })
    }

    /// The listening sockets, for steering's map.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Open connections of each worker.
    pub fn connections(&self) -> impl Iterator<Item = usize> + '_ {
        self.workers.iter().map(|worker| worker.connections.len())
    }

    /// Stops accepting and lets open connections go on until they end or `deadline` is over. Towards that, those that are at
    /// rest are ended in order; what is still open then is reset.
    /// Steering must have been told to send no more connections: from here on they are refused.
    pub async fn drain(self, deadline: Duration) -> Drained {
        let Self { listeners, workers, phase } = self;
        phase.send_replace(Phase::Draining);
        // A socket listens until its last handle is closed.
        drop(listeners);
        let open: Vec<TaskTracker> = workers.iter().map(|worker| worker.connections.clone()).collect();
        let all_ended = async {
            for connections in &open {
                connections.wait().await;
            }
        };
        let mut all_ended = pin!(all_ended);
        let at_rest = AT_REST.min(deadline / 2);
        if timeout(deadline - at_rest, all_ended.as_mut()).await.is_err() {
            phase.send_replace(Phase::Ending);
            let _ = timeout(at_rest, all_ended).await;
        }
        phase.send_replace(Phase::Cut);
        let mut cut = 0;
        for worker in workers {
            match worker.ended.await {
                Ok(Ok(cut_here)) => cut += cut_here,
                Ok(Err(error)) => tracing::error!(%error, "a data-plane worker failed"),
                Err(_) => tracing::error!("a data-plane worker panicked"),
            }
        }
        Drained { cut }
    }
}

impl RunningWorker {
    fn start(
        index: usize,
        shared: Shared,
        listeners: Vec<(std::net::TcpListener, Arrival)>,
        phase: watch::Receiver<Phase>,
    ) -> Result<Self, ProxyError> {
        let connections = TaskTracker::new();
        let (end, ended) = oneshot::channel();
        let tracker = connections.clone();
        thread::Builder::new()
            .name(format!("proxy-{index}"))
            .spawn(move || {
                let outcome = worker::run(index, shared, listeners, tracker, phase);
                if let Err(error) = &outcome {
                    tracing::error!(worker = index, %error, "a data-plane worker cannot run");
                }
                let _ = end.send(outcome);
            })
            .map_err(ProxyError::Thread)?;
        Ok(Self { connections, ended })
    }
}
