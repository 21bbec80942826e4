use std::time::Instant;

use super::super::super::fixtures::{at, ip, pod, pods, service, service_name, snapshot, workload};
use super::super::{Decision, Explanation, decide};
use super::*;
use crate::config::{MutualTls, MutualTlsMode, NetworkAddress};
use crate::pods::LocalPods;
use crate::pods::PodDevice;

const CLIENT: &str = "10.1.0.1:40000";

fn identity(service_account: &str) -> Identity {
    Identity::new("cluster.local", "shop", service_account)
}

/// A workload that is reached by tunnel, with a service account of its name.
fn enrolled(name: &str, address: &str, node: &str, services: &[&str]) -> Workload {
    let mut workload = workload(name, &[address], node, services);
    workload.tunnel = TunnelProtocol::Hbone;
    workload.service_account = name.into();
    workload
}

/// The client, whose device is known, and its mesh.
fn with_client(
    services: impl IntoIterator<Item = Service>,
    workloads: impl IntoIterator<Item = Workload>,
) -> (Arc<Snapshot>, LocalPods) {
    let client = enrolled("client", "10.1.0.1", "n1", &[]);
    let mut own = pod(&client, true);
    own.device = Some(PodDevice { index: 7, name: "veth7".into() });
    (snapshot(services, workloads.into_iter().chain([client])), pods([own]))
}

fn decided((snapshot, pods): &(Arc<Snapshot>, LocalPods), destination: &str) -> Decision {
    decide(snapshot, pods, at(CLIENT), at(destination))
}

fn single(mesh: &(Arc<Snapshot>, LocalPods), destination: &str) -> Upstream {
    match decided(mesh, destination).outcome {
        Ok(Target::Single(upstream)) => upstream,
        other => panic!("{other:?}"),
    }
}

/// How the endpoint called `name` of the service at `destination` is reached.
fn endpoint(mesh: &(Arc<Snapshot>, LocalPods), destination: &str, name: &str) -> Result<Upstream, Unusable> {
    let (snapshot, pods) = mesh;
    let decision = decided(mesh, destination);
    let Ok(Target::Service { entry, .. } | Target::Waypoint { entry, .. }) = &decision.outcome else {
        panic!("{:?}", decision.outcome);
    };
    let uid = format!("c//Pod/shop/{name}");
    let endpoint = entry.endpoints.get(&uid).unwrap();
    let upstream = decision.endpoint_upstream(snapshot, pods, endpoint, at(CLIENT), at(destination));
    assert_eq!(upstream.is_ok(), decision.is_usable(snapshot, endpoint, at(destination)));
    upstream
}

#[test]
fn an_enrolled_workload_of_another_node_is_reached_by_tunnel() {
    let mesh = with_client([], [enrolled("web", "10.2.0.1", "n2", &[])]);
    let upstream = single(&mesh, "10.2.0.1:8080");
    assert_eq!(upstream.path, Path::Tunnel);
    assert_eq!(upstream.address, at("10.2.0.1:8080"));
    assert_eq!(
        *upstream.tunnel.unwrap(),
        TunnelPath {
            gateway: at("10.2.0.1:15008"),
            expected: [identity("web")].into(),
            authority: "10.2.0.1:8080".into(),
            inner: None,
        }
    );
    assert_eq!(upstream.source, SourceAddress::Preserved(ip("10.1.0.1")));
    assert_eq!(decided(&mesh, "10.2.0.1:8080").identity, Some(Arc::new(identity("client"))));
}

#[test]
fn the_same_node_and_disabled_ports_need_no_tunnel() {
    let local = enrolled("local", "10.1.0.2", "n1", &[]);
    let mut partly = enrolled("partly", "10.2.0.2", "n2", &[]);
    partly.mutual_tls = MutualTls { ports: [(9090, MutualTlsMode::Disable)].into(), ..MutualTls::default() };
    let mesh = with_client([], [local, partly]);
    assert_eq!(single(&mesh, "10.1.0.2:80").path, Path::SameNode);
    assert_eq!(single(&mesh, "10.2.0.2:9090").path, Path::Remote);
    assert_eq!(single(&mesh, "10.2.0.2:9090").tunnel, None);
    assert_eq!(single(&mesh, "10.2.0.2:80").path, Path::Tunnel);
}

#[test]
fn who_speaks_the_protocol_itself_is_spoken_to_in_it_everywhere() {
    let mut gateway = enrolled("gateway", "10.1.0.9", "n1", &[]);
    gateway.tunnel = TunnelProtocol::NativeHbone;
    let mesh = with_client([], [gateway]);
    assert_eq!(single(&mesh, "10.1.0.9:80").path, Path::Tunnel);
}

#[test]
fn nobody_but_the_mesh_dials_the_tunnel_port() {
    let mesh = with_client([], [enrolled("web", "10.2.0.1", "n2", &[])]);
    let refusal = decided(&mesh, "10.2.0.1:15008").outcome.unwrap_err();
    assert_eq!(refusal, Refusal::TunnelPort { workload: "c//Pod/shop/web".into() });
}

#[test]
fn an_unproven_client_has_no_identity() {
    let client = enrolled("client", "10.1.0.1", "n1", &[]);
    let without_device = (snapshot([], [client.clone()]), pods([pod(&client, true)]));
    assert_eq!(decided(&without_device, "10.2.0.1:80").identity, None);
    let left = (snapshot([], [client.clone()]), pods([pod(&client, false)]));
    assert_eq!(decided(&left, "10.2.0.1:80").identity, None);
}

#[test]
fn services_may_be_served_under_other_names() {
    let mut web = service("web", &["10.96.0.1"]);
    let other = "spiffe://cluster.local/ns/shop/sa/other";
    web.subject_alt_names = vec![other.into(), "web.example".into()];
    let mesh = with_client([web], [enrolled("web-1", "10.2.0.1", "n2", &["web"])]);
    let tunnel = endpoint(&mesh, "10.96.0.1:80", "web-1").unwrap().tunnel.unwrap();
    assert_eq!(*tunnel.expected, [identity("web-1"), identity("other")]);
    assert_eq!(&*tunnel.authority, "10.2.0.1:8080");
}

#[test]
fn a_service_with_a_waypoint_is_reached_through_it() {
    let mut web = service("web", &["10.96.0.1"]);
    let gateway = Gateway { address: GatewayAddress::Service(service_name("waypoint")), hbone_port: 15008 };
    web.waypoint = Some(gateway);
    let mut proxy = enrolled("waypoint", "10.2.0.9", "n2", &["waypoint"]);
    proxy.tunnel = TunnelProtocol::NativeHbone;
    let services = [web.clone(), service("waypoint", &["10.96.0.9"])];
    let web_1 = enrolled("web-1", "10.2.0.1", "n2", &["web"]);
    let mesh = with_client(services.clone(), [web_1, proxy]);

    let upstream = endpoint(&mesh, "10.96.0.1:80", "waypoint").unwrap();
    assert_eq!((upstream.path, upstream.address), (Path::Waypoint, at("10.2.0.9:15008")));
    let tunnel = upstream.tunnel.unwrap();
    assert_eq!(*tunnel.expected, [identity("waypoint")]);
    assert_eq!(&*tunnel.authority, "10.96.0.1:80");

    let missing = with_client([web], []);
    let refusal = decided(&missing, "10.96.0.1:80").outcome.unwrap_err();
    assert!(matches!(refusal, Refusal::NoWaypoint { .. }));
    assert!(refusal.to_string().contains("shop/waypoint"), "{refusal}");
}

#[test]
fn a_waypoint_is_not_sent_back_to_itself() {
    let mut web = service("web", &["10.96.0.1"]);
    let place = NetworkAddress { network: "".into(), address: ip("10.1.0.1") };
    web.waypoint = Some(Gateway { address: GatewayAddress::Address(place), hbone_port: 15008 });
    let mesh = with_client([web], [enrolled("web-1", "10.2.0.1", "n2", &["web"])]);
    assert!(matches!(decided(&mesh, "10.96.0.1:80").outcome, Ok(Target::Service { .. })));
}

#[test]
fn a_workload_may_have_a_waypoint_by_address() {
    let mut web = enrolled("web", "10.2.0.1", "n2", &[]);
    let place = NetworkAddress { network: "".into(), address: ip("10.2.0.9") };
    web.waypoint = Some(Gateway { address: GatewayAddress::Address(place), hbone_port: 15009 });
    let mesh = with_client([], [web, enrolled("waypoint", "10.2.0.9", "n2", &[])]);
    let upstream = single(&mesh, "10.2.0.1:80");
    assert_eq!((upstream.path, upstream.address), (Path::Waypoint, at("10.2.0.9:15009")));
    assert_eq!(&*upstream.tunnel.unwrap().authority, "10.2.0.1:80");
}

#[test]
fn another_network_is_reached_through_its_gateway() {
    let mut far = enrolled("far", "10.1.0.1", "n9", &["web"]);
    far.network = "west".into();
    far.addresses = [].into();
    let place = NetworkAddress { network: "".into(), address: ip("192.0.2.9") };
    far.network_gateway = Some(Gateway { address: GatewayAddress::Address(place), hbone_port: 15008 });
    let mut gateway = enrolled("gateway", "192.0.2.9", "", &[]);
    gateway.tunnel = TunnelProtocol::NativeHbone;
    let web = service("web", &["10.96.0.1"]);
    let mesh = with_client([web.clone()], [far.clone(), gateway]);

    let upstream = endpoint(&mesh, "10.96.0.1:80", "far").unwrap();
    assert_eq!((upstream.path, upstream.address), (Path::NetworkGateway, at("192.0.2.9:15008")));
    assert_eq!(upstream.source, SourceAddress::Node(NotPreserved::OtherNetwork));
    assert_eq!(
        *upstream.tunnel.unwrap(),
        TunnelPath {
            gateway: at("192.0.2.9:15008"),
            expected: [identity("gateway")].into(),
            authority: "web:80".into(),
            inner: Some([identity("far")].into()),
        }
    );

    // A gateway that is not known has nobody's identity to expect.
    let unknown = with_client([web], [far]);
    let explanation =
        Explanation::new(&unknown.0, &unknown.1, at(CLIENT), at("10.96.0.1:80"), Instant::now());
    assert!(matches!(explanation.refusal, Some(Refusal::NoEndpoint { .. })));
}
