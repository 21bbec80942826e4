//! What happens to the bytes, and to what a connection takes while it lasts.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use mesh_agent::telemetry::ResponseFlag;

use super::mesh::*;

/// A mesh with one service in front of one server on another node.
fn mesh_with(server: Server, settings: mesh_agent::proxy::ProxySettings) -> Mesh {
    let mut mesh = Mesh::start(settings);
    let port = mesh.port("10.96.0.1");
    mesh.add_service("web", &["10.96.0.1"], port);
    mesh.add_workload("backend", &["10.2.0.1"], "n2", &[("web", port, server.port)]);
    mesh
}

/// Bytes that no shift, loss or repetition leaves the same.
fn block(number: u32) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(number.into());
    (0..1 << 16).map(|_| rng.u8(..)).collect()
}

#[test]
fn sixty_four_mebibytes_arrive_unharmed_both_ways() {
    const BLOCKS: u32 = 1024;
    on_a_node(|| {
        let mesh = mesh_with(Server::echo("10.2.0.1"), settings());
        let mut stream = mesh.connect("10.1.0.1", "10.96.0.1");
        let mut sink = stream.try_clone().unwrap();
        let writer = thread::spawn(move || {
            for number in 0..BLOCKS {
                sink.write_all(&block(number)).unwrap();
            }
            sink.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = vec![0; 1 << 16];
        for number in 0..BLOCKS {
            stream.read_exact(&mut received).unwrap();
            assert!(received == block(number), "block {number} differs");
        }
        assert_eq!(stream.read(&mut received).unwrap(), 0);
        writer.join().unwrap();
        let told = mesh.recorder.end();
        let total = u64::from(BLOCKS) << 16;
        assert_eq!((told.sent, told.received, told.flag), (total, total, ResponseFlag::None));
    });
}

#[test]
fn what_is_sent_before_the_endpoint_answers_is_kept() {
    on_a_node(|| {
        let mesh = mesh_with(Server::echo("10.2.0.1"), settings());
        let mut stream = mesh.connect("10.1.0.1", "10.96.0.1");
        stream.write_all(b"at once").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(stream).unwrap(), "at once");
    });
}

#[test]
fn ten_thousand_short_connections_leave_nothing_behind() {
    const CLIENTS: usize = 8;
    on_a_node(|| {
        // As the node's preparation does, for clients that close first.
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65000").unwrap();
        std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1").unwrap();
        let mesh = mesh_with(Server::named("backend", "10.2.0.1"), settings());
        read_all(mesh.connect("10.1.0.1", "10.96.0.1")).unwrap();
        let before = proxy_descriptors();
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    for _ in 0..10_000 / CLIENTS {
                        let answer = read_all(mesh.connect("10.1.0.1", "10.96.0.1")).unwrap();
                        assert_eq!(answer, "backend 10.1.0.1");
                    }
                });
            }
        });
        eventually("connections to end", || mesh.proxy.connections().sum::<usize>() == 0);
        assert_eq!(mesh.recorder.closed.lock().unwrap().len(), 10_001);
        assert!(mesh.recorder.open.lock().unwrap().is_empty());
        eventually("descriptors to be closed", || proxy_descriptors() <= before);
    });
}

/// TCP sockets of this network namespace, which other tests have no part in. `ss` counts them all: open, closing,
/// and without an owner; those in TIME_WAIT are not sockets any more.
fn proxy_descriptors() -> usize {
    ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
        .iter()
        .flat_map(|path| std::fs::read_to_string(path).unwrap().lines().map(String::from).collect::<Vec<_>>())
        .filter(|line| line.split_whitespace().nth(3).is_some_and(|state| state != "06" && state != "st"))
        .count()
}

#[test]
fn silence_ends_a_connection_with_a_reset() {
    on_a_node(|| {
        let settings =
            mesh_agent::proxy::ProxySettings { idle_timeout: Duration::from_millis(200), ..settings() };
        let mesh = mesh_with(Server::echo("10.2.0.1"), settings);
        let stream = mesh.connect("10.1.0.1", "10.96.0.1");
        assert!(read_all(stream).is_err());
        assert_eq!(mesh.recorder.end().flag, ResponseFlag::StreamIdleTimeout);
    });
}

#[test]
fn draining_lets_connections_end_dismisses_those_at_rest_and_cuts_what_does_not_go() {
    on_a_node(|| {
        let mesh = mesh_with(Server::echo("10.2.0.1"), settings());
        let mut ends_in_time = mesh.connect("10.1.0.1", "10.96.0.1");
        let mut goes = mesh.connect("10.1.0.1", "10.96.0.1");
        let mut stays = mesh.connect("10.1.0.1", "10.96.0.1");
        for stream in [&mut ends_in_time, &mut goes, &mut stays] {
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
        }
        let port = mesh.port("10.96.0.1");
        let Mesh { proxy, recorder, .. } = mesh;
        let drain = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(proxy.drain(Duration::from_millis(1500)))
        });
        eventually("listeners to close", || {
            connect("10.1.0.1", std::net::SocketAddr::new(address("10.96.0.1"), port)).is_err()
        });
        // Still served
        ends_in_time.write_all(b"y").unwrap();
        ends_in_time.read_exact(&mut [0]).unwrap();
        drop(ends_in_time);
        let has_ended = |flag, bytes| {
            recorder.closed.lock().unwrap().iter().any(|told| told.flag == flag && told.received == bytes)
        };
        eventually("the connection to end", || has_ended(ResponseFlag::None, 2));
        // At rest: both are told that their server has ended
        for stream in [&mut goes, &mut stays] {
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
        drop(goes);
        eventually("the connection that was dismissed to end", || has_ended(ResponseFlag::None, 1));
        // Cut
        assert_eq!(drain.join().unwrap().cut, 1);
        assert!(has_ended(ResponseFlag::Drained, 1));
    });
}

#[test]
fn draining_is_over_when_the_last_connection_is() {
    on_a_node(|| {
        let mesh = mesh_with(Server::echo("10.2.0.1"), settings());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let drained = runtime.block_on(async {
            let draining = mesh.proxy.drain(Duration::from_secs(3600));
            tokio::time::timeout(PATIENCE, draining).await.expect("there is nothing to wait for")
        });
        assert_eq!(drained.cut, 0);
    });
}
