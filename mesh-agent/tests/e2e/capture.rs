//! What is steered, what is not, and what both ends see of it.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::time::Duration;

use crate::world::{SERVICE_PORT, VIPS, World, eventually, same_family, who};

fn vips() -> [IpAddr; 2] {
    VIPS.map(|vip| vip.parse().unwrap())
}

/// Every client to every server, same node and other node, routed and bridged, both families, by address.
#[test]
fn pods_reach_pods_through_their_agents_with_their_own_address() {
    let world = World::up();
    for (client, node) in [("client-r", "routed"), ("client-b", "bridged")] {
        for (server, other) in [("web-r", "routed"), ("web-b", "bridged")] {
            for family in vips() {
                let to = world.address(server, family);
                let stream = world.connect(client, to);
                let own = stream.local_addr().unwrap();
                let answer = who(&stream).unwrap();
                drop(stream);
                assert_eq!(answer.pod, server);
                assert_eq!(answer.local, to, "the original destination is where the connection arrives");
                assert_eq!(
                    answer.source.ip(),
                    same_family(world.machine(client), family),
                    "{client} to {to}"
                );

                let outbound = world.logged(node, "outbound", own);
                assert_eq!(outbound["dst.addr"], to.to_string());
                assert_eq!(outbound["src.workload"], client);
                assert_eq!(outbound["dst.workload"], server);
                assert_eq!(outbound["response_flags"], "-");
                if node != other {
                    // The other node's agent sees the connection that this node's has opened in the client's name.
                    let inbound = world.logged(other, "inbound", answer.source_of_inbound(&world, other));
                    assert_eq!(inbound["src.workload"], client);
                    assert_eq!(inbound["dst.workload"], server);
                }
            }
        }
    }
}

/// The agent of the server's node connects to the pod from the client's address, with a port of its own; what it
/// accepted is found by the destination it led to.
trait Inbound {
    fn source_of_inbound(&self, world: &World, node: &str) -> SocketAddr;
}

impl Inbound for mesh_lab::echo::Answer {
    fn source_of_inbound(&self, world: &World, node: &str) -> SocketAddr {
        let to = self.local.to_string();
        let source = self.source.ip().to_string();
        eventually(&format!("a line about {to} on {node}"), || {
            world
                .log(node)
                .iter()
                .rev()
                .filter(|line| line["direction"] == "inbound" && line["dst.addr"] == to)
                .filter_map(|line| line["src.addr"].as_str()?.parse::<SocketAddr>().ok())
                .find(|address| address.ip().to_string() == source)
        })
    }
}

#[test]
fn a_service_address_leads_to_its_endpoints_in_both_families() {
    let world = World::up();
    for vip in vips() {
        for client in ["client-r", "client-b"] {
            let report = world.requests(client, SocketAddr::new(vip, SERVICE_PORT), 60);
            assert_eq!(report.failed, 0, "{report}");
            assert_eq!(report.pods.len(), 2, "both endpoints answer: {report}");
            let own = same_family(world.machine(client), vip);
            assert!(report.sources.keys().all(|source| source.contains(&own.to_string())), "{report}");
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let world = World::up();
    for vip in vips() {
        let report = world.requests("web-r", SocketAddr::new(vip, SERVICE_PORT), 30);
        assert_eq!(report.failed, 0, "{report}");
        assert!(report.pods.contains_key("web-r"), "{report}");
    }
}

#[test]
fn a_port_the_service_does_not_have_is_refused_and_the_log_says_why() {
    let world = World::up();
    let to = SocketAddr::new(vips()[0], 81);
    // Refused before or after connect() has returned: the reset may be faster.
    assert!(world.try_ask("client-r", to).is_err());
    let line = eventually("a line about the refusal", || {
        world.log("routed").into_iter().find(|line| line["response_flags"] == "NR")
    });
    assert_eq!(line["dst.original_addr"], to.to_string());
    assert_eq!(line["src.workload"], "client-r");
    assert!(line["error"].as_str().unwrap().contains("81"), "{line}");
}

#[test]
fn what_the_mesh_does_not_know_is_passed_through_with_the_nodes_address() {
    let world = World::up();
    for family in vips() {
        let to = world.address("outside", family);
        let answer = world.ask("client-r", to);
        assert_eq!(answer.pod, "outside");
        assert_eq!(answer.source.ip(), same_family(world.machine("routed"), family));
    }
}

#[test]
fn a_caller_from_outside_is_seen_by_the_pod_and_by_its_agent() {
    let world = World::up();
    for family in vips() {
        let stream = world.connect("outside", world.address("web-b", family));
        let own = stream.local_addr().unwrap();
        let answer = who(&stream).unwrap();
        drop(stream);
        assert_eq!(answer.source.ip(), own.ip());
        let line = world.logged("bridged", "inbound", own);
        assert_eq!(line["dst.workload"], "web-b");
    }
}

#[test]
fn excluded_ports_and_ranges_pass_by() {
    let mut world = World::lab();
    world.echo("web-b", 9090);
    world.apply_usual();
    let range = format!("{}/32", same_family(world.machine("web-r"), vips()[0]));
    world.apply_pod(
        "client-r",
        true,
        &[
            ("traffic.sidecar.istio.io/excludeOutboundPorts", "9090"),
            ("traffic.sidecar.istio.io/excludeOutboundIPRanges", &range),
        ],
    );
    world.apply_pod("web-b", true, &[("traffic.sidecar.istio.io/excludeInboundPorts", "9090")]);
    world.mesh.start().unwrap();

    // By range, at the client; the same pod by its other family's address is steered.
    let stream = world.connect("client-r", world.address("web-r", vips()[0]));
    let excluded_range = stream.local_addr().unwrap();
    let answer = who(&stream).unwrap();
    drop(stream);
    // The server's own rules still hold: the connection is steered once, as an inbound one.
    let line = world.logged("routed", "inbound", excluded_range);
    assert_eq!(line["dst.workload"], "web-r");
    assert_eq!(answer.source.ip(), excluded_range.ip());
    assert!(
        !world.log("routed").iter().any(|line| {
            line["direction"] == "outbound" && line["src.addr"] == excluded_range.to_string()
        })
    );

    // By port, at both ends: no agent sees it.
    let stream =
        world.connect("client-r", SocketAddr::new(same_family(world.machine("web-b"), vips()[0]), 9090));
    let excluded_port = stream.local_addr().unwrap();
    let answer = who(&stream).unwrap();
    drop(stream);
    assert_eq!(answer.source, excluded_port, "a connection that no proxy touches keeps even its port");
    assert!(!world.was_logged("routed", excluded_port));
    assert!(!world.was_logged("bridged", excluded_port));
}

#[test]
fn udp_is_not_touched() {
    let world = World::up();
    for family in vips() {
        let server = world.machine("web-b").namespace();
        let to = SocketAddr::new(same_family(world.machine("web-b"), family), 53);
        let answerer = server.udp_socket(to).unwrap();
        let any = SocketAddr::new(same_family(world.machine("client-r"), family), 0);
        let asker = world.machine("client-r").namespace().udp_socket(any).unwrap();
        for socket in [&answerer, &asker] {
            socket.set_nonblocking(false).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        }
        asker.send_to(b"question", to).unwrap();
        let mut buffer = [0; 64];
        let (length, source) = answerer.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], source), (&b"question"[..], asker.local_addr().unwrap()));
        answerer.send_to(b"answer", source).unwrap();
        let (length, _) = asker.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"answer");
    }
}

#[test]
fn a_pod_that_is_not_enrolled_is_not_touched() {
    let world = World::up();
    for (from, to) in [("legacy-r", "legacy-b"), ("legacy-b", "legacy-r"), ("legacy-r", "outside")] {
        for family in vips() {
            let stream = world.connect(from, world.address(to, family));
            let own = stream.local_addr().unwrap();
            assert_eq!(who(&stream).unwrap().source, own, "{from} to {to}");
            drop(stream);
            assert!(!world.was_logged("routed", own));
            assert!(!world.was_logged("bridged", own));
        }
    }
}

#[test]
fn half_closed_connections_go_on_in_the_other_direction() {
    let world = World::up();
    for vip in vips() {
        let mut stream = world.connect("client-r", SocketAddr::new(vip, SERVICE_PORT));
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let sent: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut writer = stream.try_clone().unwrap();
        let data = sent.clone();
        let writing = std::thread::spawn(move || {
            writer.write_all(&data).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        writing.join().unwrap();
        assert!(sent == received, "{} bytes of {} came back", received.len(), sent.len());
    }
}

/// A pod that sends with another pod's address does not get through, neither to the mesh nor past it.
#[test]
fn a_spoofed_source_is_dropped() {
    let world = World::up();
    for (client, victim, server) in [("client-r", "web-r", "web-b"), ("client-b", "web-b", "web-r")] {
        let victim_address = same_family(world.machine(victim), vips()[0]);
        let client_machine = world.machine(client);
        let added = client_machine
            .program("ip")
            .unwrap()
            .args(["address", "add", &format!("{victim_address}/32"), "dev", "lo"])
            .output()
            .unwrap();
        assert!(added.status.success(), "{}", added.stderr);
        let node = if client == "client-r" { "routed" } else { "bridged" };
        let before = world.counted(node, "drop_spoofed");
        let to = world.address(server, victim_address);
        let attempt = client_machine
            .namespace()
            .run(move || {
                let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
                socket.bind(&SocketAddr::new(victim_address, 0).into())?;
                socket.connect_timeout(&to.into(), Duration::from_millis(1500))
            })
            .unwrap();
        assert_eq!(attempt.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        assert!(world.counted(node, "drop_spoofed") > before);
        // The pod itself goes on.
        assert_eq!(world.ask(client, world.address(server, victim_address)).pod, server);
    }
}

#[test]
fn nobody_dials_the_agent_directly() {
    let world = World::up();
    let listeners = world.machine("routed").program("ss").unwrap().args(["-Hltn"]).output().unwrap().stdout;
    let addresses: Vec<SocketAddr> =
        listeners.lines().filter_map(|line| line.split_whitespace().nth(3)?.parse().ok()).collect();
    // Of what the agent listens on, the node has its own endpoint for metrics and health, and nothing of the data plane.
    assert_eq!(addresses, [SocketAddr::from(([127, 0, 0, 1], 15020))], "{listeners}");
    // Steered connections still work.
    assert_eq!(world.requests("client-r", SocketAddr::new(vips()[0], SERVICE_PORT), 5).failed, 0);
}
