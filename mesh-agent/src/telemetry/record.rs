//! The facts of one connection, gathered by the proxy and read by everything that reports on it.
//!
//! The proxy makes one [`ConnectionRecord`] when a connection's way is decided, counts bytes in it while it
//! relays, and hands it to the [`ConnectionObserver`] with a [`ConnectionEnd`] when it is over.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use clap::ValueEnum;
use mesh_xds::identity::Identity;
use serde::{Deserialize, Serialize};

use crate::config::{Service, Workload};

/// Which side of a conversation the agent takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// A local pod opened the connection.
    Outbound,
    /// Somebody opened it to a local pod.
    Inbound,
}

/// Istio's `reporter` label: whose side of the conversation a record describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reporter {
    /// The client's agent.
    Source,
    /// The server's agent.
    Destination,
}

impl Direction {
    /// The form that metrics and logs carry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }

    /// The side this direction reports for.
    pub fn reporter(self) -> Reporter {
        match self {
            Self::Outbound => Reporter::Source,
            Self::Inbound => Reporter::Destination,
        }
    }
}

/// How the bytes travel from this agent onwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Transport {
    /// Plain TCP to an endpoint the mesh knows.
    Plain,
    /// Plain TCP to a destination the mesh does not know.
    Passthrough,
    /// Through a tunnel to the agent of the server's node, or to a gateway or waypoint.
    Hbone,
    /// Not through the agent: the kernel passes it, on the strength of a verdict of the agent's.
    Kernel,
}

impl Transport {
    /// The form that logs carry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Passthrough => "passthrough",
            Self::Hbone => "hbone",
            Self::Kernel => "kernel",
        }
    }
}

/// How the two ends know each other. Istio's `connection_security_policy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum ConnectionSecurity {
    /// Plain TCP: an address is all that is known.
    #[default]
    None,
    /// Both are pods of this node: no byte leaves it, and the kernel vouches for who sends.
    SameNode,
    /// Mutual TLS.
    MutualTls,
}

impl ConnectionSecurity {
    /// The form that metrics and logs carry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::SameNode => "same_node",
            Self::MutualTls => "mutual_tls",
        }
    }
}

/// One end of a connection.
#[derive(Debug, Clone, Serialize)]
pub struct Peer {
    /// Its address and port.
    pub address: SocketAddr,
    /// Who it is, where the mesh knows.
    #[serde(skip)]
    pub workload: Option<Arc<Workload>>,
    /// Who it has proved to be: by its certificate, or by sending from its own device on this node. Without that,
    /// nothing but its address is known.
    #[serde(skip)]
    pub identity: Option<Arc<Identity>>,
}

/// Why a connection ended the way it did, in Envoy's terms
/// (<https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage>,
/// `%RESPONSE_FLAGS%`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
pub enum ResponseFlag {
    /// Both sides closed in good order.
    #[default]
    #[serde(rename = "-")]
    None,
    /// `NR`: the mesh knows the address but not the port.
    #[serde(rename = "NR")]
    NoRoute,
    /// `UH`: the service has no endpoint that may be chosen.
    #[serde(rename = "UH")]
    NoHealthyUpstream,
    /// `UF`: no endpoint could be connected to.
    #[serde(rename = "UF")]
    UpstreamConnectionFailure,
    /// `UC`: the server broke the connection.
    #[serde(rename = "UC")]
    UpstreamConnectionTermination,
    /// `DC`: the client broke the connection.
    #[serde(rename = "DC")]
    DownstreamConnectionTermination,
    /// `SI`: nothing was sent for longer than the idle time-out.
    #[serde(rename = "SI")]
    StreamIdleTimeout,
    /// `UO`: a limit was reached.
    #[serde(rename = "UO")]
    Overflow,
    /// `DO`: the agent was told to stop and the drain time was over.
    #[serde(rename = "DO")]
    Drained,
    /// `UAEX`: an authorization policy denied it.
    #[serde(rename = "UAEX")]
    Denied,
    /// `MTLS`, ours: it came as plain text where only mutual TLS is taken.
    #[serde(rename = "MTLS")]
    PlaintextRefused,
    /// `TLSF`, ours: the other side's certificate, or the handshake, was no good.
    #[serde(rename = "TLSF")]
    TlsFailure,
    /// `NOID`, ours: there is no certificate yet to speak for the local pod with.
    #[serde(rename = "NOID")]
    NoIdentity,
}

impl ResponseFlag {
    /// Every flag, in the order of declaration.
    pub const ALL: [Self; 13] = [
        Self::None,
        Self::NoRoute,
        Self::NoHealthyUpstream,
        Self::UpstreamConnectionFailure,
        Self::UpstreamConnectionTermination,
        Self::DownstreamConnectionTermination,
        Self::StreamIdleTimeout,
        Self::Overflow,
        Self::Drained,
        Self::Denied,
        Self::PlaintextRefused,
        Self::TlsFailure,
        Self::NoIdentity,
    ];

    /// Whether a policy refused the connection.
    pub fn is_policy(self) -> bool {
        matches!(self, Self::Denied | Self::PlaintextRefused)
    }

    /// The short form that metrics and logs carry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::NoRoute => "NR",
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamConnectionFailure => "UF",
            Self::UpstreamConnectionTermination => "UC",
            Self::DownstreamConnectionTermination => "DC",
            Self::StreamIdleTimeout => "SI",
            Self::Overflow => "UO",
            Self::Drained => "DO",
            Self::Denied => "UAEX",
            Self::PlaintextRefused => "MTLS",
            Self::TlsFailure => "TLSF",
            Self::NoIdentity => "NOID",
        }
    }
}

/// Bytes relayed so far. Written by the one worker that owns the connection, read by anybody.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Traffic {
    /// Counts bytes from the client to the server.
    pub fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes from the server to the client.
    pub fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes from the client to the server.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes from the server to the client.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// The facts of one connection.
#[derive(Debug)]
pub struct ConnectionRecord {
    /// Unique while the agent runs.
    pub id: u64,
    /// The agent's role.
    pub direction: Direction,
    /// Who opened the connection.
    pub source: Peer,
    /// Where the client wanted to go.
    pub original_destination: SocketAddr,
    /// Where the connection leads; `None` when it was refused before an endpoint was chosen.
    pub destination: Option<Peer>,
    /// The service it was opened to, if that was one.
    pub service: Option<Arc<Service>>,
    /// How the bytes travel.
    pub transport: Transport,
    /// How the two ends know each other.
    pub security: ConnectionSecurity,
    /// Endpoints tried, the one that answered included.
    pub attempts: u32,
    /// Which data-plane worker owns it.
    pub worker: usize,
    /// When it was accepted, for people.
    pub opened_at: SystemTime,
    /// When it was accepted, for its age.
    pub opened: Instant,
    /// Bytes so far. One relay may serve two records: those of the client's and the server's side where both
    /// are pods of this node.
    pub traffic: Arc<Traffic>,
}

/// How a connection ended.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ConnectionEnd {
    /// The kind of end.
    pub flag: ResponseFlag,
    /// What exactly happened, for the person who debugs: which endpoint, which limit, which error.
    pub detail: Option<String>,
}

/// Something worth counting that is not the end of a connection: it was survived, or there never was one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Incident {
    /// One endpoint could not be connected to; another may still be tried.
    ConnectFailure(ConnectFailure),
    /// `accept` failed, mostly for want of descriptors; the listener backs off.
    AcceptFailure,
    /// Somebody dialled the listener itself instead of being steered to it; the connection was closed.
    DirectConnection,
    /// Policy allowed a connection that a policy on trial would have denied.
    WouldBeDenied,
}

/// Why an endpoint could not be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConnectFailure {
    /// Nobody listens there.
    Refused,
    /// There is no way there.
    Unreachable,
    /// It did not answer in time.
    TimedOut,
    /// The client's address and every port that would go with it are taken.
    AddressInUse,
    /// Descriptors, memory or ports of this node are exhausted.
    Exhausted,
    /// Anything else.
    Other,
}

impl ConnectFailure {
    /// Every failure, in the order of declaration.
    pub const ALL: [Self; 6] =
        [Self::Refused, Self::Unreachable, Self::TimedOut, Self::AddressInUse, Self::Exhausted, Self::Other];

    /// The form that metrics carry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::AddressInUse => "address_in_use",
            Self::Exhausted => "exhausted",
            Self::Other => "other",
        }
    }
}

impl From<&io::Error> for ConnectFailure {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Self::Refused,
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => Self::Unreachable,
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => Self::AddressInUse,
            io::ErrorKind::OutOfMemory => Self::Exhausted,
            _ => match error.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS) => Self::Exhausted,
                _ => Self::Other,
            },
        }
    }
}

/// Hears of every connection. Called on data-plane workers: must neither block nor wait.
pub trait ConnectionObserver: Send + Sync {
    /// The way of a connection is decided and it is open on both sides.
    fn opened(&self, record: &Arc<ConnectionRecord>);

    /// A connection is over. Comes after [`opened`](Self::opened) for one that was open, and alone for one that
    /// was refused or found no endpoint.
    fn closed(&self, record: &Arc<ConnectionRecord>, end: &ConnectionEnd);

    /// Something happened that is no connection's end.
    fn incident(&self, incident: Incident) {
        let _ = incident;
    }
}
