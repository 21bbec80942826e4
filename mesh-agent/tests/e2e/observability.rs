//! What operators see: metrics, health.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use crate::world::{SERVICE_PORT, VIPS, World, eventually};

/// Fetches a path of the agent's HTTP endpoint, from its node.
fn get(world: &World, node: &str, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let fetch = move || {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], 15020)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    world.machine(node).namespace().run(fetch).unwrap().unwrap()
}

/// The sum of a metric's values over all series with these labels.
fn sum(metrics: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let wanted: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
    metrics
        .lines()
        .filter(|line| {
            line.starts_with(&format!("{name}{{")) && wanted.iter().all(|label| line.contains(label))
        })
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

#[test]
fn metrics_carry_istios_names_and_labels_on_both_sides() {
    let world = World::up();
    let service = SocketAddr::new(VIPS[0].parse::<IpAddr>().unwrap(), SERVICE_PORT);
    let report = world.requests("client-r", service, 40);
    assert_eq!(report.failed, 0, "{report}");
    let to_b = report.pods["web-b"];

    let source = [
        ("reporter", "source"),
        ("source_workload_namespace", "shop"),
        ("source_canonical_service", "client"),
        ("destination_service", "web.shop.svc.cluster.local"),
        ("destination_service_name", "web"),
        ("request_protocol", "tcp"),
        ("response_flags", "-"),
    ];
    let destination = [("reporter", "destination"), ("destination_canonical_service", "web")];
    eventually("the client's agent counts every connection", || {
        let metrics = get(&world, "routed", "/metrics");
        let opened = sum(&metrics, "istio_tcp_connections_opened_total", &source);
        let closed = sum(&metrics, "istio_tcp_connections_closed_total", &source);
        let sent = sum(&metrics, "istio_tcp_sent_bytes_total", &source);
        let received = sum(&metrics, "istio_tcp_received_bytes_total", &source);
        (opened == 40.0 && closed == 40.0 && sent > received && received > 40.0 * 20.0).then_some(())
    });
    eventually("the server's agent counts those to its pod", || {
        let metrics = get(&world, "bridged", "/metrics");
        let opened = sum(&metrics, "istio_tcp_connections_opened_total", &destination);
        #[allow(clippy::cast_precision_loss, reason = "a handful")]
        let expected = to_b as f64;
        (opened == expected).then_some(())
    });
}

#[test]
fn an_agent_without_a_configuration_is_alive_and_not_ready() {
    let mut world = World::lab();
    // It was there once, and left the roots that agents know it by.
    world.mesh.start_control().unwrap();
    world.mesh.kill_control();
    world.mesh.launch_agent("routed").unwrap();
    eventually("the agent answers", || {
        let ask = world
            .machine("routed")
            .namespace()
            .run(|| TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], 15020))));
        ask.unwrap().is_ok().then_some(())
    });
    assert!(get(&world, "routed", "/healthz/live").starts_with("HTTP/1.1 200"));
    let not_ready = get(&world, "routed", "/healthz/ready");
    assert!(not_ready.starts_with("HTTP/1.1 503"), "{not_ready}");
    assert!(not_ready.contains("configuration"), "{not_ready}");
    // Traffic passes it by meanwhile.
    let to = world.address("web-b", [127, 0, 0, 1].into());
    assert_eq!(world.ask("client-r", to).pod, "web-b");

    world.apply_usual();
    world.mesh.start_control().unwrap();
    world.mesh.wait_for_agent("routed").unwrap();
}
