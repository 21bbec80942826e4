//! The sockets of the proxy and the options that make them transparent.
//!
//! `TCP_USER_TIMEOUT` is left alone on purpose: the kernel applies it to zero-window probes too, even to those that
//! are answered, and would end a connection whose reader merely pauses (`tcp_probe_timer`).

use std::io::{self, Read};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use mesh_common::Arrival;
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort, sockopt::TcpCongestion};
use socket2::{Domain, SockRef, Socket, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::node_sockets::{NodeSockets, make};
use super::settings::{Keepalive, ProxySettings};

/// Ports that a connection finds taken before it gives up. Each one more is that much less likely, unless nearly all are.
const MAX_TAKEN_PORTS: usize = 16;

/// A listening socket that accepts connections to any address. Accepted sockets inherit its options: the mark,
/// no delay, keepalive; that saves five system calls for each of them. The mark has to be right from the first answer
/// on, which is the kernel's own: it says by which device the answers leave.
pub(super) fn listen(
    address: IpAddr,
    arrival: Arrival,
    settings: &ProxySettings,
) -> io::Result<std::net::TcpListener> {
    let socket = make(family(address))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    set_transparent(&socket, address)?;
    if arrival == Arrival::Around {
        socket.set_mark(settings.agent_mark)?;
        socket.set_tcp_mss(around_segment(address))?;
    }
    tune(&socket, settings.keepalive)?;
    socket.bind(&SocketAddr::new(address, 0).into())?;
    socket.listen(settings.backlog.into())?;
    Ok(socket.into())
}

/// The longest segment that fits through the device of any pod. What is turned around has come as far as that device, which
/// may let less through than the way to the client does: the loopback device, for one.
fn around_segment(address: IpAddr) -> u32 {
    /// The least that IPv6 lets a link carry (RFC 8200), and the headers of IP and TCP.
    const LEAST_MTU: u32 = 1280;
    const IPV4_HEADERS: u32 = 40;
    const IPV6_HEADERS: u32 = 60;
    LEAST_MTU - if address.is_ipv4() { IPV4_HEADERS } else { IPV6_HEADERS }
}

/// Whose address a connection is opened from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    /// The node's own, whichever the kernel chooses.
    Node,
    /// A client's that is not on the node itself: what is sent to it comes back steered.
    Client(IpAddr),
    /// A client's that may be the node itself.
    ClientOrNode(IpAddr),
}

impl Source {
    /// The address of a client whose connection came so, where it is to be kept.
    pub(super) fn of(preserved: Option<IpAddr>, arrival: Arrival) -> Self {
        match (preserved, arrival) {
            (None, _) => Self::Node,
            (Some(client), Arrival::Steered) => Self::Client(client),
            (Some(client), Arrival::Around) => Self::ClientOrNode(client),
        }
    }
}

/// How far a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// To a pod of this node.
    Node,
    /// To anything else.
    Network,
}

/// Has a connection control its congestion as its way asks for.
pub(super) fn control_congestion(socket: &impl AsFd, reach: Reach, settings: &ProxySettings) {
    if let (Reach::Network, Some(control)) = (reach, &settings.network_congestion_control) {
        // Seen to be possible when the agent started. Without it the connection is one all the same.
        let _ = setsockopt(socket, TcpCongestion, control);
    }
}

/// Connects to `destination`, on another node, from `source` where that is given and else from the node's own address.
pub(super) async fn connect(
    destination: SocketAddr,
    source: Option<IpAddr>,
    settings: &ProxySettings,
    node: &NodeSockets,
) -> io::Result<TcpStream> {
    let source = Source::of(source, Arrival::Steered);
    connect_clear_of(destination, source, Reach::Network, settings, node, |_| false).await
}

/// The same from a port that is not `taken`, as far as there is one. What can be taken without the kernel knowing are the
/// ports of `source`: it is a pod's address, and the pod has ports of its own.
pub(super) async fn connect_clear_of(
    destination: SocketAddr,
    source: Source,
    reach: Reach,
    settings: &ProxySettings,
    node: &NodeSockets,
    taken: impl Fn(SocketAddr) -> bool,
) -> io::Result<TcpStream> {
    let mut attempts = Vec::new();
    let stream = loop {
        let stream = begin_to_connect(destination, source, reach, settings, node).await?;
        if matches!(source, Source::Node) || !taken(stream.local_addr()?) {
            break stream;
        }
        if attempts.len() == MAX_TAKEN_PORTS {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        // Kept until there is a port that is free: so the kernel chooses another.
        attempts.push(stream);
    };
    drop(attempts);
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

/// A socket whose SYN is on its way.
async fn begin_to_connect(
    destination: SocketAddr,
    source: Source,
    reach: Reach,
    settings: &ProxySettings,
    node: &NodeSockets,
) -> io::Result<TcpStream> {
    let domain = family(destination.ip());
    let as_client = |client| {
        let socket = make(domain)?;
        control_congestion(&socket, reach, settings);
        begin(socket, destination, Origin::Client(client), settings)
    };
    match source {
        Source::Node => begin(node.take(domain).await?, destination, Origin::Node(None), settings),
        Source::Client(client) => as_client(client),
        // What the node sends and receives itself is tracked like all that it does: untracked, its answers could belong
        // to a connection that was translated to the same address and port.
        Source::ClientOrNode(client) => {
            let socket = node.take(domain).await?;
            match begin(socket, destination, Origin::Node(Some(client)), settings) {
                // Refused by `bind`, or where the node may bind to any address (`ip_nonlocal_bind`) by `connect`.
                Err(error) if is_not_of_node(&error) => as_client(client),
                begun => begun,
            }
        }
    }
}

fn is_not_of_node(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EINVAL))
}

/// Where a connection begins.
enum Origin {
    /// In the node's network namespace, at an address of its own.
    Node(Option<IpAddr>),
    /// In the agent's, at an address that is not its own.
    Client(IpAddr),
}

/// Begins to connect.
fn begin(
    socket: Socket,
    destination: SocketAddr,
    origin: Origin,
    settings: &ProxySettings,
) -> io::Result<TcpStream> {
    tune(&socket, settings.keepalive)?;
    let source = match origin {
        Origin::Node(source) => {
            socket.set_mark(settings.agent_mark)?;
            source
        }
        Origin::Client(client) => {
            set_transparent(&socket, client)?;
            Some(client)
        }
    };
    if let Some(source) = source {
        // Lets `connect` choose the port by the whole four-tuple, not `bind` by the address alone: the same
        // client can have a full range of ports towards each endpoint.
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    match socket.connect(&destination.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => TcpStream::from_std(socket.into()),
    }
}

fn family(address: IpAddr) -> Domain {
    if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 }
}

fn set_transparent(socket: &Socket, address: IpAddr) -> io::Result<()> {
    if address.is_ipv4() { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}

fn tune(socket: &Socket, keepalive: Keepalive) -> io::Result<()> {
    // The bytes were coalesced, or not, by who sent them; waiting again would only add delay.
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(keepalive.idle)
        .with_interval(keepalive.interval)
        .with_retries(keepalive.probes);
    socket.set_tcp_keepalive(&keepalive)
}

/// Reads what there is; `WouldBlock` where there is nothing.
///
/// A read that does not fill the buffer has emptied the socket, and the next bytes bring a new event (epoll(7),
/// question 9 on edge-triggered use). Saying so to the runtime saves the read that would only find that out.
pub(super) fn try_read(tcp: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut short = None;
    let read = tcp.try_io(Interest::READABLE, || {
        let count = (&*SockRef::from(tcp)).read(buffer)?;
        if count == 0 || count == buffer.len() {
            return Ok(count);
        }
        short = Some(count);
        Err(io::ErrorKind::WouldBlock.into())
    });
    short.map_or(read, Ok)
}

/// Sends a FIN. Fails only where the connection is gone already, which reading from it tells.
pub(super) fn close_write(tcp: &TcpStream) {
    let _ = SockRef::from(tcp).shutdown(Shutdown::Write);
}

/// One side of a relayed connection. Reset when dropped, so that whatever goes wrong the peer learns at once that
/// it did; only after [`end_in_order`](Self::end_in_order) it is closed.
#[derive(Debug)]
pub struct Stream {
    tcp: Rc<TcpStream>,
    reset: bool,
}

impl Stream {
    /// A connection that is reset unless it ends well.
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp: Rc::new(tcp), reset: true }
    }

    /// The socket.
    pub(super) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// The socket, for who writes to it beside its owner.
    pub(super) fn shared(&self) -> &Rc<TcpStream> {
        &self.tcp
    }

    /// From here on, dropping it delivers what was written, and a FIN.
    pub(super) fn end_in_order(&mut self) {
        self.reset = false;
    }
}

/// For what is spoken over the connection by others: TLS.
impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let tcp = &self.tcp;
        loop {
            ready!(tcp.poll_read_ready(cx))?;
            match try_read(tcp, buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.tcp.poll_write_ready(cx))?;
            match self.tcp.try_write_vectored(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        close_write(&self.tcp);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.reset {
            // Fails only on a socket that is already dead, which is what is wanted.
            let _ = self.tcp.set_zero_linger();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn accepted_sockets_inherit_what_the_listener_was_given() {
        let settings = ProxySettings::new(0x40);
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
            for (arrival, mark) in [(Arrival::Steered, 0), (Arrival::Around, 0x40)] {
                let listener = listen(address, arrival, &settings).unwrap();
                listener.set_nonblocking(false).unwrap();
                let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let (accepted, _) = listener.accept().unwrap();
                let accepted = SockRef::from(&accepted);
                assert_eq!(accepted.mark().unwrap(), mark);
                assert!(accepted.tcp_nodelay().unwrap());
                assert!(accepted.keepalive().unwrap());
                assert_eq!(accepted.tcp_keepalive_time().unwrap(), settings.keepalive.idle);
                assert_eq!(accepted.tcp_keepalive_interval().unwrap(), settings.keepalive.interval);
                assert_eq!(accepted.tcp_keepalive_retries().unwrap(), settings.keepalive.probes);
            }
        }
    }
}
