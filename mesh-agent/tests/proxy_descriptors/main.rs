//! A proxy that runs out of descriptors. Its own binary, as descriptors are the whole process's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "test code"
)]

#[path = "../proxy/mesh.rs"]
mod mesh;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use mesh::*;
use mesh_agent::telemetry::{Incident, ResponseFlag};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::Socket;

/// Descriptors that are left when the test starts to use them up: a handful of connections.
const LEFT: u64 = 20;

const CLIENTS: usize = 40;

fn echoes(stream: &mut TcpStream) -> bool {
    let mut answer = [0];
    stream.write_all(b"x").is_ok() && stream.read_exact(&mut answer).is_ok()
}

fn open_descriptors() -> u64 {
    std::fs::read_dir("/proc/self/fd").unwrap().count() as u64
}

#[test]
fn open_connections_go_on_and_new_ones_are_served_later() {
    on_a_node(|| {
        let mut mesh = Mesh::start(settings());
        let port = mesh.port("10.96.0.1");
        let server = Server::echo("10.2.0.1");
        mesh.add_service("web", &["10.96.0.1"], port);
        mesh.add_workload("backend", &["10.2.0.1"], "n2", &[("web", port, server.port)]);
        let mut open = mesh.connect("10.1.0.1", "10.96.0.1");
        assert!(echoes(&mut open));

        // Clients that have their descriptors before there are none left.
        let waiting: Vec<Socket> = (0..CLIENTS).map(|_| steered("10.1.0.1")).collect();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, open_descriptors() + LEFT, hard).unwrap();
        for socket in &waiting {
            socket.connect(&SocketAddr::new(address("10.96.0.1"), port).into()).unwrap();
        }
        let accept_failures = || {
            let incidents = mesh.recorder.incidents.lock().unwrap();
            incidents.iter().filter(|incident| **incident == Incident::AcceptFailure).count()
        };
        eventually("accept to fail", || accept_failures() > 0);
        assert!(echoes(&mut open), "an open connection is not served any more");

        // Some were accepted and found no descriptor for their other side; the rest waited.
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        let served = waiting
            .into_iter()
            .map(TcpStream::from)
            .map(|mut stream| echoes(&mut stream))
            .filter(|ok| *ok)
            .count();
        let told = mesh.recorder.closed.lock().unwrap().clone();
        let overflowed = told.iter().filter(|told| {
            told.flag == ResponseFlag::Overflow && told.detail.as_ref().unwrap().contains("descriptors")
        });
        assert_eq!(served + overflowed.count(), CLIENTS);
        assert!(served > CLIENTS / 2, "{served} of {CLIENTS} served");
        assert!(accept_failures() < 100, "accept did not back off");
        assert!(echoes(&mut mesh.connect("10.1.0.1", "10.96.0.1")));
    });
}
