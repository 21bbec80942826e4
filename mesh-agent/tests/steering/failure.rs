//! What happens without an agent.

use mesh_agent::pods::FailureMode;

use crate::node::{CLOSING_PORT, FAMILIES, Family, Node, Wiring};

#[test]
fn pods_fail_open_or_closed() {
    let node = Node::new(Wiring::Routed);
    let mut agent = node.agent();
    let (open, mut closed) = (node.pod("a"), node.pod("b"));
    closed.failure_mode = FailureMode::Closed;
    node.enrol(&agent, &open);
    node.enrol(&agent, &closed);
    agent.close();
    for family in FAMILIES {
        assert_eq!(node.call("a", "outside", family).unwrap().who, "outside");
        assert_eq!(node.call("outside", "a", family).unwrap().who, "a");
        for (from, to) in [("b", "outside"), ("outside", "b"), ("a", "b"), ("b", "a")] {
            assert!(node.call_briefly(from, to, family).is_err(), "{from} to {to}, {family:?}");
        }
    }
    assert!(agent.count("pass_fail_open") >= 4 && agent.count("drop_fail_closed") >= 8);
}

#[test]
fn a_direct_connection_can_take_the_tuple_of_a_captured_one() {
    let node = Node::new(Wiring::Routed);
    let mut agent = node.agent();
    node.enrol(&agent, &node.pod("a"));
    let to = std::net::SocketAddr::new(node.address("outside", Family::V4), CLOSING_PORT);
    let captured = node.connect("a", to).unwrap();
    let from = captured.local_address();
    assert_eq!(captured.who, "agent");
    node.finish(captured);
    agent.close();
    // The dead agent's end is still in TIME_WAIT; it must not swallow the packets of the new connection.
    let direct = node.connect_from("a", from, to).unwrap();
    assert_eq!((direct.who.as_str(), direct.seen), ("outside", from));
}
