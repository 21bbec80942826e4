//! A server that says who it is and whom it sees: which pod answered, from which source address, over what.
//!
//! One port speaks HTTP/1.1, HTTP/2 with prior knowledge and raw TCP, told apart by the first bytes a client sends.
//!
//! | over | request            | answer                                       |
//! |------|--------------------|----------------------------------------------|
//! | HTTP | `/echo`            | the body of the request                      |
//! |      | `/delay?ms=100`    | an [`Answer`], later                         |
//! |      | `/status?code=503` | an [`Answer`] with that status               |
//! |      | `/bytes?n=1000`    | as many bytes                                |
//! |      | anything else      | an [`Answer`]                                |
//! | TCP  | the line `who`     | an [`Answer`] in one line                    |
//! |      | anything else      | the same bytes; the end of the stream too    |
//! | UDP  | the line `who`     | an [`Answer`]                                |
//! |      | anything else      | the same datagram                            |

mod detect;
mod http;
mod raw;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::background::Background;
use crate::machine::Machine;
use crate::netns;

/// Connections above this wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 10_000;
/// Pause after a failed accept: out of descriptors, mostly, which only the end of other connections heals.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time for the last answers of a server that is stopped.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// Largest UDP datagram.
const DATAGRAM_MAX: usize = 65_535;

/// What the server knows about a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Name of the server: the pod that answered.
    pub pod: String,
    /// Where the request came from, as the server sees it.
    pub source: SocketAddr,
    /// The server's own end.
    pub local: SocketAddr,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// `HTTP/1.1`, `HTTP/2.0`, `TCP` or `UDP`.
    pub protocol: String,
    /// Number of the connection, from 1.
    pub connection: u64,
    /// HTTP method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// HTTP path and query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// HTTP headers; values that are not text are left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

/// One connection, as the server sees it.
#[derive(Debug, Clone)]
struct Connection {
    pod: Arc<str>,
    source: SocketAddr,
    local: SocketAddr,
    number: u64,
}

impl Connection {
    fn answer(&self, protocol: &str) -> Answer {
        Answer {
            pod: self.pod.to_string(),
            source: self.source,
            local: self.local,
            family: family(self.source.ip()).to_owned(),
            protocol: protocol.to_owned(),
            connection: self.number,
            method: None,
            path: None,
            headers: BTreeMap::new(),
        }
    }

    /// The answer as a line.
    fn line(&self, protocol: &str) -> Vec<u8> {
        let mut line = serde_json::to_vec(&self.answer(protocol)).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The addresses that stand for a port of both families.
#[must_use]
pub fn any_address(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)]
}

/// An echo server with its sockets open.
#[derive(Debug)]
pub struct EchoServer {
    pod: Arc<str>,
    listeners: Vec<std::net::TcpListener>,
    datagrams: Vec<std::net::UdpSocket>,
}

impl EchoServer {
    /// Opens the sockets, in the calling thread's namespace. From here on clients can connect.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub fn bind(pod: &str, addresses: &[SocketAddr], udp: bool) -> io::Result<Self> {
        let listeners = addresses.iter().map(|&address| netns::listen(address)).collect::<io::Result<_>>()?;
        let udp_addresses = if udp { addresses } else { &[] };
        let datagrams =
            udp_addresses.iter().map(|&address| netns::datagrams(address)).collect::<io::Result<_>>()?;
        Ok(Self { pod: pod.into(), listeners, datagrams })
    }

    /// Serves until stopped. HTTP requests that have begun by then get their answers, as from any server that is ended in good
    /// order; all connections are closed after that.
    ///
    /// # Errors
    /// When the runtime refuses the sockets.
    pub async fn serve(self, stop: CancellationToken) -> io::Result<()> {
        let connections = Arc::new(AtomicU64::new(0));
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut tasks = JoinSet::new();
        for listener in self.listeners {
            let listener = TcpListener::from_std(listener)?;
            tasks.spawn(accept(
                listener,
                Arc::clone(&self.pod),
                Arc::clone(&connections),
                Arc::clone(&permits),
                stop.clone(),
            ));
        }
        // These end by being aborted with their set.
        let mut datagrams = JoinSet::new();
        for socket in self.datagrams {
            datagrams.spawn(answer_datagrams(UdpSocket::from_std(socket)?, Arc::clone(&self.pod)));
        }
        stop.cancelled().await;
        // What takes longer is cut.
        let _ = timeout(LAST_ANSWERS, tasks.join_all()).await;
        Ok(())
    }
}

/// Takes connections until stopped, and then waits for the end of those that are open.
async fn accept(
    listener: TcpListener,
    pod: Arc<str>,
    connections: Arc<AtomicU64>,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
) {
    let mut open = JoinSet::new();
    loop {
        let next = async {
            // The semaphore is never closed.
            let permit = Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other)?;
            Ok((listener.accept().await?, permit))
        };
        let next: io::Result<_> = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        match next {
            Ok(((stream, source), permit)) => {
                let stop = stop.clone();
                let (pod, number) = (Arc::clone(&pod), connections.fetch_add(1, Ordering::Relaxed) + 1);
                open.spawn(async move {
                    let result = serve_connection(stream, source, pod, number, &stop).await;
                    if let Err(error) = result {
                        tracing::debug!(%source, %error, "connection failed");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while open.try_join_next().is_some() {}
    }
    drop(listener);
    open.join_all().await;
}

async fn serve_connection(
    stream: TcpStream,
    source: SocketAddr,
    pod: Arc<str>,
    number: u64,
    stop: &CancellationToken,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let connection = Connection { pod, source, local: stream.local_addr()?, number };
    let Some(detected) = stop.run_until_cancelled(detect::detect(stream)).await else { return Ok(()) };
    let (protocol, stream) = detected?;
    match protocol {
        detect::Protocol::Http => http::serve(stream, connection, stop).await,
        detect::Protocol::Raw => {
            stop.run_until_cancelled(raw::serve(stream, &connection)).await.unwrap_or(Ok(()))
        }
    }
}

async fn answer_datagrams(socket: UdpSocket, pod: Arc<str>) {
    let mut buffer = vec![0; DATAGRAM_MAX];
    let mut number = 0;
    loop {
        let answered = async {
            let (length, source) = socket.recv_from(&mut buffer).await?;
            number += 1;
            let datagram = buffer.get(..length).unwrap_or_default();
            if datagram == raw::WHO {
                let connection =
                    Connection { pod: Arc::clone(&pod), source, local: socket.local_addr()?, number };
                socket.send_to(&connection.line("UDP"), source).await
            } else {
                socket.send_to(datagram, source).await
            }
        };
        if let Err(error) = answered.await {
            // For example an ICMP error that an earlier answer has caused.
            tracing::debug!(%error, "datagram not answered");
        }
    }
}

impl Machine {
    /// Serves as an echo server, TCP and UDP, on a port of both families until the handle is dropped.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub fn echo(&self, port: u16) -> io::Result<Background<io::Result<()>>> {
        let name = self.name().to_owned();
        let server = self.namespace().run(|| EchoServer::bind(&name, &any_address(port), true))??;
        Background::start(self.namespace(), "echo", move |stop| server.serve(stop))
    }
}
