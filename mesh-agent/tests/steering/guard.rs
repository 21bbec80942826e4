//! What reaches an enrolled pod around the ingress of the node's devices: the agent gets it all the same.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use mesh_agent::pods::FailureMode;
use mesh_agent::steering::host::{Mark, untrack};
use mesh_agent::steering::{self, AttachMode};
use mesh_lab::translation::{Masquerade, Translation, Translator, route_services};
use mesh_lab::{Namespace, OwnCgroup};

use crate::node::{Agent, CAPTURE_MARK, FAMILIES, Family, MARK_MASK, Node, PORT, Wiring};

const WIRINGS: [Wiring; 3] = [Wiring::Routed, Wiring::Bridge, Wiring::BridgeNetfilter];

const NODE_PORT: u16 = 30_080;
const SERVICE_PORT: u16 = 80;

/// A node with an enrolled pod `a` and an agent that can tell the kubelet, of which there is none.
fn guarded(wiring: Wiring, attach: AttachMode) -> (Node, Agent) {
    let node = Node::new(wiring);
    let agent = node.agent_with(attach);
    node.inside(|| untrack::install(Mark { value: CAPTURE_MARK, mask: MARK_MASK })).unwrap();
    agent.steering.set_kubelet(&BTreeSet::new(), true).unwrap();
    node.enrol(&agent, &node.pod("a"));
    (node, agent)
}

fn service_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 96, 0, 77].into(),
        Family::V6 => "fd00:96::77".parse().unwrap(),
    }
}

impl Node {
    /// Translates the NodePort and the service to pod `a`.
    fn translate(&self, by: Translator, family: Family, masquerade: Masquerade) {
        let (own, service) = (self.address("node", family), service_address(family));
        let from = vec![SocketAddr::new(own, NODE_PORT), SocketAddr::new(service, SERVICE_PORT)];
        let to = SocketAddr::new(self.address("a", family), PORT);
        let node = self.machine("node");
        Translation { by, from, to, masquerade }.install(node).unwrap();
        route_services(node, &[service], &self.pod("b").device.unwrap().name).unwrap();
    }

    /// Connects, says something and hears it again; returns who answered, and from which address the client seemed to be.
    fn converse(&self, from: &str, to: SocketAddr, what: &str) -> (String, SocketAddr, SocketAddr) {
        let mut connection = self.connect(from, to).unwrap_or_else(|error| panic!("{what}: {error}"));
        self.exchange(&mut connection, 200_000).unwrap_or_else(|error| panic!("{what}: {error}"));
        let seen = (connection.who.clone(), connection.reached, connection.seen);
        self.finish_first(connection);
        seen
    }
}

#[test]
fn what_the_node_sends_goes_to_the_agent() {
    for wiring in WIRINGS {
        let (node, agent) = guarded(wiring, AttachMode::Auto);
        for family in FAMILIES {
            let pod = SocketAddr::new(node.address("a", family), PORT);
            let (who, reached, _) = node.converse("node", pod, &format!("{wiring:?}, {family:?}"));
            assert_eq!((who.as_str(), reached), ("agent", pod), "{wiring:?}, {family:?}");
            let other = SocketAddr::new(node.address("b", family), PORT);
            assert_eq!(node.converse("node", other, "not enrolled").0, "b");
        }
        assert!(agent.count("capture_around") >= 2);
        assert!(agent.count("capture_around_established") > 0);
    }
}

fn translated(by: Translator, wiring: Wiring, attach: AttachMode) {
    for masquerade in [Masquerade::Off, Masquerade::On] {
        let (node, _agent) = guarded(wiring, attach);
        for family in FAMILIES {
            node.translate(by, family, masquerade);
            let pod = SocketAddr::new(node.address("a", family), PORT);
            let node_port = SocketAddr::new(node.address("node", family), NODE_PORT);
            let service = SocketAddr::new(service_address(family), SERVICE_PORT);
            let ways = [
                ("outside", node_port),
                ("node", node_port),
                ("node", service),
                ("b", service),
                ("b", node_port),
            ];
            for (from, to) in ways {
                let what = format!("{from} to {to}, {by:?}, {wiring:?}, masquerade {masquerade:?}");
                let (who, reached, seen) = node.converse(from, to, &what);
                assert_eq!((who.as_str(), reached), ("agent", pod), "{what}");
                if masquerade == Masquerade::Off && from != "node" {
                    assert_eq!(seen.ip(), node.address(from, family), "{what}");
                }
            }
        }
    }
}

#[test]
fn what_nftables_translate_goes_to_the_agent_routed() {
    translated(Translator::Nftables, Wiring::Routed, AttachMode::Auto);
}

#[test]
fn what_nftables_translate_goes_to_the_agent_on_a_bridge() {
    translated(Translator::Nftables, Wiring::Bridge, AttachMode::Auto);
    translated(Translator::Nftables, Wiring::BridgeNetfilter, AttachMode::Clsact);
}

#[test]
fn what_iptables_translate_goes_to_the_agent() {
    for wiring in [Wiring::Routed, Wiring::BridgeNetfilter] {
        translated(Translator::Iptables, wiring, AttachMode::Auto);
    }
}

/// Connects from the node, as a process of this group, and returns who answered.
fn call(group: &OwnCgroup, node: &Node, to: SocketAddr) -> String {
    let script = format!("exec 3<>/dev/tcp/{}/{}; read -t 5 -r who rest <&3; echo $who", to.ip(), to.port());
    group.shell(node.machine("node"), &script).unwrap()
}

#[test]
fn the_kubelet_reaches_pods_and_no_other_process_does() {
    let (node, agent) = guarded(Wiring::Routed, AttachMode::Auto);
    let [kubelet, other] = ["guard-kubelet", "guard-other"].map(|name| OwnCgroup::create(name).unwrap());
    for family in FAMILIES {
        let pod = SocketAddr::new(node.address("a", family), PORT);
        agent.steering.set_kubelet(&BTreeSet::new(), false).unwrap();
        for group in [&kubelet, &other] {
            assert_eq!(call(group, &node, pod), "a", "while the kubelet is not known, probes must pass");
        }
        agent.steering.set_kubelet(&BTreeSet::from([kubelet.number().unwrap()]), true).unwrap();
        assert_eq!(call(&kubelet, &node, pod), "a");
        assert_eq!(call(&other, &node, pod), "agent");
        // What comes from elsewhere is none of the node's processes, known or not.
        agent.steering.set_kubelet(&BTreeSet::from([other.number().unwrap()]), true).unwrap();
        assert_eq!((call(&kubelet, &node, pod), call(&other, &node, pod)), ("agent".into(), "a".into()));
    }
    assert!(agent.count("pass_kubelet") >= 4 && agent.count("pass_node_process") >= 4);
}

#[test]
fn while_the_kubelet_is_not_known_only_what_the_node_itself_sends_passes() {
    let (node, agent) = guarded(Wiring::Routed, AttachMode::Auto);
    agent.steering.set_kubelet(&BTreeSet::new(), false).unwrap();
    node.translate(Translator::Nftables, Family::V4, Masquerade::On);
    let node_port = SocketAddr::new(node.address("node", Family::V4), NODE_PORT);
    assert_eq!(
        node.converse("outside", node_port, "masqueraded").0,
        "agent",
        "the node's address is no passport"
    );
    assert_eq!(node.converse("node", node_port, "the node's own").0, "a");
}

#[test]
fn without_an_agent_pods_fail_open_or_closed_and_the_kubelet_passes() {
    let (node, mut agent) = guarded(Wiring::Routed, AttachMode::Auto);
    let kubelet = OwnCgroup::create("guard-closed").unwrap();
    agent.steering.set_kubelet(&BTreeSet::from([kubelet.number().unwrap()]), true).unwrap();
    let mut closed = node.pod("b");
    closed.failure_mode = FailureMode::Closed;
    node.enrol(&agent, &closed);
    agent.close();
    for family in FAMILIES {
        assert_eq!(node.call("node", "a", family).unwrap().who, "a");
        assert!(node.call_briefly("node", "b", family).is_err());
        let closed = SocketAddr::new(node.address("b", family), PORT);
        assert_eq!(call(&kubelet, &node, closed), "b");
    }
    assert!(agent.count("drop_fail_closed") >= 2 && agent.count("pass_fail_open") >= 2);
}

#[test]
fn connections_go_on_that_were_open_before() {
    for attach in [AttachMode::Auto, AttachMode::Clsact] {
        let node = Node::new(Wiring::Bridge);
        let agent = node.agent_with(attach);
        agent.steering.set_kubelet(&BTreeSet::new(), true).unwrap();
        let mut open: Vec<_> =
            FAMILIES.iter().map(|family| node.call("node", "a", *family).unwrap()).collect();
        node.enrol(&agent, &node.pod("a"));
        for connection in &mut open {
            assert_eq!(connection.who, "a");
            node.exchange(connection, 100_000).unwrap();
        }
        // What is captured goes on when the pod has left, what comes then is not.
        let mut captured = node.call("node", "a", Family::V4).unwrap();
        assert_eq!(captured.who, "agent");
        node.enrol(&agent, &node.known_pod("a"));
        node.exchange(&mut captured, 100_000).unwrap();
        assert_eq!(node.call("node", "a", Family::V4).unwrap().who, "a");
        for connection in &mut open {
            node.exchange(connection, 100_000).unwrap();
        }
    }
}

#[test]
fn ports_that_are_left_alone_are_so_from_everywhere() {
    let (node, agent) = guarded(Wiring::Routed, AttachMode::Auto);
    let mut pod = node.pod("a");
    pod.redirection.exclude_inbound_ports.insert(PORT);
    node.enrol(&agent, &pod);
    for family in FAMILIES {
        assert_eq!(node.call("node", "a", family).unwrap().who, "a");
    }
    assert_eq!(agent.count("capture_around"), 0);
}

#[test]
fn marks_of_others_are_no_passport() {
    let (node, agent) = guarded(Wiring::Routed, AttachMode::Auto);
    // As kube-proxy, the CNI's portmap and others mark what they translate.
    let theirs = format!("meta mark set meta mark or {:#x}", !MARK_MASK);
    node.shell(&format!(
        "nft -f - <<END\ntable inet others {{\n\
         chain prerouting {{ type filter hook prerouting priority mangle; {theirs}; }}\n\
         chain output {{ type filter hook output priority mangle; {theirs}; }}\n}}\nEND"
    ));
    for family in FAMILIES {
        node.translate(Translator::Iptables, family, Masquerade::On);
        let node_port = SocketAddr::new(node.address("node", family), NODE_PORT);
        for from in ["outside", "b", "node"] {
            let what = format!("{from}, {family:?}");
            assert_eq!(node.converse(from, node_port, &what).0, "agent", "{what}");
        }
    }
    assert!(agent.count("capture_around") >= 6);
}

#[test]
fn tcp_behind_extension_headers_does_not_reach_a_pod() {
    let (node, agent) = guarded(Wiring::Routed, AttachMode::Auto);
    for from in ["outside", "b", "node"] {
        let connect =
            |to| node.connect_behind_options(from, SocketAddr::new(node.address(to, Family::V6), PORT));
        assert!(connect("a").is_err(), "{from}");
        connect("c").unwrap_or_else(|error| panic!("{from}, not enrolled: {error}"));
    }
    assert!(agent.count("drop_hidden") >= 3);
}

/// Something with a device of its own on the node that no CNI plugin made.
struct Stranger(Namespace);

impl Stranger {
    fn on(node: &Node) -> Self {
        let stranger = Self(Namespace::create(&format!("mesh-stranger-{}", std::process::id())).unwrap());
        let path = stranger.0.path();
        node.shell(&format!(
            "ip link add stray0 type veth peer name eth0 netns {}; ip link set stray0 up; \
             ip address add 10.222.0.1/24 dev stray0; ip address add fd22::1/64 dev stray0 nodad",
            path.display()
        ));
        stranger.shell(
            "ip link set lo up; ip link set eth0 up; ip address add 10.222.0.2/24 dev eth0; \
             ip address add fd22::2/64 dev eth0 nodad; ip route add default via 10.222.0.1; \
             ip -6 route add default via fd22::1",
        );
        stranger
    }

    fn call(&self, to: SocketAddr) -> String {
        let script =
            format!("exec 3<>/dev/tcp/{}/{}; read -t 5 -r who rest <&3; echo $who", to.ip(), to.port());
        self.shell(&script).trim().to_owned()
    }

    fn shell(&self, script: &str) -> String {
        let run = || std::process::Command::new("bash").args(["-ec", script]).output().unwrap();
        let output = self.0.run(run).unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        drop(Namespace::remove(self.0.name()));
    }
}

#[test]
fn devices_that_nobody_has_attached_to_are_no_way_around() {
    let (node, mut agent) = guarded(Wiring::Routed, AttachMode::Auto);
    // Nobody notices the device of this one.
    agent.stop_watching();
    let stranger = Stranger::on(&node);
    for family in FAMILIES {
        let pod = SocketAddr::new(node.address("a", family), PORT);
        assert_eq!(stranger.call(pod), "agent", "{family:?}");
    }
    assert_eq!(agent.count("capture_around"), 2);
}

fn guards_are_taken_over_and_removed(attach: AttachMode) {
    let (node, first) = guarded(Wiring::Routed, attach);
    let former = node.guard_ids("a");
    assert_eq!((former.len(), node.guard_ids("b")), (1, vec![]), "at the devices of enrolled pods only");
    let second = node.agent_with(attach);
    drop(first);
    let taken_over = node.guard_ids("a");
    assert_eq!(taken_over.len(), 1);
    assert_ne!(taken_over, former);
    assert_eq!(node.call("node", "a", Family::V6).unwrap().who, "agent");
    let guarded = |agent: &Agent| {
        let attachments = agent.steering.attachments().into_iter();
        attachments.filter(|attachment| attachment.guarded).map(|one| one.device).collect::<Vec<_>>()
    };
    assert_eq!(guarded(&second), [node.pod("a").device.unwrap().name]);

    node.inside(|| second.steering.reconcile([&node.known_pod("b")])).unwrap();
    // The kernel lets a link's program go some time after its last handle.
    node.until(|| node.guard_ids("a").is_empty(), "the guard is gone");
    assert!(guarded(&second).is_empty());
    node.enrol(&second, &node.pod("a"));
    assert_eq!(node.guard_ids("a").len(), 1);
    drop(second);
    node.inside(|| steering::detach(&node.pin_directory())).unwrap();
    node.until(
        || node.guard_ids("a").is_empty() && node.program_ids("a").is_empty(),
        "all programs are gone",
    );
    assert_eq!(node.call("node", "a", Family::V6).unwrap().who, "a");
}

#[test]
fn guards_are_taken_over_and_removed_with_tcx_and_without() {
    guards_are_taken_over_and_removed(AttachMode::Auto);
    guards_are_taken_over_and_removed(AttachMode::Clsact);
}
