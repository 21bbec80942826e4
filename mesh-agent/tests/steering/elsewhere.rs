//! Connections that pass with one end on the node: they are ended like those within it, also where the node translates
//! addresses on the way.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_agent::steering::{AttachMode, FlowId, PassageKey};
use mesh_lab::UPLINK;

use crate::node::{Agent, Connection, FAMILIES, Family, Node, QUIET_PORT, Wiring};

/// Long enough for a packet to be repeated.
const SOON: Duration = Duration::from_secs(5);

/// A connection that passes, by its client and its server, and which of them is the pod.
struct Passing {
    client: Connection,
    server: Connection,
    id: FlowId,
}

/// Opens a connection on a verdict, between the pod `a` and `outside`.
fn passing(node: &Node, agent: &Agent, [from, to]: [&str; 2], family: Family) -> Passing {
    let destination = SocketAddr::new(node.address(to, family), QUIET_PORT);
    let key = PassageKey { source: node.address(from, family), destination };
    let uid = |name: &str| (name == "a").then(|| node.pod("a").uid);
    assert!(agent.steering.allow_passage(key, uid(from).as_deref(), uid(to).as_deref()).unwrap());
    let (client, server) = node.call_and_accept(from, to, family);
    let all = agent.steering.flow_reader().unwrap().all().unwrap();
    let mut ids = all.into_iter().map(|(key, state)| FlowId::new(key, &state));
    let id = ids.find(|id| id.client == client.local_address()).expect("it passes");
    Passing { client, server, id }
}

/// Has a node translate what leaves it for the pods' own addresses.
fn masquerade(node: &Node) {
    for family in ["ip", "ip6"] {
        node.shell(&format!(
            "nft 'table {family} outside {{ chain postrouting {{ type nat hook postrouting priority srcnat; \
             oifname {UPLINK} masquerade; }}; }}'"
        ));
    }
}

fn revoked_connections_are_reset(wiring: Wiring, translated: bool) {
    let node = Node::new(wiring);
    let agent = node.agent();
    node.enrol(&agent, &node.pod("a"));
    if translated {
        masquerade(&node);
    }
    for (family, ends) in FAMILIES
        .into_iter()
        .flat_map(|family| [["a", "outside"], ["outside", "a"]].map(|ends| (family, ends)))
    {
        let [from, _] = ends;
        // Nobody sends anything: the pod is told at once, the other end when it sends something.
        let Passing { client, server, id } = passing(&node, &agent, ends, family);
        let (pod, other) = if from == "a" { (client, server) } else { (server, client) };
        agent.steering.revoke_passage(id.passage()).unwrap();
        node.inside(|| agent.steering.reset_flow(&id)).unwrap();
        assert_eq!(node.end_of(pod, SOON), ErrorKind::ConnectionReset, "{ends:?}");
        assert_broken(&node, other);

        // Either sends: both are told.
        for sender_is_client in [true, false] {
            let Passing { client, server, id } = passing(&node, &agent, ends, family);
            let (sender, receiver) = if sender_is_client { (client, server) } else { (server, client) };
            let sending = node.send_for_ever(sender);
            let receiver = node.read_some(receiver, 1_000_000);
            agent.steering.revoke_passage(id.passage()).unwrap();
            assert_eq!(node.end_of(receiver, SOON), ErrorKind::ConnectionReset, "{ends:?}");
            let error = node.runtime.block_on(sending).unwrap();
            assert!(
                matches!(error, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
                "{ends:?}: {error:?}"
            );
        }
    }
    assert!(agent.count("reset_cut") > 0);
    assert_eq!(agent.count("drop_rewrite"), 0);
}

/// Sends until that fails, which it must soon.
fn assert_broken(node: &Node, connection: Connection) {
    let sending = node.send_for_ever(connection);
    let error = node.runtime.block_on(async { tokio::time::timeout(SOON, sending).await });
    let error = error.expect("an end in time").unwrap();
    assert!(matches!(error, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error:?}");
}

#[test]
fn revoked_connections_with_an_end_elsewhere_are_reset_on_routed_veths() {
    revoked_connections_are_reset(Wiring::Routed, false);
}

#[test]
fn revoked_connections_with_an_end_elsewhere_are_reset_on_a_bridge() {
    revoked_connections_are_reset(Wiring::BridgeNetfilter, false);
}

#[test]
fn revoked_connections_that_the_node_translates_are_reset_on_routed_veths() {
    revoked_connections_are_reset(Wiring::Routed, true);
}

#[test]
fn revoked_connections_that_the_node_translates_are_reset_on_a_bridge() {
    revoked_connections_are_reset(Wiring::Bridge, true);
}

#[test]
fn who_is_a_pod_by_now_is_not_elsewhere() {
    let node = Node::new(Wiring::Routed);
    let agent = node.agent_with(AttachMode::Auto);
    node.enrol(&agent, &node.pod("a"));
    let [a, b] = ["a", "b"].map(|pod| node.address(pod, Family::V4));
    let key = PassageKey { source: a, destination: SocketAddr::new(b, QUIET_PORT) };
    let allow = || agent.steering.allow_passage(key, Some(&node.pod("a").uid), None).unwrap();
    assert!(allow(), "nothing is known of b");
    let mut pod = node.pod("b");
    pod.enrolled = false;
    node.enrol(&agent, &pod);
    assert!(agent.steering.passages().is_empty(), "the verdict was about somebody else");
    assert!(!allow());
    let own = PassageKey { destination: SocketAddr::new(node.address("node", Family::V4), 80), ..key };
    assert!(!agent.steering.allow_passage(own, Some(&node.pod("a").uid), None).unwrap(), "the node itself");
}
