//! Endpoints that do not answer, limits that are reached, clients that give up.

use std::io::{Read, Write};
use std::time::Duration;

use mesh_agent::proxy::ProxySettings;
use mesh_agent::telemetry::{ConnectFailure, Incident, ResponseFlag};

use super::mesh::*;

/// A port where nobody listens.
fn dead_port(at: &str) -> u16 {
    std::net::TcpListener::bind((address(at), 0)).unwrap().local_addr().unwrap().port()
}

#[test]
fn a_dead_endpoint_is_passed_over_and_then_avoided() {
    on_a_node(|| {
        let mut mesh = Mesh::start(settings());
        let port = mesh.port("10.96.0.1");
        let live = Server::named("live", "10.2.0.1");
        mesh.add_service("web", &["10.96.0.1"], port);
        mesh.add_workload("live", &["10.2.0.1"], "n2", &[("web", port, live.port)]);
        mesh.add_workload("dead", &["10.2.0.2"], "n2", &[("web", port, dead_port("10.2.0.2"))]);
        for _ in 0..50 {
            assert_eq!(read_all(mesh.connect("10.1.0.1", "10.96.0.1")).unwrap(), "live 10.1.0.1");
        }
        let incidents = mesh.recorder.incidents.lock().unwrap().clone();
        let refused = Incident::ConnectFailure(ConnectFailure::Refused);
        assert!(incidents.iter().all(|incident| *incident == refused));
        // Once per ejection, not once per connection.
        assert!((1..=10).contains(&incidents.len()), "{} attempts at the dead endpoint", incidents.len());
        assert!(mesh.recorder.ends(50).iter().all(|told| told.flag == ResponseFlag::None));
    });
}

#[test]
fn a_silent_endpoint_costs_one_attempt() {
    on_a_node(|| {
        let mut mesh =
            Mesh::start(ProxySettings { attempt_timeout: Duration::from_millis(200), ..settings() });
        let port = mesh.port("10.96.0.1");
        let live = Server::named("live", "10.2.0.1");
        mesh.add_service("web", &["10.96.0.1"], port);
        mesh.add_workload("live", &["10.2.0.1"], "n2", &[("web", port, live.port)]);
        let (silent, _queued) = full_listener("10.2.0.2");
        mesh.add_workload("silent", &["10.2.0.2"], "n2", &[("web", port, silent)]);
        for _ in 0..20 {
            assert_eq!(read_all(mesh.connect("10.1.0.1", "10.96.0.1")).unwrap(), "live 10.1.0.1");
        }
        let incidents = mesh.recorder.incidents.lock().unwrap().clone();
        let timed_out = Incident::ConnectFailure(ConnectFailure::TimedOut);
        assert!(incidents.iter().all(|incident| *incident == timed_out));
        // Once per ejection, not once per connection.
        assert!((1..=5).contains(&incidents.len()), "{} attempts at the silent endpoint", incidents.len());
    });
}

#[test]
fn a_client_is_reset_when_no_endpoint_answers() {
    on_a_node(|| {
        let mut mesh = Mesh::start(settings());
        let port = mesh.port("10.96.0.1");
        mesh.add_service("web", &["10.96.0.1"], port);
        for number in 1..=5 {
            let at = format!("10.2.0.{number}");
            mesh.add_workload(&at, &[&at], "n2", &[("web", port, dead_port(&at))]);
        }
        let mut stream = mesh.connect("10.1.0.1", "10.96.0.1");
        let error = stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let told = mesh.recorder.end();
        assert_eq!((told.flag, told.attempts), (ResponseFlag::UpstreamConnectionFailure, 3));
        assert!(told.detail.unwrap().contains("nobody listens"));
    });
}

/// Where tunnels arrive.
const TUNNEL_PORT: u16 = 15008;

#[test]
fn a_pod_whose_agent_does_not_listen_yet_is_asked_again() {
    on_a_node(|| {
        let mut settings = ProxySettings { connect_timeout: PATIENCE, ..settings() };
        settings.tunnel.joining_time = PATIENCE;
        let mut mesh = Mesh::start(settings);
        let port = mesh.port("10.96.0.1");
        mesh.add_service("web", &["10.96.0.1"], port);
        mesh.add_tunnelled_workload("joining", &["10.2.0.1"], &[("web", port, 80)]);
        let _client = mesh.connect("10.1.0.1", "10.96.0.1");
        let refused = Incident::ConnectFailure(ConnectFailure::Refused);
        eventually("its tunnel is refused", || mesh.recorder.incidents.lock().unwrap().contains(&refused));

        let listener = std::net::TcpListener::bind((address("10.2.0.1"), TUNNEL_PORT)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut tunnel = None;
        eventually("it asks again", || {
            tunnel = listener.accept().ok();
            tunnel.is_some()
        });
        let (_, client) = tunnel.unwrap();
        assert_eq!(client.ip(), address("10.1.0.1"));
    });
}

#[test]
fn a_pod_whose_agent_is_gone_refuses_after_a_moment() {
    on_a_node(|| {
        let mut settings = settings();
        settings.tunnel.joining_time = Duration::from_millis(100);
        let mut mesh = Mesh::start(settings);
        let port = mesh.port("10.96.0.1");
        mesh.add_service("web", &["10.96.0.1"], port);
        mesh.add_tunnelled_workload("alone", &["10.2.0.1"], &[("web", port, 80)]);
        let error = mesh.connect("10.1.0.1", "10.96.0.1").read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let told = mesh.recorder.end();
        assert_eq!(told.flag, ResponseFlag::UpstreamConnectionFailure);
        assert!(told.attempts > 1, "{told:?}");
        let detail = told.detail.unwrap();
        assert!(detail.contains("10.2.0.1:15008") && detail.contains("refused"), "{detail}");
    });
}

#[test]
fn refusals_say_why() {
    on_a_node(|| {
        let mut mesh = Mesh::start(settings());
        let port = mesh.port("10.96.0.1");
        mesh.add_service("empty", &["10.96.0.1"], port);
        mesh.add_service("other", &["10.96.0.2"], port.wrapping_add(1));
        for (vip, flag, reason) in [
            ("10.96.0.1", ResponseFlag::NoHealthyUpstream, "no endpoint"),
            ("10.96.0.2", ResponseFlag::NoRoute, "no port"),
        ] {
            assert!(read_all(mesh.connect("10.1.0.1", vip)).is_err());
            let told = mesh.recorder.end();
            assert_eq!((told.flag, told.destination), (flag, None));
            assert!(told.detail.unwrap().contains(reason));
            mesh.recorder.closed.lock().unwrap().clear();
        }
    });
}

#[test]
fn a_client_without_a_port_left_is_told_so() {
    on_a_node(|| {
        let mut mesh = Mesh::start(settings());
        let port = mesh.port("10.96.0.1");
        let server = Server::echo("10.2.0.1");
        mesh.add_service("web", &["10.96.0.1"], port);
        mesh.add_workload("backend", &["10.2.0.1"], "n2", &[("web", port, server.port)]);
        let clients: Vec<socket2::Socket> = (0..3).map(|_| steered("10.1.0.1")).collect();
        // Upstream connections have two ports, clients have theirs already.
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "61000 61001").unwrap();
        let mut served = 0;
        let mut open = Vec::new();
        for client in clients {
            client.connect(&std::net::SocketAddr::new(address("10.96.0.1"), port).into()).unwrap();
            let mut stream = std::net::TcpStream::from(client);
            let _ = stream.write_all(b"x");
            served += usize::from(stream.read_exact(&mut [0]).is_ok());
            open.push(stream);
        }
        assert_eq!(served, 2);
        let told = mesh.recorder.end();
        assert_eq!(told.flag, ResponseFlag::UpstreamConnectionFailure);
        assert!(told.detail.unwrap().contains("ip_local_port_range"));
        let incidents = mesh.recorder.incidents.lock().unwrap();
        assert_eq!(*incidents, [Incident::ConnectFailure(ConnectFailure::AddressInUse)]);
    });
}

#[test]
fn one_pod_cannot_take_the_connections_of_another() {
    on_a_node(|| {
        let mut mesh = Mesh::start(ProxySettings { max_connections_per_pod: 2, ..settings() });
        mesh.add_pod("other", &["10.1.0.9"], &[]);
        let port = mesh.port("10.96.0.1");
        let server = Server::echo("10.2.0.1");
        mesh.add_service("web", &["10.96.0.1"], port);
        mesh.add_workload("backend", &["10.2.0.1"], "n2", &[("web", port, server.port)]);
        let open = |from: &str| {
            let mut stream = mesh.connect(from, "10.96.0.1");
            let _ = stream.write_all(b"x");
            stream.read_exact(&mut [0]).map(|()| stream)
        };
        let first = open("10.1.0.1").unwrap();
        let _second = open("10.1.0.1").unwrap();
        assert!(open("10.1.0.1").is_err());
        let told = mesh.recorder.end();
        assert_eq!(told.flag, ResponseFlag::Overflow);
        assert!(told.detail.unwrap().contains("max_connections_per_pod"));
        let _others = open("10.1.0.9").unwrap();
        drop(first);
        mesh.recorder.ends(2);
        let _third = open("10.1.0.1").unwrap();
    });
}

#[test]
fn a_client_that_gives_up_ends_the_dialling() {
    on_a_node(|| {
        let mut mesh = Mesh::start(settings());
        let port = mesh.port("10.96.0.1");
        mesh.add_service("web", &["10.96.0.1"], port);
        // A full queue swallows every further SYN.
        let (silent, _queued) = full_listener("10.2.0.1");
        mesh.add_workload("silent", &["10.2.0.1"], "n2", &[("web", port, silent)]);
        let others = dialling();
        let stream = mesh.connect("10.1.0.1", "10.96.0.1");
        eventually("the agent dials", || dialling() > others);
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(stream);
        let told = mesh.recorder.end();
        assert_eq!(told.flag, ResponseFlag::DownstreamConnectionTermination, "and not the connect time-out");
    });
}

/// Connections of this network namespace that wait for an answer.
fn dialling() -> usize {
    const SYN_SENT: &str = "02";
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    table.lines().filter(|line| line.split_whitespace().nth(3) == Some(SYN_SENT)).count()
}

/// A listener whose queue is full, and what fills it.
fn full_listener(at: &str) -> (u16, Vec<socket2::Socket>) {
    use socket2::{Domain, Socket, Type};
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&std::net::SocketAddr::new(address(at), 0).into()).unwrap();
    listener.listen(0).unwrap();
    let at = listener.local_addr().unwrap();
    let mut held = Vec::new();
    for _ in 0..3 {
        let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        filler.set_nonblocking(true).unwrap();
        let _ = filler.connect(&at);
        held.push(filler);
    }
    held.push(listener);
    (at.as_socket().unwrap().port(), held)
}
