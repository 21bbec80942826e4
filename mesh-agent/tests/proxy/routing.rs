//! Where connections lead and what the other end sees of them.

use mesh_agent::telemetry::{Direction, ResponseFlag};

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
