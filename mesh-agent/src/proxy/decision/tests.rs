use std::time::Instant;

use super::super::fixtures::{at, pod, pods, service, snapshot, workload};
use super::*;
use crate::config::{BalanceMode, RoutingScope};
use crate::telemetry::ResponseFlag;

/// `client` and `local` are enrolled pods of this node, `plain` is not enrolled, `remote` is on another node and
/// `host` shares its node's address. `web` has them all as endpoints, `empty` none.
struct Mesh {
    snapshot: Arc<Snapshot>,
    pods: LocalPods,
}

fn mesh() -> Mesh {
    let client = workload("client", &["10.1.0.1", "fd00::1"], "n1", &[]);
    let local = workload("local", &["10.1.0.2", "fd00::2"], "n1", &["web"]);
    let plain = workload("plain", &["10.1.0.3"], "n1", &["web"]);
    let remote = workload("remote", &["10.2.0.1"], "n2", &["web"]);
    let mut host = workload("host", &["192.0.2.2"], "n2", &["web"]);
    host.host_network = true;
    let machine = workload("machine", &["198.51.100.1"], "", &["web"]);
    let pods = pods([pod(&client, true), pod(&local, true), pod(&plain, false)]);
    let services = [service("web", &["10.96.0.1", "fd00:96::1"]), service("empty", &["10.96.0.2"])];
    Mesh { snapshot: snapshot(services, [client, local, plain, remote, host, machine]), pods }
}

impl Mesh {
    fn decide(&self, client: &str, destination: &str) -> Decision {
        decide(&self.snapshot, &self.pods, at(client), at(destination))
    }

    fn single(&self, client: &str, destination: &str) -> Upstream {
        match self.decide(client, destination).outcome {
            Ok(Target::Single(upstream)) => upstream,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(&self, client: &str, destination: &str) -> Refusal {
        self.decide(client, destination).outcome.unwrap_err()
    }

    fn explain(&self, client: &str, destination: &str) -> Explanation {
        Explanation::new(&self.snapshot, &self.pods, at(client), at(destination), Instant::now())
    }
}

fn preserved(text: &str) -> SourceAddress {
    SourceAddress::Preserved(text.parse().unwrap())
}

#[test]
fn a_service_address_leads_to_its_endpoints() {
    let decision = mesh().decide("10.1.0.1:40000", "10.96.0.1:80");
    assert_eq!(decision.direction, Direction::Outbound);
    assert_eq!(decision.source.unwrap().name(), "client");
    assert_eq!(decision.service.unwrap().name.as_ref(), "web");
    assert!(matches!(decision.outcome, Ok(Target::Service { port: 80, .. })));
}

#[test]
fn every_endpoint_is_reached_in_its_own_way() {
    let explanation = mesh().explain("10.1.0.1:40000", "10.96.0.1:80");
    let ways: Vec<_> = explanation.tiers[0]
        .iter()
        .map(|known| (known.address.to_string(), known.path, known.source_address, known.server_side))
        .collect();
    let node = SourceAddress::Node;
    let client = preserved("10.1.0.1");
    assert_eq!(
        ways,
        [
            ("192.0.2.2:8080".into(), Path::Remote, node(NotPreserved::HostNetwork), false),
            ("10.1.0.2:8080".into(), Path::SameNode, client, true),
            ("198.51.100.1:8080".into(), Path::Remote, node(NotPreserved::OutsideTheNodes), false),
            ("10.1.0.3:8080".into(), Path::SameNode, client, false),
            ("10.2.0.1:8080".into(), Path::Remote, client, false),
        ]
    );
}

#[test]
fn endpoints_are_reached_over_the_clients_family_where_they_can_be() {
    let explanation = mesh().explain("[fd00::1]:40000", "[fd00:96::1]:80");
    let way = |name: &str| {
        let known =
            explanation.tiers[0].iter().find(|known| known.workload.as_ref().unwrap().ends_with(name));
        known.map(|known| (known.address.to_string(), known.source_address)).unwrap()
    };
    assert_eq!(way("local"), ("[fd00::2]:8080".into(), preserved("fd00::1")));
    // The pod's own address of the other family stands in.
    assert_eq!(way("remote"), ("10.2.0.1:8080".into(), preserved("10.1.0.1")));
}

#[test]
fn an_unknown_port_of_a_service_is_refused() {
    let refusal = mesh().refusal("10.1.0.1:40000", "10.96.0.1:81");
    assert_eq!(refusal.flag(), ResponseFlag::NoRoute);
    assert_eq!(refusal.to_string(), "service shop/web has no port 81; it has [80]");
}

#[test]
fn a_service_without_endpoints_is_refused() {
    let refusal = mesh().refusal("10.1.0.1:40000", "10.96.0.2:80");
    assert_eq!(refusal.flag(), ResponseFlag::NoHealthyUpstream);
    assert!(refusal.to_string().ends_with("has no endpoint for port 80: 0 known"), "{refusal}");
}

#[test]
fn a_refusal_says_what_kept_each_endpoint_from_being_chosen() {
    let client = workload("client", &["10.1.0.1"], "n1", &[]);
    let pods = pods([pod(&client, true)]);
    let refusal = |web: Service, endpoint: Workload| {
        let mesh = snapshot([web], [client.clone(), endpoint]);
        decide(&mesh, &pods, at("10.1.0.1:1"), at("10.96.0.1:80")).outcome.unwrap_err().to_string()
    };
    let far = || workload("far", &["10.2.0.1"], "n2", &["web"]);
    let web = || service("web", &["10.96.0.1"]);
    let mut local = web();
    local.load_balancing.mode = BalanceMode::Strict;
    local.load_balancing.preference = vec![RoutingScope::Node];
    let said = refusal(local.clone(), far());
    assert!(said.ends_with("1 known, 1 ready, none of them on this node, and the service takes no other (internalTrafficPolicy: Local)"), "{said}");
    local.load_balancing.preference = vec![RoutingScope::Network, RoutingScope::Zone, RoutingScope::Node];
    let said = refusal(local, far());
    assert!(
        said.ends_with("none of them in the client's network, zone, node, and the service takes no other"),
        "{said}"
    );
    let said = refusal(web(), Workload { healthy: false, ..far() });
    assert!(said.ends_with("1 known, none of them ready"), "{said}");
    let mut other_port = far();
    other_port.services[0].1[0].service_port = 443;
    let said = refusal(web(), other_port);
    assert!(said.ends_with("1 known, 1 ready, none of them reachable with that port"), "{said}");
}

#[test]
fn endpoints_that_are_ending_serve_where_nothing_ready_is_left() {
    let client = workload("client", &["10.1.0.1"], "n1", &[]);
    let pods = pods([pod(&client, true)]);
    let ending = |name: &str, address: &str, node: &str| Workload {
        healthy: false,
        terminating: true,
        ..workload(name, &[address], node, &["web"])
    };
    let candidates = |web: Service, endpoints: Vec<Workload>| {
        let mesh = snapshot([web], endpoints.into_iter().chain([client.clone()]));
        let explanation =
            Explanation::new(&mesh, &pods, at("10.1.0.1:1"), at("10.96.0.1:80"), Instant::now());
        let names = explanation.tiers.iter().flatten().map(|candidate| candidate.workload.clone().unwrap());
        names.map(|uid| uid.rsplit('/').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let web = || service("web", &["10.96.0.1"]);
    let here = || ending("here", "10.1.0.2", "n1");
    let there = || ending("there", "10.2.0.2", "n2");
    let ready = || workload("ready", &["10.2.0.3"], "n2", &["web"]);
    let gone = || Workload { terminating: false, ..ending("gone", "10.2.0.4", "n2") };
    assert_eq!(candidates(web(), vec![here(), there(), gone()]), ["here", "there"]);
    assert_eq!(candidates(web(), vec![here(), there(), ready()]), ["ready"]);
    // With a strict preference only those that it allows: ready ones elsewhere do not count.
    let mut local = web();
    local.load_balancing.mode = BalanceMode::Strict;
    local.load_balancing.preference = vec![RoutingScope::Node];
    assert_eq!(candidates(local, vec![here(), there(), ready()]), ["here"]);
}

#[test]
fn endpoints_that_cannot_be_chosen_are_named() {
    let mut web = service("web", &["10.96.0.1"]);
    web.load_balancing.mode = BalanceMode::Strict;
    web.load_balancing.preference = vec![RoutingScope::Node];
    let client = workload("client", &["10.1.0.1"], "n1", &[]);
    let mut unready = workload("unready", &["10.1.0.2"], "n1", &["web"]);
    unready.healthy = false;
    let mut foreign = workload("foreign", &["10.1.0.3"], "n1", &["web"]);
    foreign.network = "elsewhere".into();
    let mut other_port = workload("other-port", &["10.1.0.4"], "n1", &["web"]);
    other_port.services[0].1[0].service_port = 443;
    let mut nameless = workload("nameless", &[], "n1", &["web"]);
    nameless.hostname = "db.example".into();
    let far = workload("far", &["10.2.0.1"], "n2", &["web"]);
    let pods = pods([pod(&client, true)]);
    let snapshot = snapshot([web], [client, unready, foreign, other_port, nameless, far]);
    let explanation =
        Explanation::new(&snapshot, &pods, at("10.1.0.1:1"), at("10.96.0.1:80"), Instant::now());
    assert!(matches!(explanation.refusal, Some(Refusal::NoEndpoint { known: 5, .. })));
    assert_eq!(explanation.flag, ResponseFlag::NoHealthyUpstream);
    let because = |name: &str| {
        explanation
            .set_aside
            .iter()
            .find(|aside| aside.workload.ends_with(&format!("/{name}")))
            .unwrap()
            .because
    };
    assert_eq!(because("unready"), Because::NotReady);
    assert_eq!(because("foreign"), Because::Unusable(Unusable::OtherNetwork));
    assert_eq!(because("other-port"), Because::Unusable(Unusable::NoPort));
    assert_eq!(because("nameless"), Because::Unusable(Unusable::NoAddress));
    assert_eq!(because("far"), Because::TooFar);
    serde_json::to_string(&explanation).unwrap();
}

#[test]
fn a_workload_address_leads_to_that_workload() {
    let mesh = mesh();
    let remote = mesh.single("10.1.0.1:40000", "10.2.0.1:9000");
    assert_eq!(remote.address, at("10.2.0.1:9000"));
    assert_eq!(remote.workload.unwrap().name(), "remote");
    assert_eq!(remote.source, preserved("10.1.0.1"));
    assert_eq!((remote.path, remote.server_side), (Path::Remote, None));

    let local = mesh.single("10.1.0.1:40000", "10.1.0.2:9000");
    assert_eq!(local.path, Path::SameNode);
    assert_eq!(local.server_side.unwrap().name.as_ref(), "local");
}

#[test]
fn a_port_that_its_pod_excludes_is_not_ours_on_the_servers_side() {
    let mut mesh = mesh();
    let mut local = LocalPod::clone(mesh.pods.by_uid("c//Pod/shop/local").unwrap());
    local.redirection.exclude_inbound_ports.insert(9000);
    mesh.pods = LocalPods::new(mesh.pods.iter().cloned().chain([Arc::new(local)]));
    assert!(mesh.single("10.1.0.1:40000", "10.1.0.2:9000").server_side.is_none());
    assert!(mesh.single("10.1.0.1:40000", "10.1.0.2:9001").server_side.is_some());
}

#[test]
fn what_the_mesh_does_not_know_is_passed_through() {
    let upstream = mesh().single("10.1.0.1:40000", "203.0.113.1:443");
    assert_eq!(upstream.address, at("203.0.113.1:443"));
    assert_eq!(upstream.path, Path::Passthrough);
    assert_eq!(upstream.source, SourceAddress::Node(NotPreserved::UnknownDestination));
}

#[test]
fn a_pod_that_calls_itself_sees_the_node() {
    let mesh = mesh();
    for itself in ["10.1.0.1:80", "[fd00::1]:80"] {
        assert_eq!(
            mesh.single("10.1.0.1:40000", itself).source,
            SourceAddress::Node(NotPreserved::TheClientItself)
        );
    }
}

#[test]
fn connections_to_a_pod_keep_their_source_whoever_that_is() {
    let mesh = mesh();
    let decision = mesh.decide("10.2.0.1:40000", "10.1.0.2:80");
    assert_eq!(decision.direction, Direction::Inbound);
    assert_eq!(decision.source.unwrap().name(), "remote");
    assert_eq!(mesh.single("10.2.0.1:40000", "10.1.0.2:80").source, preserved("10.2.0.1"));
    assert_eq!(mesh.single("203.0.113.9:40000", "10.1.0.2:80").source, preserved("203.0.113.9"));
    assert!(mesh.decide("203.0.113.9:40000", "10.1.0.2:80").source.is_none());
}

#[test]
fn a_connection_without_an_enrolled_pod_goes_on_as_it_was() {
    let mesh = mesh();
    let among_pods = mesh.single("10.1.0.3:40000", "10.1.0.3:80");
    assert_eq!(among_pods.source, SourceAddress::Node(NotPreserved::TheClientItself));
    let to_service = mesh.single("10.1.0.3:40000", "10.96.0.1:80");
    assert_eq!(to_service.address, at("10.96.0.1:80"));
    assert_eq!(to_service.source, SourceAddress::Node(NotPreserved::UnknownDestination));
    assert!(mesh.decide("10.1.0.3:40000", "10.96.0.1:80").pod.is_none());
}

#[test]
fn the_listener_itself_is_no_destination() {
    for destination in ["127.0.0.1:15001", "[::1]:15001", "0.0.0.0:80"] {
        assert_eq!(mesh().refusal("10.1.0.1:40000", destination), Refusal::DialledDirectly);
    }
}

#[test]
fn a_service_may_leave_the_choice_of_address_to_the_client() {
    let mut direct = service("direct", &["10.96.0.3"]);
    direct.load_balancing.mode = BalanceMode::Passthrough;
    let client = workload("client", &["10.1.0.1"], "n1", &[]);
    let pods = pods([pod(&client, true)]);
    let snapshot = snapshot([direct], [client]);
    let decision = decide(&snapshot, &pods, at("10.1.0.1:1"), at("10.96.0.3:80"));
    assert_eq!(decision.service.unwrap().name.as_ref(), "direct");
    assert!(
        matches!(decision.outcome, Ok(Target::Single(upstream)) if upstream.address == at("10.96.0.3:80"))
    );
}
