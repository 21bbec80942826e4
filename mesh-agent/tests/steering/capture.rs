//! What is steered, and what is not.

use crate::node::{FAMILIES, Node, Wiring};

fn captures_both_ways(wiring: Wiring) {
    let node = Node::new(wiring);
    let agent = node.agent();
    agent.steering.enrol(&node.pod("a")).unwrap();
    agent.steering.enrol(&node.pod("b")).unwrap();

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
        for (from, to) in [("c", "outside"), ("outside", "c")] {
            assert_eq!(node.call(from, to, family).unwrap().who, to, "{from} is not enrolled");
        }
    }
}

#[test]
fn captures_outbound_and_inbound_on_routed_veths() {
    captures_both_ways(Wiring::Routed);
}

#[test]
fn captures_outbound_and_inbound_on_a_bridge() {
    captures_both_ways(Wiring::Bridge);
}

#[test]
fn captures_outbound_and_inbound_on_a_bridge_with_netfilter() {
    captures_both_ways(Wiring::BridgeNetfilter);
}
