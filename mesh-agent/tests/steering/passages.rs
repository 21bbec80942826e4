//! The agent's side of passage: from a proposal to the records of connections, and to their end when policy changes.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_agent::config::{Change, LocalNode, Store, Workload};
use mesh_agent::passage::{self, PassageInputs, PassageProposals, Passages};
use mesh_agent::pods::LocalPods;
use mesh_agent::policy::{self, Strings};
use mesh_agent::telemetry::{
    ConnectionEnd, ConnectionObserver, ConnectionRecord, ConnectionSecurity, Direction, ResponseFlag,
    Transport,
};
use mesh_xds::proto::Any;
use mesh_xds::proto::security::{Action, Authorization, Scope};
use tokio_util::sync::CancellationToken;

use crate::node::{Agent, Connection, FAMILIES, Family, Node, PORT, QUIET_PORT, Wiring, until};

/// Keeps what it hears.
#[derive(Default)]
struct Heard {
    opened: Mutex<Vec<Arc<ConnectionRecord>>>,
    closed: Mutex<Vec<(Arc<ConnectionRecord>, ConnectionEnd)>>,
}

impl ConnectionObserver for Heard {
    fn opened(&self, record: &Arc<ConnectionRecord>) {
        self.opened.lock().unwrap().push(Arc::clone(record));
    }

    fn closed(&self, record: &Arc<ConnectionRecord>, end: &ConnectionEnd) {
        self.closed.lock().unwrap().push((Arc::clone(record), end.clone()));
    }
}

impl Heard {
    fn opened(&self, client: SocketAddr) -> Vec<Arc<ConnectionRecord>> {
        let opened = self.opened.lock().unwrap();
        opened.iter().filter(|record| record.source.address == client).cloned().collect()
    }

    fn closed(&self, client: SocketAddr) -> Vec<(Arc<ConnectionRecord>, ConnectionEnd)> {
        let closed = self.closed.lock().unwrap();
        closed.iter().filter(|(record, _)| record.source.address == client).cloned().collect()
    }
}

/// An agent without a proxy: `a` and `b` are enrolled and known to the control server.
struct World {
    store: Store,
    heard: Arc<Heard>,
    proposals: PassageProposals,
    agent: Agent,
    stop: CancellationToken,
    running: Option<JoinHandle<()>>,
    pods: Arc<ArcSwap<LocalPods>>,
}

struct Options {
    enabled: bool,
    idle_timeout: Duration,
}

const USUAL: Options = Options { enabled: true, idle_timeout: Duration::from_secs(3600) };

impl World {
    fn new(node: &Node) -> Self {
        Self::with(node, USUAL, [])
    }

    fn with(node: &Node, options: Options, changes: impl IntoIterator<Item = Change>) -> Self {
        let agent = node.agent();
        let mut store = Store::new(LocalNode {
            name: "node".into(),
            trust_domain: "cluster.local".into(),
            ..LocalNode::default()
        });
        let workloads = ["a", "b"].map(|name| Change::Workload(Arc::new(workload(node, name, &[]))));
        store.apply(workloads.into_iter().chain(changes));
        let known = ["a", "b"].map(|name| Arc::new(node.pod(name)));
        let pods = Arc::new(ArcSwap::from_pointee(LocalPods::new(known.clone())));
        agent.steering.reconcile(known.iter().map(Arc::as_ref)).unwrap();
        let heard = Arc::new(Heard::default());
        let (proposals, queue) = passage::proposals(options.enabled);
        let inputs = PassageInputs {
            steering: agent.steering.clone(),
            snapshot: store.shared(),
            pods: Arc::clone(&pods),
            observer: Arc::clone(&heard) as _,
            proposals: queue,
            idle_timeout: options.idle_timeout,
        };
        let stop = CancellationToken::new();
        let (started, wait) = mpsc::channel();
        let task = {
            let stop = stop.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let passages = Passages::new(inputs).unwrap();
                    started.send(()).unwrap();
                    passages.run(stop).await;
                });
            }
        };
        let running = node.machine("node").namespace().spawn("passages", task).unwrap();
        wait.recv().expect("passage starts");
        Self { store, heard, proposals, agent, stop, running: Some(running), pods }
    }

    /// Does what the proxy does after it has authorized a connection, and waits for the verdict.
    fn propose(&self, node: &Node, family: Family, port: u16) {
        let to = SocketAddr::new(node.address("b", family), port);
        self.proposals.propose(node.address("a", family), to);
        until("a verdict", || {
            let passages = self.agent.steering.passages();
            passages.iter().any(|(key, in_force)| key.destination == to && *in_force)
        });
    }

    fn change_policy(&mut self, action: Action, name: &str) {
        self.store.apply([authorization(action, name)]);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.running.take() {
            drop(thread.join());
        }
    }
}

fn workload(node: &Node, name: &str, policies: &[&str]) -> Workload {
    let pod = node.pod(name);
    Workload {
        uid: pod.uid,
        addresses: pod.addresses.into(),
        node: "node".into(),
        healthy: true,
        terminating: false,
        locality: Default::default(),
        own_name: None,
        load: Default::default(),
        template: Arc::new(mesh_agent::config::Template {
            namespace: pod.namespace,
            service_account: name.into(),
            trust_domain: "cluster.local".into(),
            weight: 1,
            authorization_policies: policies.iter().map(|policy| (*policy).into()).collect(),
            hostname: "".into(),
            network: "".into(),
            cluster: "".into(),
            host_network: false,
            canonical_name: name.into(),
            canonical_revision: "latest".into(),
            workload_name: name.into(),
            tunnel: mesh_agent::config::TunnelProtocol::None,
            waypoint: None,
            network_gateway: None,
            services: vec![],
            mutual_tls: mesh_agent::config::MutualTls::default(),
            redirection: mesh_agent::pods::Redirection::default(),
            failure_mode: None,
        }),
    }
}

/// A policy for the pods' namespace: one that allows has no rule, and so allows nothing.
fn authorization(action: Action, name: &str) -> Change {
    let message = Authorization {
        name: name.into(),
        namespace: "default".into(),
        scope: Scope::Namespace.into(),
        action: action.into(),
        ..Authorization::default()
    };
    let read = policy::read(&format!("default/{name}"), &Any::pack(&message), &mut Strings::default());
    Change::Policy(Arc::new(read.unwrap()))
}

#[test]
fn the_next_connection_passes_and_is_reported_by_both_sides() {
    let node = Node::new(Wiring::Bridge);
    let world = World::new(&node);
    for family in FAMILIES {
        let began = Instant::now();
        assert_eq!(node.call("a", "b", family).unwrap().who, "agent", "nothing was proposed yet");
        world.propose(&node, family, PORT);
        let mut connection = node.call("a", "b", family).unwrap();
        assert_eq!(connection.who, "b");
        let client = connection.local_address();
        until("both sides report it", || world.heard.opened(client).len() == 2);
        node.exchange(&mut connection, 1_000_000).unwrap();
        let greeting = connection.greeting;
        until("its bytes are counted while it is open", || {
            world.heard.opened(client).iter().all(|record| record.traffic.received() == 1_000_000 + greeting)
        });
        node.finish_first(connection);
        until("both sides report its end", || world.heard.closed(client).len() == 2);

        let closed = world.heard.closed(client);
        let directions: Vec<_> = closed.iter().map(|(record, _)| record.direction).collect();
        assert_eq!(directions, [Direction::Outbound, Direction::Inbound]);
        for (record, end) in &closed {
            assert_eq!((end.flag, end.detail.as_deref()), (ResponseFlag::None, None));
            assert_eq!(
                (record.transport, record.security),
                (Transport::Kernel, ConnectionSecurity::SameNode)
            );
            assert_eq!((record.traffic.sent(), record.traffic.received()), (1_000_000, 1_000_000 + greeting));
            assert_eq!(record.original_destination, SocketAddr::new(node.address("b", family), PORT));
            let principal = |peer: &mesh_agent::telemetry::Peer| peer.identity.as_ref().unwrap().principal();
            assert_eq!(principal(&record.source), "cluster.local/ns/default/sa/default");
            assert_eq!(record.source.workload.as_ref().unwrap().name(), "a");
            assert_eq!(record.destination.as_ref().unwrap().workload.as_ref().unwrap().name(), "b");
            assert!(record.opened >= began, "it was opened in this test");
        }
    }
    assert_eq!(world.heard.opened.lock().unwrap().len(), 4, "and nothing else is");
}

/// Resets of both ends.
fn ended(node: &Node, ends: [Connection; 2]) {
    for end in ends {
        assert_eq!(node.end_of(end, Duration::from_secs(5)), ErrorKind::ConnectionReset);
    }
}

fn a_change_of_policy_ends_connections(wiring: Wiring) {
    let node = Node::new(wiring);
    let mut world = World::new(&node);
    for family in FAMILIES {
        world.propose(&node, family, QUIET_PORT);
        let (client, server) = node.call_and_accept("a", "b", family);
        let address = client.local_address();
        until("it is reported", || world.heard.opened(address).len() == 2);
        world.change_policy(Action::Allow, "closed");
        ended(&node, [client, server]);
        until("its end is reported", || world.heard.closed(address).len() == 2);
        for (_, end) in world.heard.closed(address) {
            let detail = end.detail.unwrap();
            assert_eq!(end.flag, ResponseFlag::Denied);
            assert!(detail.contains("change of policy") && detail.contains("default/closed"), "{detail}");
        }
        let again = node.connect("a", SocketAddr::new(node.address("b", family), QUIET_PORT)).unwrap();
        assert_eq!(again.who, "agent", "where it will be refused");
        world.store.apply([Change::RemovePolicy("default/closed".into())]);
    }
}

#[test]
fn a_change_of_policy_ends_connections_on_routed_veths() {
    a_change_of_policy_ends_connections(Wiring::Routed);
}

#[test]
fn a_change_of_policy_ends_connections_on_a_bridge() {
    a_change_of_policy_ends_connections(Wiring::BridgeNetfilter);
}

#[test]
fn many_idle_connections_are_ended() {
    const MANY: usize = 300;
    let node = Node::new(Wiring::Routed);
    let mut world = World::new(&node);
    world.propose(&node, Family::V4, PORT);
    let connections: Vec<_> = (0..MANY).map(|_| node.call("a", "b", Family::V4).unwrap()).collect();
    until("they are reported", || world.heard.opened.lock().unwrap().len() == 2 * MANY);
    world.change_policy(Action::Allow, "closed");
    for connection in connections {
        assert_eq!(node.end_of(connection, Duration::from_secs(5)), ErrorKind::ConnectionReset);
    }
}

#[test]
fn what_may_not_pass_never_does() {
    let node = Node::new(Wiring::Routed);
    let mut world = World::new(&node);
    let [a, b, c, outside] = ["a", "b", "c", "outside"].map(|name| node.address(name, Family::V4));
    let to = SocketAddr::new(b, PORT);
    // Proposals are decided in order: what comes before one that has a verdict had its turn.
    let marker = |world: &World, port: u16| {
        let other = SocketAddr::new(a, port);
        world.proposals.propose(b, other);
        until("the last proposal is decided", || {
            world.agent.steering.passages().iter().any(|(key, _)| key.destination == other)
        });
        other
    };

    // A policy denies it: one that `b` names and nobody has sent.
    world.store.apply([Change::Workload(Arc::new(workload(&node, "b", &["default/missing"])))]);
    world.proposals.propose(a, to);
    let first = marker(&world, PORT);

    // Its way leads through a waypoint, from either kind of client, or no end is of this node.
    let waypoint = mesh_agent::config::Gateway {
        address: mesh_agent::config::GatewayAddress::Address(mesh_agent::config::NetworkAddress {
            network: "".into(),
            address: "10.255.0.1".parse().unwrap(),
        }),
        hbone_port: 15008,
    };
    let behind = workload(&node, "b", &[]).with(|shared| shared.waypoint = Some(waypoint));
    world.store.apply([Change::Workload(Arc::new(behind))]);
    world.proposals.propose(a, to);
    world.proposals.propose(c, to);
    world.proposals.propose(outside, to);
    world.proposals.propose(outside, SocketAddr::new("192.0.2.1".parse().unwrap(), PORT));
    let second = marker(&world, QUIET_PORT);

    let mut all: Vec<_> = world.agent.steering.passages().iter().map(|(key, _)| key.destination).collect();
    all.sort_unstable();
    let mut expected = [first, second];
    expected.sort_unstable();
    assert_eq!(all, expected);
    assert_eq!(node.call("a", "b", Family::V4).unwrap().who, "agent");
}

#[test]
fn a_policy_on_its_way_gets_time_to_come() {
    let node = Node::new(Wiring::Routed);
    let mut world = World::new(&node);
    world.propose(&node, Family::V4, PORT);
    let mut connection = node.call("a", "b", Family::V4).unwrap();
    let client = connection.local_address();
    until("it is reported", || !world.heard.opened(client).is_empty());
    world.store.apply([Change::Workload(Arc::new(workload(&node, "b", &["default/coming"])))]);
    until("new ones go through the agent at once", || {
        world.agent.steering.passages().iter().all(|(_, in_force)| !in_force)
    });
    node.echo(&mut connection).unwrap();
    let ended = Instant::now();
    assert_eq!(
        node.end_of(connection, Duration::from_secs(5)),
        ErrorKind::ConnectionReset,
        "it has not come"
    );
    assert!(ended.elapsed() > Duration::from_secs(1), "{:?}", ended.elapsed());
}

#[test]
fn the_next_agent_decides_again_and_reports_what_it_finds() {
    let node = Node::new(Wiring::Routed);
    let first = World::new(&node);
    first.propose(&node, Family::V4, PORT);
    first.propose(&node, Family::V6, PORT);
    let (mut four, mut six) =
        (node.call("a", "b", Family::V4).unwrap(), node.call("a", "b", Family::V6).unwrap());
    node.exchange(&mut four, 5000).unwrap();
    drop(first);

    let second = World::with(&node, USUAL, []);
    for connection in [&mut four, &mut six] {
        until("it is reported again", || second.heard.opened(connection.local_address()).len() == 2);
        node.echo(connection).unwrap();
        let record = Arc::clone(&second.heard.opened(connection.local_address())[0]);
        until("what it carries now is counted, and only that", || record.traffic.sent() == 4);
    }
    assert_eq!(node.call("a", "b", Family::V4).unwrap().who, "b", "the verdict holds");
    drop(second);

    // Policy changed while nobody was there.
    let third = World::with(&node, USUAL, [authorization(Action::Allow, "closed")]);
    for connection in [four, six] {
        assert_eq!(node.end_of(connection, Duration::from_secs(5)), ErrorKind::ConnectionReset);
    }
    assert_eq!(node.call("a", "b", Family::V4).unwrap().who, "agent");
    assert!(third.agent.steering.passages().is_empty());
}

#[test]
fn switched_off_nothing_new_passes() {
    let node = Node::new(Wiring::Routed);
    let on = World::new(&node);
    on.propose(&node, Family::V4, PORT);
    let mut passed = node.call("a", "b", Family::V4).unwrap();
    drop(on);
    let mut off = World::with(&node, Options { enabled: false, ..USUAL }, []);
    until("the verdict is suspended", || off.agent.steering.passages().iter().all(|(_, in_force)| !in_force));
    assert_eq!(node.call("a", "b", Family::V4).unwrap().who, "agent");
    node.echo(&mut passed).unwrap();
    off.change_policy(Action::Allow, "closed");
    assert_eq!(
        node.end_of(passed, Duration::from_secs(5)),
        ErrorKind::ConnectionReset,
        "policy still counts"
    );
}

#[test]
fn what_is_idle_for_too_long_is_ended() {
    let node = Node::new(Wiring::Bridge);
    let idle_timeout = Duration::from_secs(2);
    let world = World::with(&node, Options { idle_timeout, ..USUAL }, []);
    world.propose(&node, Family::V6, PORT);
    let connection = node.call("a", "b", Family::V6).unwrap();
    let client = connection.local_address();
    assert_eq!(node.end_of(connection, Duration::from_secs(6)), ErrorKind::ConnectionReset);
    until("its end is reported", || world.heard.closed(client).len() == 2);
    assert_eq!(world.heard.closed(client)[0].1.flag, ResponseFlag::StreamIdleTimeout);
    until("the kernel forgets it", || world.agent.steering.flow_reader().unwrap().all().unwrap().is_empty());
}

#[test]
fn refused_and_broken_connections_are_reported_as_such() {
    let node = Node::new(Wiring::Routed);
    let world = World::new(&node);
    world.propose(&node, Family::V4, QUIET_PORT);
    let local = SocketAddr::new(node.address("a", Family::V4), 41_000);
    let to = SocketAddr::new(node.address("b", Family::V4), QUIET_PORT);
    node.connect_from("a", local, to).unwrap_err();
    until("it is reported", || world.heard.closed(local).len() == 2);
    assert_eq!(world.heard.closed(local)[0].1.flag, ResponseFlag::UpstreamConnectionFailure);
    assert!(world.heard.opened(local).is_empty());

    for (from_client, flag) in [
        (true, ResponseFlag::DownstreamConnectionTermination),
        (false, ResponseFlag::UpstreamConnectionTermination),
    ] {
        let (client, server) = node.call_and_accept("a", "b", Family::V4);
        let address = client.local_address();
        let (breaks, other) = if from_client { (client, server) } else { (server, client) };
        breaks.reset();
        until("it is reported", || world.heard.closed(address).len() == 2);
        assert_eq!(world.heard.closed(address)[0].1.flag, flag);
        drop(other);
    }
}

#[test]
fn the_connections_of_a_pod_that_is_gone_are_over() {
    let node = Node::new(Wiring::Routed);
    let world = World::new(&node);
    world.propose(&node, Family::V4, PORT);
    let mut connection = node.call("a", "b", Family::V4).unwrap();
    let client = connection.local_address();
    until("it is reported", || world.heard.opened(client).len() == 2);
    world.pods.store(Arc::new(LocalPods::new([Arc::new(node.pod("a"))])));
    world.agent.steering.withdraw(&node.pod("b").uid).unwrap();
    until("its end is reported", || world.heard.closed(client).len() == 2);

    // Another pod gets the address before the client has noticed.
    let mut other = node.pod("b");
    other.uid = "test//Pod/default/other".into();
    node.enrol(&world.agent, &other);
    assert!(node.echo(&mut connection).is_err());
}
