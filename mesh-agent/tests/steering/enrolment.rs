//! Joining and leaving the mesh without a broken connection.

use mesh_agent::pods::Redirection;

use crate::node::{FAMILIES, Family, Node, PORT, Wiring};

fn connections_survive(wiring: Wiring) {
    let node = Node::new(wiring);
    let agent = node.agent();
    let pod = node.pod("a");
    for family in FAMILIES {
        let (mut older, mut older_inbound) =
            (node.call("a", "outside", family).unwrap(), node.call("outside", "a", family).unwrap());
        assert_eq!((older.who.as_str(), older_inbound.who.as_str()), ("outside", "a"));

        node.enrol(&agent, &pod);
        node.echo(&mut older).unwrap();
        node.echo(&mut older_inbound).unwrap();
        let (mut captured, mut captured_inbound) =
            (node.call("a", "outside", family).unwrap(), node.call("outside", "a", family).unwrap());
        assert_eq!((captured.who.as_str(), captured_inbound.who.as_str()), ("agent", "agent"));

        node.enrol(&agent, &node.known_pod("a"));
        for connection in [&mut older, &mut older_inbound, &mut captured, &mut captured_inbound] {
            node.echo(connection).unwrap();
        }
        assert_eq!(node.call("a", "outside", family).unwrap().who, "outside");
        agent.steering.withdraw(&pod.uid).unwrap();
    }
    assert!(agent.count("pass_no_socket") > 0);
}

#[test]
fn connections_survive_joining_and_leaving_on_routed_veths() {
    connections_survive(Wiring::Routed);
}

#[test]
fn connections_survive_joining_and_leaving_on_a_bridge() {
    connections_survive(Wiring::BridgeNetfilter);
}

#[test]
fn new_rules_leave_connections_alone() {
    let node = Node::new(Wiring::Routed);
    let agent = node.agent();
    let mut pod = node.pod("a");
    node.enrol(&agent, &pod);
    let mut captured = node.call("a", "outside", Family::V4).unwrap();

    pod.redirection = Redirection { exclude_outbound_ports: [PORT].into(), ..Redirection::default() };
    node.enrol(&agent, &pod);
    let mut direct = node.call("a", "outside", Family::V4).unwrap();
    assert_eq!((captured.who.as_str(), direct.who.as_str()), ("agent", "outside"));
    node.echo(&mut captured).unwrap();

    node.enrol(&agent, &node.pod("a"));
    node.echo(&mut direct).unwrap();
    node.echo(&mut captured).unwrap();
}

#[test]
fn what_the_pod_source_does_not_name_is_forgotten() {
    let node = Node::new(Wiring::Routed);
    let agent = node.agent();
    let (a, b) = (node.pod("a"), node.pod("b"));
    node.enrol(&agent, &a);
    node.enrol(&agent, &b);
    agent.steering.reconcile([&a]).unwrap();
    assert_eq!(node.call("outside", "a", Family::V6).unwrap().who, "agent");
    assert_eq!(node.call("outside", "b", Family::V6).unwrap().who, "b");
    let owned: Vec<_> =
        agent.steering.attachments().into_iter().filter_map(|attachment| attachment.pod).collect();
    assert_eq!(owned, [a.uid.to_string()]);
}
