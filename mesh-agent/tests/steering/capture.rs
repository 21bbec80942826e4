//! What is steered, and what is not.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use mesh_agent::pods::{CidrSelection, PortSelection, Redirection};
use mesh_agent::steering::{AttachMode, Explanation};

use crate::node::{CLOSING_PORT, FAMILIES, Family, Node, PORT, Wiring};

fn captures_both_ways(wiring: Wiring, attach: AttachMode) {
    let node = Node::new(wiring);
    let agent = node.agent_with(attach);
    node.enrol(&agent, &node.pod("a"));
    node.enrol(&agent, &node.pod("b"));
    node.enrol(&agent, &node.known_pod("c"));
    let mode = if attach == AttachMode::Auto { node.best_mode() } else { attach };
    let attachments = agent.steering.attachments();
    assert!(
        attachments.iter().all(|device| device.error.is_none() && device.mode == mode),
        "{attachments:?}"
    );

    for family in FAMILIES {
        for (from, to) in [("a", "outside"), ("a", "b"), ("a", "c"), ("outside", "a"), ("c", "b")] {
            let mut connection = node
                .call(from, to, family)
                .unwrap_or_else(|error| panic!("{from} to {to}, {family:?}: {error}"));
            assert_eq!(connection.who, "agent", "{from} to {to}, {family:?}");
            assert_eq!(connection.reached.ip(), node.address(to, family), "original destination");
            assert_eq!(connection.seen, connection.local_address(), "client address");
            node.echo(&mut connection).unwrap();
        }
        for (from, to) in [("c", "outside"), ("outside", "c"), ("a", "node"), ("c", "node"), ("node", "a")] {
            assert_eq!(node.call(from, to, family).unwrap().who, to, "{from} to {to}, {family:?}");
        }
    }
    assert!(agent.count("capture_outbound") >= 6 && agent.count("capture_inbound") >= 4);
    assert!(agent.count("capture_established") > 0 && agent.count("lookup_picked") > 0);
    assert!(agent.count("pass_host_address") > 0 && agent.count("pass_not_enrolled") > 0);
}

#[test]
fn captures_outbound_and_inbound_on_routed_veths() {
    captures_both_ways(Wiring::Routed, AttachMode::Auto);
}

#[test]
fn captures_outbound_and_inbound_on_a_bridge() {
    captures_both_ways(Wiring::Bridge, AttachMode::Auto);
}

#[test]
fn captures_outbound_and_inbound_on_a_bridge_with_netfilter() {
    captures_both_ways(Wiring::BridgeNetfilter, AttachMode::Auto);
}

#[test]
fn captures_outbound_and_inbound_without_tcx() {
    captures_both_ways(Wiring::Bridge, AttachMode::Clsact);
}

#[test]
fn excluded_ports_and_ranges_go_direct() {
    const OTHER: u16 = 9090;
    let node = Node::new(Wiring::Routed);
    let agent = node.agent();
    for name in ["b", "outside"] {
        node.serve(name, OTHER);
    }
    for family in FAMILIES {
        let (inside, outside) = (node.address("b", family), node.address("outside", family));
        let who = |to, port| node.connect("a", SocketAddr::new(to, port)).unwrap().who;
        let mut pod = node.pod("a");

        pod.redirection = Redirection { exclude_outbound_ports: [OTHER].into(), ..Redirection::default() };
        node.enrol(&agent, &pod);
        assert_eq!((who(outside, PORT), who(outside, OTHER)), ("agent".into(), "outside".into()));

        pod.redirection =
            Redirection { exclude_outbound_cidrs: [outside.into()].into(), ..Redirection::default() };
        node.enrol(&agent, &pod);
        assert_eq!((who(inside, PORT), who(outside, PORT)), ("agent".into(), "outside".into()));

        pod.redirection = Redirection {
            include_outbound_cidrs: CidrSelection::Only([inside.into()].into()),
            ..Redirection::default()
        };
        node.enrol(&agent, &pod);
        assert_eq!((who(inside, PORT), who(outside, PORT)), ("agent".into(), "outside".into()));
        agent.steering.withdraw(&pod.uid).unwrap();

        let mut server = node.pod("b");
        server.redirection = Redirection {
            include_inbound_ports: PortSelection::Only([PORT].into()),
            ..Redirection::default()
        };
        node.enrol(&agent, &server);
        assert_eq!((who(inside, PORT), who(inside, OTHER)), ("agent".into(), "b".into()));
        let explain = |port| agent.steering.explain(node.address("a", family), SocketAddr::new(inside, port));
        assert_eq!(explain(PORT), Explanation::Captured { outbound: false, fail_closed: false });
        assert_eq!(explain(OTHER), Explanation::Passed { outcome: "pass_excluded" });
        agent.steering.withdraw(&server.uid).unwrap();
    }
    assert!(agent.count("pass_excluded") >= 8);
}

#[test]
fn udp_is_untouched() {
    let node = Node::new(Wiring::Bridge);
    let agent = node.agent();
    node.enrol(&agent, &node.pod("a"));
    node.enrol(&agent, &node.pod("b"));
    for family in FAMILIES {
        for to in ["b", "outside"] {
            let socket = |name: &str, port| -> UdpSocket {
                let address = SocketAddr::new(node.address(name, family), port);
                let socket = node.machine(name).namespace().udp_socket(address).unwrap();
                socket.set_nonblocking(false).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                socket
            };
            let (client, server) = (socket("a", 0), socket(to, 53));
            client.send_to(b"question", server.local_addr().unwrap()).unwrap();
            let mut question = [0; 16];
            let (length, from) = server.recv_from(&mut question).unwrap();
            assert_eq!((&question[..length], from), (b"question".as_slice(), client.local_addr().unwrap()));
            server.send_to(b"answer", from).unwrap();
            let (_, from) = client.recv_from(&mut question).unwrap();
            assert_eq!(from, server.local_addr().unwrap());
        }
    }
    assert!(agent.count("pass_not_tcp") >= 8);
}

#[test]
fn a_connection_under_syn_flood_protection_is_captured() {
    let node = Node::new(Wiring::Routed);
    // 2: always send cookies.
    node.inside(|| std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2")).unwrap();
    let agent = node.agent();
    node.enrol(&agent, &node.pod("a"));
    for family in FAMILIES {
        let mut connection = node.call("a", "outside", family).unwrap();
        assert_eq!(connection.who, "agent");
        node.echo(&mut connection).unwrap();
    }
    assert!(agent.count("capture_cookie") >= 2);
}

#[test]
fn a_tuple_in_time_wait_is_used_again() {
    let node = Node::new(Wiring::Routed);
    let agent = node.agent();
    node.enrol(&agent, &node.pod("a"));
    for family in FAMILIES {
        let to = SocketAddr::new(node.address("outside", family), CLOSING_PORT);
        // The other end closes first, so its end of the tuple is in TIME_WAIT, and the client's port is free.
        let first = node.connect("a", to).unwrap();
        let from = first.local_address();
        node.finish(first);
        let second = node.connect_from("a", from, to).unwrap();
        assert_eq!((second.who.as_str(), second.seen), ("agent", from));
    }
}

#[test]
fn a_forged_source_is_dropped() {
    let node = Node::new(Wiring::Routed);
    let agent = node.agent();
    node.enrol(&agent, &node.pod("a"));
    node.enrol(&agent, &node.known_pod("c"));

    // As somebody else: an enrolled pod, one that is only known, and a stranger.
    for (forger, victim) in [("a", "c"), ("outside", "a"), ("outside", "c"), ("c", "a")] {
        let before = agent.count("drop_spoofed");
        node.forge(forger, node.address(victim, Family::V4), node.address("b", Family::V4));
        node.until(|| agent.count("drop_spoofed") > before, &format!("{forger} as {victim}"));
    }
    let before = agent.count("drop_spoofed");
    node.forge("a", "192.0.2.1".parse().unwrap(), node.address("b", Family::V4));
    node.until(|| agent.count("drop_spoofed") > before, "a as a stranger");
    assert_eq!(node.call("a", "b", Family::V4).unwrap().who, "agent");
}
