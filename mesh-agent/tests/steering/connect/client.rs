//! A client in a pod's cgroup: this test program, run once more as one of the pod's own processes, because a cgroup is a
//! property of a process and the tests' threads are none of the pod's.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use mesh_lab::Machine;
use socket2::{Domain, Protocol, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(5);
/// Set where the program is to be the client.
const TASK: &str = "MESH_TEST_CLIENT";

/// How the client connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// As most do.
    Plain,
    /// To an IPv4 address with an IPv6 socket.
    Mapped,
    /// Without waiting for it.
    NonBlocking,
    /// From an address that was bound before.
    BoundAddress,
    /// From a port that was bound before.
    BoundPort,
    /// With multipath TCP.
    Multipath,
    /// To an endpoint that refuses first, and with the same socket again.
    Again(SocketAddr),
}

/// What the client found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Who answered, `agent` or a machine.
    pub(super) who: String,
    /// The address that was reached.
    pub(super) reached: SocketAddr,
    /// Who the socket says it is connected to.
    pub(super) peer: SocketAddr,
    /// The socket's own address.
    pub(super) local: SocketAddr,
}

/// Connects from a pod, `times` one after the other.
pub(super) fn connect(machine: &Machine, to: SocketAddr, how: How, times: usize) -> Vec<Found> {
    let how = match how {
        How::Again(first) => format!("Again={first}"),
        how => format!("{how:?}"),
    };
    let program = machine.program(std::env::current_exe().unwrap()).unwrap();
    let output = program
        .args(["--exact", "connect::client::runs_in_a_pod", "--nocapture"])
        .env(TASK, format!("{how} {to} {times}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
    let found: Vec<_> = output.stdout.lines().filter_map(|line| line.strip_prefix("found ")).collect();
    assert_eq!(found.len(), times, "{}{}", output.stdout, output.stderr);
    found.into_iter().map(parse).collect()
}

fn parse(line: &str) -> Found {
    let mut words = line.split_whitespace();
    let who = words.next().unwrap().to_owned();
    let mut address = || words.next().unwrap().parse().unwrap();
    Found { who, reached: address(), peer: address(), local: address() }
}

/// Not a test but the client; does nothing where it is not asked to be one.
#[test]
fn runs_in_a_pod() {
    let Ok(task) = std::env::var(TASK) else { return };
    let words: Vec<_> = task.split(' ').collect();
    let (to, times): (SocketAddr, usize) = (words[1].parse().unwrap(), words[2].parse().unwrap());
    println!();
    for _ in 0..times {
        let stream = open(words[0], to);
        let (peer, local) = (stream.peer_addr().unwrap(), stream.local_addr().unwrap());
        let mut greeting = String::new();
        BufReader::new(&stream).read_line(&mut greeting).unwrap();
        let mut words = greeting.split_whitespace();
        let (who, reached) = (words.next().unwrap(), words.next().unwrap());
        println!("found {who} {reached} {peer} {local}");
        let mut stream = stream;
        stream.write_all(b"echo").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
    }
}

fn open(how: &str, to: SocketAddr) -> TcpStream {
    let (domain, to) = match (how, to.ip()) {
        ("Mapped", IpAddr::V4(v4)) => {
            (Domain::IPV6, SocketAddr::new(IpAddr::V6(v4.to_ipv6_mapped()), to.port()))
        }
        _ => (Domain::for_address(to), to),
    };
    let protocol = if how == "Multipath" { Protocol::MPTCP } else { Protocol::TCP };
    let socket = Socket::new(domain, Type::STREAM, Some(protocol)).unwrap();
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { Ipv6Addr::UNSPECIFIED.into() };
    match how {
        // Takes a port at once.
        "BoundPort" => socket.bind(&SocketAddr::new(any, 0).into()).unwrap(),
        "BoundAddress" => {
            // The kernel chooses the port when it connects.
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true)
                .unwrap();
            socket.bind(&SocketAddr::new(source_towards(to), 0).into()).unwrap();
        }
        _ => {}
    }
    if let Some(first) = how.strip_prefix("Again=") {
        let first: SocketAddr = first.parse().unwrap();
        socket.connect(&first.into()).unwrap_err();
    }
    if how == "NonBlocking" {
        // Connects without waiting, and then waits.
        socket.connect_timeout(&to.into(), PATIENCE).unwrap();
    } else {
        socket.connect(&to.into()).unwrap();
    }
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The address that connections to `to` come from.
fn source_towards(to: SocketAddr) -> IpAddr {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let probe = std::net::UdpSocket::bind(SocketAddr::new(any, 0)).unwrap();
    probe.connect(to).unwrap();
    probe.local_addr().unwrap().ip()
}
