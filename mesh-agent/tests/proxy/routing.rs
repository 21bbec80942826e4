//! Where connections lead and what the other end sees of them.

use std::net::SocketAddr;
use std::num::NonZeroUsize;

use mesh_agent::proxy::{Listener, ProxySettings};
use mesh_agent::telemetry::{Direction, Incident, ResponseFlag};
use mesh_common::Arrival;

use super::mesh::*;

#[test]
fn a_service_is_reached_with_the_clients_own_address() {
    on_a_node(|| {
        let mut mesh = Mesh::start(settings());
        for (client, vip, server) in
            [("10.1.0.1", "10.96.0.1", "10.2.0.1"), ("fd00::1", "fd00:0:96::1", "fd00:2::1")]
        {
            let port = mesh.port(vip);
            let backend = Server::named("backend", server);
            mesh.add_service("web", &[vip], port);
            mesh.add_workload("backend", &[server], "n2", &[("web", port, backend.port)]);
            let answer = read_all(mesh.connect(client, vip)).unwrap();
            assert_eq!(answer, format!("backend {client}"));

            let told = mesh.recorder.end();
            assert_eq!(told.direction, Direction::Outbound);
            assert_eq!(told.source.as_deref(), Some("client"));
            assert_eq!(told.service.as_deref(), Some("web"));
            assert_eq!(told.destination, Some((backend.address(), Some("backend".into()))));
            assert_eq!((told.flag, told.attempts), (ResponseFlag::None, 1));
            assert_eq!(told.received, answer.len() as u64);
            mesh.recorder.closed.lock().unwrap().clear();
        }
    });
}

#[test]
fn connections_spread_over_all_endpoints() {
    on_a_node(|| {
        let mut mesh = Mesh::start(settings());
        let port = mesh.port("10.96.0.1");
        mesh.add_service("web", &["10.96.0.1"], port);
        for (name, at) in [("a", "10.2.0.1"), ("b", "10.2.0.2"), ("c", "10.2.0.3")] {
            let server = Server::named(name, at);
            mesh.add_workload(name, &[at], "n2", &[("web", port, server.port)]);
        }
        let mut answers: Vec<String> =
            (0..60).map(|_| read_all(mesh.connect("10.1.0.1", "10.96.0.1")).unwrap()).collect();
        answers.sort();
        answers.dedup();
        assert_eq!(answers, ["a 10.1.0.1", "b 10.1.0.1", "c 10.1.0.1"]);
    });
}

#[test]
fn an_endpoint_of_the_other_family_sees_the_pods_other_address() {
    on_a_node(|| {
        let mut mesh = Mesh::start(settings());
        let port = mesh.port("fd00:96::1");
        let backend = Server::named("backend", "10.2.0.1");
        mesh.add_service("web", &["fd00:96::1"], port);
        mesh.add_workload("backend", &["10.2.0.1"], "n2", &[("web", port, backend.port)]);
        let answer = read_all(mesh.connect("fd00::1", "fd00:96::1")).unwrap();
        assert_eq!(answer, "backend 10.1.0.1");
    });
}

#[test]
fn both_sides_of_a_connection_between_pods_of_the_node_are_reported() {
    on_a_node(|| {
        let mut mesh = Mesh::start(settings());
        let port = mesh.port("10.96.0.1");
        let backend = Server::named("backend", "10.1.0.2");
        mesh.add_service("web", &["10.96.0.1"], port);
        mesh.add_pod("backend", &["10.1.0.2"], &[("web", port, backend.port)]);
        let answer = read_all(mesh.connect("10.1.0.1", "10.96.0.1")).unwrap();
        let ends = mesh.recorder.ends(2);
        assert_eq!(
            ends.iter().map(|told| told.direction).collect::<Vec<_>>(),
            [Direction::Outbound, Direction::Inbound]
        );
        for told in ends {
            assert_eq!(told.source.as_deref(), Some("client"));
            assert_eq!(told.destination, Some((backend.address(), Some("backend".into()))));
            assert_eq!((told.received, told.flag), (answer.len() as u64, ResponseFlag::None));
        }
    });
}

#[test]
fn a_client_that_dials_the_listener_is_turned_away() {
    on_a_node(|| {
        let mesh = Mesh::start(settings());
        for (from, to) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
            assert!(read_all(mesh.connect(from, to)).is_err());
        }
        let incidents = mesh.recorder.incidents.lock().unwrap();
        assert_eq!(*incidents, [Incident::DirectConnection; 2]);
        assert!(mesh.recorder.closed.lock().unwrap().is_empty());
    });
}

#[test]
fn every_worker_has_a_listener_of_each_family() {
    on_a_node(|| {
        let mut mesh = Mesh::start(ProxySettings { workers: NonZeroUsize::new(2).unwrap(), ..settings() });
        let place = |known: &Listener| (known.worker(), known.arrival(), known.address().is_ipv4());
        let places: Vec<_> = mesh.proxy.listeners().iter().map(place).collect();
        let expected = [0, 1].into_iter().flat_map(|worker| {
            let arrivals = [Arrival::Steered, Arrival::Around].into_iter();
            arrivals.flat_map(move |arrival| [true, false].map(|v4| (worker, arrival, v4)))
        });
        assert_eq!(places, expected.collect::<Vec<_>>());
        let steered = mesh.proxy.listeners().iter().filter(|known| known.arrival() == Arrival::Steered);
        let ports: Vec<u16> = steered.map(|known| known.address().port()).collect();
        for (index, (client, vip)) in
            [("10.1.0.1", "10.96.0.1"), ("fd00::1", "fd00:96::1")].into_iter().cycle().take(4).enumerate()
        {
            let backend = Server::named("backend", "10.2.0.1");
            mesh.add_service("web", &[vip], ports[index]);
            mesh.add_workload("backend", &["10.2.0.1"], "n2", &[("web", ports[index], backend.port)]);
            let stream = connect(client, SocketAddr::new(address(vip), ports[index])).unwrap();
            assert_eq!(read_all(stream).unwrap(), "backend 10.1.0.1");
        }
    });
}
