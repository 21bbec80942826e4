//! Connections that pass in the kernel: on a verdict only, counted to the byte, and ended when it is taken back.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use mesh_agent::steering::{AttachMode, FlowEvents, FlowId, PassageKey};
use mesh_common::{Address, FlowEvent, FlowEventKind, FlowKey, FlowState, Side, capacity};

use crate::node::{Agent, Connection, FAMILIES, Family, Node, PORT, QUIET_PORT, Wiring};

/// How soon a connection must be at its end: far below the 100 ms that policy may take as a whole.
const AT_ONCE: Duration = Duration::from_millis(80);

fn passage(node: &Node, from: &str, to: &str, family: Family) -> PassageKey {
    PassageKey {
        source: node.address(from, family),
        destination: SocketAddr::new(node.address(to, family), PORT),
    }
}

fn quiet_passage(node: &Node, family: Family) -> PassageKey {
    PassageKey {
        destination: SocketAddr::new(node.address("b", family), QUIET_PORT),
        ..passage(node, "a", "b", family)
    }
}

fn allow(node: &Node, agent: &Agent, key: PassageKey) {
    assert!(agent.steering.allow_passage(key, Some(&node.pod("a").uid), Some(&node.pod("b").uid)).unwrap());
}

/// An agent that knows `a` and `b` and has verdicts from the one to both ports of the other.
fn passing(node: &Node, attach: AttachMode) -> Agent {
    let agent = node.agent_with(attach);
    node.enrol(&agent, &node.pod("a"));
    node.enrol(&agent, &node.pod("b"));
    for family in FAMILIES {
        allow(node, &agent, passage(node, "a", "b", family));
        allow(node, &agent, quiet_passage(node, family));
    }
    agent
}

fn listen(node: &Node, agent: &Agent) -> FlowEvents {
    let _runtime = node.runtime.enter();
    agent.steering.flow_events().unwrap()
}

/// The next event about a client's connection.
fn event(node: &Node, events: &mut FlowEvents, client: SocketAddr) -> (FlowEventKind, FlowEvent) {
    node.runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(5), async {
            loop {
                for event in events.next(64).await.unwrap() {
                    if FlowId::new(event.key, &event.flow).client == client {
                        return (event.kind().unwrap(), event);
                    }
                }
            }
        })
        .await
        .expect("an event in time")
    })
}

fn flow_of(agent: &Agent, connection: &Connection) -> Option<(FlowId, FlowState)> {
    let all = agent.steering.flow_reader().unwrap().all().unwrap();
    let flows = all.into_iter().map(|(key, state)| (FlowId::new(key, &state), state));
    flows.into_iter().find(|(id, _)| id.client == connection.local_address())
}

fn bytes(state: &FlowState) -> (u64, u64) {
    (state.side(state.client()).bytes, state.side(state.client().other()).bytes)
}

fn connections_pass(wiring: Wiring, attach: AttachMode) {
    let node = Node::new(wiring);
    let agent = passing(&node, attach);
    let mut events = listen(&node, &agent);
    for family in FAMILIES {
        let mut connection = node.call("a", "b", family).unwrap();
        assert_eq!(connection.who, "b", "past the agent");
        assert_eq!(connection.seen, connection.local_address());
        let (kind, opened) = event(&node, &mut events, connection.local_address());
        assert_eq!(kind, FlowEventKind::Opened);
        let id = FlowId::new(opened.key, &opened.flow);
        assert_eq!(id.passage(), passage(&node, "a", "b", family));

        // Large enough for segmentation offload, with a greeting before.
        let greeting = connection.greeting;
        node.exchange(&mut connection, 3_000_000).unwrap();
        let (_, state) = flow_of(&agent, &connection).unwrap();
        assert_eq!(bytes(&state), (3_000_000, 3_000_000 + greeting));
        assert!(state.sides.iter().all(|side| side.packets > 3_000_000 / 1500), "{state:?}");

        let client = connection.local_address();
        node.finish_first(connection);
        let (kind, ended) = event(&node, &mut events, client);
        assert_eq!((kind, bytes(&ended.flow)), (FlowEventKind::Ended, (3_000_000, 3_000_000 + greeting)));
        assert!(agent.steering.flow(&id).is_none(), "the kernel has forgotten it");

        assert_eq!(node.call("b", "a", family).unwrap().who, "agent", "the other way there is no verdict");
        assert_eq!(node.call("a", "outside", family).unwrap().who, "agent");
    }
    assert!(agent.count("pass_verdict") == 2 && agent.count("pass_flow") > 0);
}

#[test]
fn connections_pass_on_a_verdict_on_routed_veths() {
    connections_pass(Wiring::Routed, AttachMode::Auto);
}

#[test]
fn connections_pass_on_a_verdict_on_a_bridge() {
    connections_pass(Wiring::BridgeNetfilter, AttachMode::Auto);
}

#[test]
fn connections_pass_on_a_verdict_without_tcx() {
    connections_pass(Wiring::Routed, AttachMode::Clsact);
}

fn revoked_connections_are_reset(wiring: Wiring) {
    let node = Node::new(wiring);
    let agent = passing(&node, AttachMode::Auto);
    for family in FAMILIES {
        // Idle: nobody sends anything.
        let (idle, served) = node.call_and_accept("a", "b", family);
        let (id, _) = flow_of(&agent, &idle).unwrap();
        agent.steering.revoke_passage(id.passage()).unwrap();
        node.inside(|| agent.steering.reset_flow(&id)).unwrap();
        assert_eq!(node.end_of(idle, AT_ONCE), ErrorKind::ConnectionReset, "the client's end");
        assert_eq!(node.end_of(served, AT_ONCE), ErrorKind::ConnectionReset, "the server's end");
        let new = node.connect("a", id.passage().destination).unwrap();
        assert_eq!(new.who, "agent", "and new ones go through the agent");

        // Busy: nothing but the verdict's end is needed.
        for sender_is_client in [true, false] {
            allow(&node, &agent, id.passage());
            let (busy, served) = node.call_and_accept("a", "b", family);
            let (sender, receiver) = if sender_is_client { (busy, served) } else { (served, busy) };
            let sending = node.send_for_ever(sender);
            let receiver = node.read_some(receiver, 1_000_000);
            agent.steering.revoke_passage(id.passage()).unwrap();
            assert_eq!(node.end_of(receiver, AT_ONCE), ErrorKind::ConnectionReset);
            let error = node.runtime.block_on(sending).unwrap();
            assert!(matches!(error, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error:?}");
        }
    }
    assert!(agent.count("reset_cut") > 0);
    assert_eq!(agent.count("drop_rewrite"), 0);
}

#[test]
fn revoked_connections_are_reset_on_routed_veths() {
    revoked_connections_are_reset(Wiring::Routed);
}

#[test]
fn revoked_connections_are_reset_on_a_bridge() {
    revoked_connections_are_reset(Wiring::BridgeNetfilter);
}

#[test]
fn the_ports_of_a_connection_that_was_ended_can_be_used_again() {
    let node = Node::new(Wiring::Routed);
    let agent = passing(&node, AttachMode::Auto);
    for family in FAMILIES {
        let ended = node.call("a", "b", family).unwrap();
        let (client, (id, _)) = (ended.local_address(), flow_of(&agent, &ended).unwrap());
        agent.steering.revoke_passage(id.passage()).unwrap();
        node.inside(|| agent.steering.reset_flow(&id)).unwrap();
        assert_eq!(node.end_of(ended, AT_ONCE), ErrorKind::ConnectionReset);
        // Nobody has removed the flow.
        assert!(agent.steering.flow(&id).is_some());
        let again = || node.connect_from("a", client, id.passage().destination);
        node.until(|| again().is_ok_and(|new| new.who == "agent"), "it is decided anew");
        allow(&node, &agent, id.passage());
        node.until(|| again().is_ok_and(|new| new.who == "b"), "and again");
    }
}

#[test]
fn one_connection_can_be_condemned() {
    let node = Node::new(Wiring::Bridge);
    let agent = passing(&node, AttachMode::Auto);
    let (condemned, _served) = node.call_and_accept("a", "b", Family::V4);
    let mut other = node.call("a", "b", Family::V4).unwrap();
    let (id, _) = flow_of(&agent, &condemned).unwrap();
    agent.steering.condemn_flow(&id).unwrap();
    node.inside(|| agent.steering.reset_flow(&id)).unwrap();
    assert_eq!(node.end_of(condemned, AT_ONCE), ErrorKind::ConnectionReset);
    node.echo(&mut other).unwrap();
    let (_client, _server) = node.call_and_accept("a", "b", Family::V4);
    assert_eq!(agent.count("pass_verdict"), 3, "the verdict holds");
}

#[test]
fn a_suspended_verdict_leaves_connections_alone() {
    let node = Node::new(Wiring::Routed);
    let agent = passing(&node, AttachMode::Auto);
    for family in FAMILIES {
        let mut passed = node.call("a", "b", family).unwrap();
        agent.steering.suspend_passage(passage(&node, "a", "b", family)).unwrap();
        assert_eq!(node.call("a", "b", family).unwrap().who, "agent");
        node.echo(&mut passed).unwrap();
        allow(&node, &agent, passage(&node, "a", "b", family));
        assert_eq!(node.call("a", "b", family).unwrap().who, "b");
        // What is steered changed: the same.
        let mut pod = node.pod("b");
        pod.redirection.exclude_inbound_ports = [9].into();
        node.enrol(&agent, &pod);
        assert_eq!(node.call("a", "b", family).unwrap().who, "agent");
        node.echo(&mut passed).unwrap();
        node.enrol(&agent, &node.pod("b"));
    }
}

#[test]
fn a_pod_that_is_gone_takes_its_verdicts_with_it() {
    let node = Node::new(Wiring::Routed);
    let agent = passing(&node, AttachMode::Auto);
    let passed = node.call("a", "b", Family::V4).unwrap();
    let (id, state) = flow_of(&agent, &passed).unwrap();
    agent.steering.withdraw(&node.pod("b").uid).unwrap();
    assert!(agent.steering.passages().is_empty());
    assert!(!agent.steering.flow_passes(&state).unwrap());

    // Another pod, at the same address.
    let mut other = node.pod("b");
    other.uid = "test//Pod/default/other".into();
    node.enrol(&agent, &other);
    assert!(
        !agent
            .steering
            .allow_passage(id.passage(), Some(&node.pod("a").uid), Some(&node.pod("b").uid))
            .unwrap()
    );
    assert_eq!(node.call("a", "b", Family::V4).unwrap().who, "agent");
}

#[test]
fn a_pod_that_leaves_the_mesh_keeps_its_connections() {
    let node = Node::new(Wiring::Routed);
    let agent = passing(&node, AttachMode::Auto);
    let mut passed = node.call("a", "b", Family::V6).unwrap();
    node.enrol(&agent, &node.known_pod("a"));
    node.echo(&mut passed).unwrap();
    let (_, state) = flow_of(&agent, &passed).unwrap();
    assert_eq!(bytes(&state).0, 4, "and they are still counted");
    assert_eq!(node.call("a", "b", Family::V6).unwrap().who, "agent", "for the server's sake");
}

#[test]
fn what_cannot_pass_is_not_allowed() {
    let node = Node::new(Wiring::Routed);
    let agent = node.agent();
    let (a, mut b) = (node.pod("a"), node.pod("b"));
    node.enrol(&agent, &a);
    let key = passage(&node, "a", "b", Family::V4);
    let allowed = || agent.steering.allow_passage(key, Some(&a.uid), Some(&b.uid)).unwrap();
    assert!(!allowed(), "not known");
    node.enrol(&agent, &node.known_pod("b"));
    assert!(!allowed(), "not enrolled");
    b.device = None;
    node.enrol(&agent, &b);
    assert!(
        !agent.steering.allow_passage(key, Some(&a.uid), Some(&b.uid)).unwrap(),
        "its device is not known"
    );
    node.enrol(&agent, &node.pod("b"));
    assert!(agent.steering.allow_passage(key, Some(&a.uid), Some(&b.uid)).unwrap());
    let stranger = passage(&node, "a", "outside", Family::V4);
    assert!(!agent.steering.allow_passage(stranger, Some(&a.uid), Some(&b.uid)).unwrap());
}

#[test]
fn without_room_for_another_connection_the_agent_takes_it() {
    let node = Node::new(Wiring::Routed);
    let agent = passing(&node, AttachMode::Auto);
    let pinned = std::fs::read_dir(node.pin_directory()).unwrap().map(|entry| entry.unwrap().path());
    let maps = pinned.into_iter().find(|path| path.join("FLOWS").exists()).unwrap();
    let map = Map::HashMap(MapData::from_pin(maps.join("FLOWS")).unwrap());
    let mut flows: HashMap<_, FlowKey, FlowState> = HashMap::try_from(map).unwrap();
    let nobody = FlowState {
        opened: 1,
        cut: 0,
        slot: 0,
        generation: 0,
        client: 0,
        shortcut: 0,
        sides: [Side::default(); 2],
    };
    for number in 0..capacity::FLOWS {
        flows.insert(FlowKey { addresses: [Address::v4(number); 2], ports: [0; 2] }, nobody, 0).unwrap();
    }
    for family in FAMILIES {
        assert_eq!(node.call("a", "b", family).unwrap().who, "agent");
    }
    assert_eq!(agent.count("passage_flows_full"), 2);
    flows.remove(&FlowKey { addresses: [Address::v4(0); 2], ports: [0; 2] }).unwrap();
    assert_eq!(node.call("a", "b", Family::V4).unwrap().who, "b");
}

#[test]
fn a_tuple_that_the_agent_uses_itself_is_not_passed() {
    let node = Node::new(Wiring::Routed);
    let agent = passing(&node, AttachMode::Auto);
    for family in FAMILIES {
        let to = passage(&node, "a", "b", family).destination;
        let local = SocketAddr::new(node.address("a", family), 42_000);
        let mut own = node.connect_as_agent(&agent, local, to).unwrap();
        assert_eq!(own.who, "b");
        assert_eq!(node.connect_from("a", local, to).unwrap().who, "agent");
        node.echo(&mut own).unwrap();
    }
    assert_eq!(agent.count("passage_tuple_taken"), 2);
}

#[test]
fn a_forged_source_does_not_pass() {
    let node = Node::new(Wiring::Routed);
    let agent = passing(&node, AttachMode::Auto);
    let before = agent.count("drop_spoofed");
    node.forge("c", node.address("a", Family::V4), node.address("b", Family::V4));
    node.until(|| agent.count("drop_spoofed") > before, "dropped");
    assert!(agent.steering.flow_reader().unwrap().all().unwrap().is_empty());
    assert_eq!(agent.count("pass_verdict"), 0);
}

#[test]
fn a_refused_and_a_broken_connection_are_told() {
    let node = Node::new(Wiring::Routed);
    let agent = passing(&node, AttachMode::Auto);
    let mut events = listen(&node, &agent);
    for family in FAMILIES {
        let closed = PassageKey {
            destination: SocketAddr::new(node.address("b", family), 9),
            ..passage(&node, "a", "b", family)
        };
        assert!(
            agent.steering.allow_passage(closed, Some(&node.pod("a").uid), Some(&node.pod("b").uid)).unwrap()
        );
        let local = SocketAddr::new(node.address("a", family), 41_000);
        let error = node.connect_from("a", local, closed.destination).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let (kind, ended) = event(&node, &mut events, local);
        assert_eq!((kind, ended.flow.is_open()), (FlowEventKind::Ended, false));

        let connection = node.call("a", "b", family).unwrap();
        let client = connection.local_address();
        assert_eq!(event(&node, &mut events, client).0, FlowEventKind::Opened);
        let (id, _) = flow_of(&agent, &connection).unwrap();
        connection.reset();
        let (kind, _) = event(&node, &mut events, client);
        assert!(matches!(kind, FlowEventKind::Ended | FlowEventKind::Broken));
        if kind == FlowEventKind::Broken {
            agent.steering.forget_flow(&id).unwrap();
        }
        assert!(agent.steering.flow(&id).is_none());
    }
}

#[test]
fn the_next_agent_finds_verdicts_and_connections() {
    let node = Node::new(Wiring::Bridge);
    let first = passing(&node, AttachMode::Auto);
    let key = passage(&node, "a", "b", Family::V4);
    let mut older = node.call("a", "b", Family::V4).unwrap();
    let suspended_key = passage(&node, "a", "b", Family::V6);
    let mut suspended = node.call("a", "b", Family::V6).unwrap();
    first.steering.suspend_passage(suspended_key).unwrap();
    drop(first);

    // Nobody is there: the last good policy holds.
    let mut meanwhile = node.call("a", "b", Family::V4).unwrap();
    assert_eq!(meanwhile.who, "b");
    let second = node.agent();
    let mut found = second.steering.passages();
    found.sort_unstable();
    found.retain(|(key, _)| key.destination.port() == PORT);
    assert_eq!(found, [(key, true), (suspended_key, false)]);
    for connection in [&mut older, &mut meanwhile, &mut suspended] {
        node.echo(connection).unwrap();
    }
    let (id, _) = flow_of(&second, &older).unwrap();
    second.steering.revoke_passage(key).unwrap();
    node.inside(|| second.steering.reset_flow(&id)).unwrap();
    assert_eq!(node.end_of(older, AT_ONCE), ErrorKind::ConnectionReset);
    assert!(node.echo(&mut meanwhile).is_err());
}

/// IPv4 packets that the node's IP stack forwards while a connection from `a` to `b` carries 20 requests.
fn forwarded(node: &Node) -> u64 {
    let count = || {
        let table = node.inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
        let values = table.lines().filter(|line| line.starts_with("Ip:")).nth(1).unwrap();
        values.split_whitespace().nth(6).unwrap().parse::<u64>().unwrap()
    };
    let before = count();
    let mut connection = node.call("a", "b", Family::V4).unwrap();
    for _ in 0..20 {
        node.echo(&mut connection).unwrap();
    }
    count() - before
}

#[test]
fn packets_that_pass_go_straight_into_the_pod_unless_somebody_shapes_them() {
    let node = Node::new(Wiring::Routed);
    let agent = passing(&node, AttachMode::Auto);
    // Little more than the handshake.
    assert!(forwarded(&node) < 10);
    agent.steering.set_shortcuts(false).unwrap();
    assert!(forwarded(&node) >= 40);
    agent.steering.set_shortcuts(true).unwrap();
    assert!(forwarded(&node) < 10);

    let device = node.pod("b").device.unwrap().name;
    // The second is what tells the agent to look.
    node.shell(&format!("tc qdisc add dev {device} root pfifo && ip link set dev {device} txqueuelen 500"));
    node.until(|| forwarded(&node) >= 40, "a queue is not passed by");
}
