use std::collections::HashMap;

use super::*;

const ENROLLED: PodFlags =
    PodFlags(PodFlags::ENROLLED.0 | PodFlags::CAPTURE_OUTBOUND.0 | PodFlags::CAPTURE_INBOUND.0);

const CLIENT: Address = Address::v4(1);
const SERVER: Address = Address::v4(2);
const NODE: Address = Address::v4(3);
const STRANGER: Address = Address::v4(4);

#[derive(Default)]
struct Model {
    pods: HashMap<Address, Pod>,
    ports: HashMap<PortRule, Action>,
    cidrs: HashMap<CidrRule, Action>,
}

impl Tables for Model {
    fn pod(&self, address: &Address) -> Option<Pod> {
        self.pods.get(address).copied()
    }
    fn is_host_address(&self, address: &Address) -> bool {
        *address == NODE
    }
    fn port_rule(&self, key: &PortRule) -> Option<Action> {
        self.ports.get(key).copied()
    }
    fn cidr_rule(&self, key: &CidrRule) -> Option<Action> {
        self.cidrs.get(key).copied()
    }
}

fn pod(id: u32, flags: PodFlags) -> Pod {
    Pod { id, flags, device: id + 10, rules: id }
}

fn model(client: PodFlags, server: PodFlags) -> Model {
    Model { pods: [(CLIENT, pod(1, client)), (SERVER, pod(2, server))].into(), ..Model::default() }
}

fn through(model: &Model, source: Address, destination: Address, device: u32, owner: u32) -> Gate {
    gate(model, &Flow { source: &source, destination: &destination, device, owner })
}

fn capture(model: &Model, source: Address, destination: Address, port: u16) -> Option<Capture> {
    match through(model, source, destination, 0, 0) {
        Gate::Candidate { source, destination: pod } => judge(model, &source, &pod, &destination, port),
        _ => None,
    }
}

#[test]
fn traffic_without_an_enrolled_end_passes() {
    let none = PodFlags(0);
    let model = model(none, none);
    assert_eq!(through(&model, CLIENT, SERVER, 11, 0), Gate::Pass(Outcome::NotEnrolled));
    assert_eq!(through(&model, STRANGER, NODE, 9, 0), Gate::Pass(Outcome::NotEnrolled));
}

#[test]
fn the_node_itself_is_never_captured() {
    let model = model(ENROLLED, ENROLLED);
    assert_eq!(through(&model, CLIENT, NODE, 11, 1), Gate::Pass(Outcome::HostAddress));
}

#[test]
fn a_source_counts_only_on_its_own_device() {
    let model = model(ENROLLED, PodFlags(0));
    let spoofed = Gate::Drop(Outcome::Spoofed);
    assert_ne!(through(&model, CLIENT, STRANGER, 11, 1), spoofed);
    assert_eq!(through(&model, CLIENT, STRANGER, 12, 0), spoofed, "another device");
    assert_eq!(through(&model, SERVER, STRANGER, 9, 0), spoofed, "not enrolled, but known to live elsewhere");
    assert_eq!(through(&model, STRANGER, SERVER, 11, 1), spoofed, "a forged stranger from an enrolled pod");
    assert_ne!(through(&model, CLIENT, STRANGER, 0, 0), spoofed, "device not known");
    let neighbour = Address::v6([0xfe80_0000_u32.to_be(), 0, 0, 1]);
    assert_ne!(through(&model, neighbour, STRANGER, 11, 1), spoofed, "link-local names no workload");
}

#[test]
fn the_client_decides_before_the_server() {
    let model = model(ENROLLED, ENROLLED);
    let direction = |from, to| capture(&model, from, to, 80).map(|capture| capture.direction);
    assert_eq!(direction(CLIENT, SERVER), Some(Direction::Outbound));
    assert_eq!(direction(CLIENT, STRANGER), Some(Direction::Outbound));
    assert_eq!(direction(STRANGER, SERVER), Some(Direction::Inbound));
}

#[test]
fn what_the_client_excludes_the_server_may_still_capture() {
    let mut model = model(ENROLLED, ENROLLED);
    model.ports.insert(PortRule::new(1, Direction::Outbound, 80), Action::PASS);
    assert_eq!(
        capture(&model, CLIENT, SERVER, 80).map(|capture| capture.direction),
        Some(Direction::Inbound)
    );
    assert_eq!(capture(&model, CLIENT, STRANGER, 80), None);
    model.ports.insert(PortRule::new(2, Direction::Inbound, 80), Action::PASS);
    assert_eq!(capture(&model, CLIENT, SERVER, 80), None);
}

#[test]
fn ports_beat_ranges_and_ranges_beat_the_default() {
    let mut model = model(ENROLLED, PodFlags(0));
    model.cidrs.insert(CidrRule::new(1, STRANGER), Action::PASS);
    assert_eq!(capture(&model, CLIENT, STRANGER, 80), None);
    model.ports.insert(PortRule::new(1, Direction::Outbound, 80), Action::CAPTURE);
    assert!(capture(&model, CLIENT, STRANGER, 80).is_some());
    assert!(capture(&model, CLIENT, SERVER, 81).is_some());
}

#[test]
fn a_local_server_that_fails_closed_is_protected_from_an_open_client() {
    let closed = ENROLLED.with(PodFlags::FAIL_CLOSED, true);
    let fails_closed = |client, server| {
        let model = model(client, server);
        capture(&model, CLIENT, SERVER, 80).map(|capture| capture.fail_closed)
    };
    assert_eq!(fails_closed(ENROLLED, ENROLLED), Some(false));
    assert_eq!(fails_closed(closed, ENROLLED), Some(true));
    assert_eq!(fails_closed(ENROLLED, closed), Some(true));
}

#[test]
fn a_pod_that_left_keeps_its_connections_but_opens_no_captured_ones() {
    let model = model(PodFlags::LEFT, PodFlags(0));
    assert!(matches!(through(&model, CLIENT, STRANGER, 11, 0), Gate::Candidate { .. }));
    assert_eq!(capture(&model, CLIENT, STRANGER, 80), None);
}
