//! Balancing at connect time: the kernel's side, with real processes in real cgroups.
//!
//! The service has the address of `outside`, where its connections end up when nothing is done to them.

mod client;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use client::{Found, How, connect};
use mesh_agent::pods::{LocalPod, Redirection};
use mesh_agent::steering::{self, PodCgroup};
use mesh_common::{Address, LocalEndpoint, LocalEndpoints, MAX_LOCAL_ENDPOINTS, ServicePort};

use crate::node::{Agent, FAMILIES, Family, Node, PORT, Wiring};

/// A port of the service that nothing listens on.
const SERVICE_PORT: u16 = 80;

struct Service<'a> {
    node: &'a Node,
}

impl Service<'_> {
    fn address(&self, family: Family) -> SocketAddr {
        SocketAddr::new(self.node.address("outside", family), PORT)
    }

    fn endpoint(&self, pod: &str, family: Family) -> SocketAddr {
        SocketAddr::new(self.node.address(pod, family), PORT)
    }

    /// Tells the kernel of endpoints with their weights, and of the weight of all.
    fn set(&self, agent: &Agent, endpoints: &[(&str, u32)], total: u32) {
        let services = FAMILIES.map(|family| {
            let mut value = LocalEndpoints {
                total,
                count: endpoints.len().try_into().unwrap(),
                endpoints: [LocalEndpoint::NONE; MAX_LOCAL_ENDPOINTS],
            };
            let mut until = 0;
            for (place, (pod, weight)) in value.endpoints.iter_mut().zip(endpoints) {
                until += weight;
                let address = self.endpoint(pod, family);
                *place =
                    LocalEndpoint { address: address.ip().into(), until, port: address.port(), reserved: 0 };
            }
            (ServicePort::new(Address::from(self.address(family).ip()), PORT), value)
        });
        agent.steering.set_local_endpoints(BTreeMap::from(services)).unwrap();
    }

    fn connect(&self, from: &str, family: Family, how: How) -> Found {
        connect(self.node.machine(from), self.address(family), how, 1).remove(0)
    }

    /// Asserts that a connection reached the pod, and that its client does not know.
    fn reaches(&self, agent: &Agent, pod: &str, family: Family, how: How) {
        let found = self.connect("a", family, how);
        let (service, endpoint) = (self.address(family), self.endpoint(pod, family));
        assert_eq!((found.who.as_str(), found.reached), ("agent", endpoint), "{how:?}");
        assert_eq!(canonical(found.peer), service, "{how:?}");
        assert_eq!(
            agent.steering.opened_to().service(canonical(found.local), endpoint),
            Some(service),
            "{how:?}"
        );
    }

    /// Asserts that a connection was left alone.
    fn passes(&self, from: &str, family: Family, how: How) {
        let found = self.connect(from, family, how);
        assert_eq!((found.reached, found.peer), (self.address(family), self.address(family)), "{how:?}");
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn cgroup(node: &Node, pod: &str) -> PodCgroup {
    let machine = node.machine(pod);
    let path = machine.cgroup().expect("the machine has cgroup2");
    PodCgroup::at(path, machine.address().unwrap()).unwrap()
}

/// Enrols `a` and `b`, and has both balanced.
fn balanced(node: &Node) -> Agent {
    let agent = node.agent();
    balance(node, &agent);
    agent
}

fn balance(node: &Node, agent: &Agent) {
    for name in ["a", "b"] {
        node.enrol(agent, &node.pod(name));
    }
    let errors = agent.steering.set_balanced_cgroups(&[cgroup(node, "a"), cgroup(node, "b")]);
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn a_connection_reaches_an_endpoint_of_the_node_and_its_client_sees_the_service() {
    let node = Node::new(Wiring::Routed);
    let agent = balanced(&node);
    let service = Service { node: &node };
    service.set(&agent, &[("b", 1)], 1);
    for family in FAMILIES {
        for how in [How::Plain, How::NonBlocking, How::BoundAddress, How::Multipath] {
            service.reaches(&agent, "b", family, how);
        }
    }
    service.reaches(&agent, "b", Family::V4, How::Mapped);
    assert_eq!(agent.count("connect_same_node"), 9);
}

#[test]
fn a_connection_that_draws_an_endpoint_elsewhere_is_left_to_the_agent() {
    const TIMES: usize = 400;
    let node = Node::new(Wiring::Routed);
    let agent = balanced(&node);
    let service = Service { node: &node };
    service.set(&agent, &[("b", 3)], 10);
    for family in FAMILIES {
        let found = connect(node.machine("a"), service.address(family), How::Plain, TIMES);
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            found.iter().partition(|found| found.reached == service.endpoint("b", family));
        // 120 of 400, and five standard deviations of 9.
        assert!(here.len().abs_diff(TIMES * 3 / 10) < 46, "{} of {TIMES}", here.len());
        assert!(elsewhere.iter().all(|found| found.reached == service.address(family)));
        assert!(found.iter().all(|found| found.peer == service.address(family)));
        let opened_to = agent.steering.opened_to();
        assert!(
            elsewhere.iter().all(|found| opened_to.service(found.local, found.reached) == Some(found.peer))
        );
    }
}

#[test]
fn an_endpoint_that_is_gone_is_never_chosen_again() {
    let node = Node::new(Wiring::Routed);
    let agent = balanced(&node);
    let service = Service { node: &node };
    service.set(&agent, &[("b", 1)], 1);
    service.reaches(&agent, "b", Family::V4, How::Plain);
    // The pod leaves the mesh before the table says so.
    node.enrol(&agent, &node.known_pod("b"));
    FAMILIES.into_iter().for_each(|family| service.passes("a", family, How::Plain));
    agent.steering.withdraw(&node.pod("b").uid).unwrap();
    FAMILIES.into_iter().for_each(|family| service.passes("a", family, How::Plain));
    // And the other way round.
    node.enrol(&agent, &node.pod("b"));
    service.reaches(&agent, "b", Family::V6, How::Plain);
    agent.steering.set_local_endpoints(BTreeMap::new()).unwrap();
    FAMILIES.into_iter().for_each(|family| service.passes("a", family, How::Plain));
}

#[test]
fn what_the_kernel_must_not_choose_is_left_alone() {
    let node = Node::new(Wiring::Routed);
    let agent = balanced(&node);
    let service = Service { node: &node };
    service.set(&agent, &[("b", 1)], 1);
    for family in FAMILIES {
        // Bound to a port, it may have a connection to that endpoint already.
        service.passes("a", family, How::BoundPort);
        // The endpoint itself: its own stack would answer.
        service.passes("b", family, How::Plain);
        // A pod that is none of the balanced, and one of the node's own processes.
        service.passes("c", family, How::Plain);
        service.passes("node", family, How::Plain);
        // Another port of the same address.
        let other = SocketAddr::new(service.address(family).ip(), crate::node::CLOSING_PORT);
        assert_eq!(node.connect("a", other).unwrap().reached, other);
    }
    assert!(agent.count("connect_left_alone") >= 2);
    assert_eq!(agent.count("connect_same_node"), 0);
}

#[test]
fn the_rules_of_the_client_are_kept() {
    let node = Node::new(Wiring::Routed);
    let agent = balanced(&node);
    let service = Service { node: &node };
    service.set(&agent, &[("b", 1)], 1);
    let excluding = |address: IpAddr| -> LocalPod {
        let redirection =
            Redirection { exclude_outbound_cidrs: [address.into()].into(), ..Redirection::default() };
        LocalPod { redirection, ..node.pod("a") }
    };
    for family in FAMILIES {
        // The service is not of the mesh: nobody chooses for it.
        node.enrol(&agent, &excluding(service.address(family).ip()));
        service.passes("a", family, How::Plain);
        assert_eq!(service.connect("a", family, How::Plain).who, "outside");
        // The endpoint is not: the service is, and the agent knows what to do.
        node.enrol(&agent, &excluding(service.endpoint("b", family).ip()));
        service.passes("a", family, How::Plain);
        assert_eq!(service.connect("a", family, How::Plain).who, "agent");
        // A client that left.
        node.enrol(&agent, &node.known_pod("a"));
        assert_eq!(service.connect("a", family, How::Plain).who, "outside");
        node.enrol(&agent, &node.pod("a"));
        service.reaches(&agent, "b", family, How::Plain);
    }
}

#[test]
fn a_socket_that_is_connected_again_is_what_it_was_connected_to_last() {
    let node = Node::new(Wiring::Routed);
    let agent = balanced(&node);
    let service = Service { node: &node };
    service.set(&agent, &[("b", 1)], 1);
    for family in FAMILIES {
        // Nobody answers at the port of the first.
        let closed = SocketAddr::new(node.address("node", family), SERVICE_PORT);
        service.reaches(&agent, "b", family, How::Again(closed));
        // A connection to the endpoint itself is one to the endpoint.
        let direct = connect(node.machine("a"), service.endpoint("b", family), How::Plain, 1).remove(0);
        assert_eq!(direct.peer, service.endpoint("b", family));
        assert_eq!(agent.steering.opened_to().service(direct.local, direct.reached), None);
    }
}

#[test]
fn without_an_agent_the_kernel_does_not_choose() {
    let node = Node::new(Wiring::Routed);
    let mut agent = balanced(&node);
    let service = Service { node: &node };
    service.set(&agent, &[("b", 1)], 1);
    agent.close();
    for family in FAMILIES {
        let found = service.connect("a", family, How::Plain);
        assert_eq!((found.who.as_str(), found.peer), ("outside", service.address(family)));
    }
}

#[test]
fn the_next_agent_goes_on_and_the_last_leaves_nothing() {
    let node = Node::new(Wiring::Routed);
    let service = Service { node: &node };
    let links = |node: &Node| {
        let folders = std::fs::read_dir(node.pin_directory().join("cgroups")).unwrap().flatten();
        let mut names: Vec<_> = folders
            .flat_map(|folder| std::fs::read_dir(folder.path()).unwrap().flatten())
            .map(|pin| pin.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let of_two: Vec<_> = ["connect4", "connect6", "getpeername4", "getpeername6", "opening"]
        .into_iter()
        .flat_map(|name| [name; 2])
        .collect();
    let first = balanced(&node);
    service.set(&first, &[("b", 1)], 1);
    assert_eq!(links(&node), of_two);
    drop(first);

    // What was left works before it is taken over: a listener is all it takes.
    let second = node.agent();
    service.reaches(&second, "b", Family::V4, How::Plain);
    balance(&node, &second);
    assert_eq!(links(&node), of_two);
    FAMILIES.into_iter().for_each(|family| service.reaches(&second, "b", family, How::Plain));

    // A pod is gone, and a cgroup with it.
    assert!(second.steering.set_balanced_cgroups(&[cgroup(&node, "b")]).is_empty());
    assert_eq!(links(&node).len(), 5);
    service.passes("a", Family::V4, How::Plain);
    balance(&node, &second);

    drop(second);
    steering::detach(&node.pin_directory()).unwrap();
    assert!(!node.pin_directory().exists());
    for family in FAMILIES {
        assert_eq!(service.connect("a", family, How::Plain).who, "outside");
    }
}

#[test]
fn nodes_of_one_kernel_with_the_same_addresses_do_not_disturb_each_other() {
    let (one, other) = (Node::new(Wiring::Routed), Node::new(Wiring::Routed));
    let (agent, other_agent) = (balanced(&one), balanced(&other));
    let (service, same) = (Service { node: &one }, Service { node: &other });
    assert_eq!(service.address(Family::V4), same.address(Family::V4));
    service.set(&agent, &[("b", 1)], 1);
    for family in FAMILIES {
        service.reaches(&agent, "b", family, How::Plain);
        same.passes("a", family, How::Plain);
    }
    assert_eq!(other_agent.count("connect_same_node"), 0);
    drop(agent);
    steering::detach(&one.pin_directory()).unwrap();
    same.set(&other_agent, &[("b", 1)], 1);
    same.reaches(&other_agent, "b", Family::V4, How::Plain);
}
