use std::net::IpAddr;

use super::*;
use crate::config::{
    BalanceMode, LoadBalancing, NetworkAddress, PortMapping, RoutingScope, ServicePort, TunnelProtocol,
};
use crate::pods::Redirection;

fn service(hostname: &str, address: &str, load_balancing: LoadBalancing) -> Arc<Service> {
    Arc::new(Service {
        id: ServiceName { namespace: "shop".into(), hostname: hostname.into() },
        name: hostname.into(),
        addresses: vec![NetworkAddress { network: "".into(), address: address.parse().unwrap() }],
        ports: vec![ServicePort { service_port: 80, target_port: 8080 }],
        subject_alt_names: vec![],
        waypoint: None,
        load_balancing,
    })
}

fn workload(name: &str, address: &str, node: &str, services: &[&str]) -> Workload {
    Workload {
        uid: format!("c//Pod/shop/{name}").into(),
        addresses: vec![address.parse().unwrap()].into(),
        node: node.into(),
        healthy: true,
        terminating: false,
        locality: Default::default(),
        own_name: None,
        load: Default::default(),
        template: Arc::new(crate::config::Template {
            namespace: "shop".into(),
            service_account: "default".into(),
            trust_domain: "cluster.local".into(),
            hostname: "".into(),
            network: "".into(),
            cluster: "c".into(),
            host_network: false,
            canonical_name: name.into(),
            canonical_revision: "latest".into(),
            workload_name: name.into(),
            tunnel: TunnelProtocol::None,
            waypoint: None,
            network_gateway: None,
            weight: 1,
            services: services
                .iter()
                .map(|hostname| {
                    let id = ServiceName { namespace: "shop".into(), hostname: (*hostname).into() };
                    (id, vec![PortMapping { service_port: 80, target_port: 8080 }])
                })
                .collect(),
            authorization_policies: vec![],
            mutual_tls: Default::default(),
            redirection: Redirection::default(),
            failure_mode: None,
        }),
    }
}

fn store() -> Store {
    Store::new(LocalNode { name: "n1".into(), ..LocalNode::default() })
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn chosen(snapshot: &Snapshot, address: &str) -> Vec<Vec<String>> {
    let entry = snapshot.service_by_address(ip(address)).expect("service");
    entry.tiers.iter().map(|tier| tier.iter().map(|e| e.workload.name().to_owned()).collect()).collect()
}

#[test]
fn endpoints_meet_their_service_in_any_order() {
    let mut store = store();
    store.apply([Change::Workload(Arc::new(workload("a", "10.0.0.1", "n1", &["web"])))]);
    store.apply([Change::Service(service("web", "10.96.0.1", LoadBalancing::default()))]);
    store.apply([Change::Workload(Arc::new(workload("b", "10.0.0.2", "n2", &["web"])))]);
    let snapshot = store.shared().load();
    assert_eq!(chosen(&snapshot, "10.96.0.1"), [["a", "b"]]);
    assert_eq!(snapshot.workload_by_address(ip("10.0.0.2")).unwrap().name(), "b");
    assert_eq!(snapshot.revision(), 3);
}

#[test]
fn a_snapshot_once_taken_does_not_change() {
    let mut store = store();
    store.apply([
        Change::Service(service("web", "10.96.0.1", LoadBalancing::default())),
        Change::Workload(Arc::new(workload("a", "10.0.0.1", "n1", &["web"]))),
    ]);
    let before = store.shared().load();
    store.apply([Change::Remove("c//Pod/shop/a".into())]);
    assert_eq!(chosen(&before, "10.96.0.1"), [["a"]]);
    let after = store.shared().load();
    assert!(chosen(&after, "10.96.0.1").is_empty());
    assert!(after.workload_by_address(ip("10.0.0.1")).is_none());
}

#[test]
fn an_address_taken_over_stays_with_its_new_owner() {
    let mut store = store();
    store.apply([Change::Workload(Arc::new(workload("old", "10.0.0.1", "n1", &[])))]);
    store.apply([Change::Workload(Arc::new(workload("new", "10.0.0.1", "n1", &[])))]);
    store.apply([Change::Remove("c//Pod/shop/old".into())]);
    assert_eq!(store.shared().load().workload_by_address(ip("10.0.0.1")).unwrap().name(), "new");
}

#[test]
fn a_service_that_moves_leaves_its_old_address() {
    let mut store = store();
    store.apply([Change::Service(service("web", "10.96.0.1", LoadBalancing::default()))]);
    store.apply([Change::Service(service("web", "10.96.0.2", LoadBalancing::default()))]);
    let snapshot = store.shared().load();
    assert!(snapshot.service_by_address(ip("10.96.0.1")).is_none());
    assert!(snapshot.service_by_address(ip("10.96.0.2")).is_some());
    store.apply([Change::Remove("shop/web".into())]);
    assert_eq!(store.shared().load().service_count(), 0);
}

#[test]
fn unready_endpoints_are_not_chosen_unless_the_service_wants_them() {
    let mut store = store();
    let mut unready = workload("a", "10.0.0.1", "n1", &["web", "headless"]);
    unready.healthy = false;
    let all =
        LoadBalancing { health_policy: super::super::HealthPolicy::AllowAll, ..LoadBalancing::default() };
    store.apply([
        Change::Service(service("web", "10.96.0.1", LoadBalancing::default())),
        Change::Service(service("headless", "10.96.0.2", all)),
        Change::Workload(Arc::new(unready)),
    ]);
    let snapshot = store.shared().load();
    assert!(chosen(&snapshot, "10.96.0.1").is_empty());
    assert_eq!(chosen(&snapshot, "10.96.0.2"), [["a"]]);
}

#[test]
fn locality_orders_endpoints_into_tiers() {
    let mut store = store();
    let place =
        |region: &str, zone: &str| Locality { region: region.into(), zone: zone.into(), subzone: "".into() };
    let mut here = workload("here", "10.0.0.1", "n1", &["web", "local"]);
    here.locality = place("eu", "a").into();
    let mut region = workload("region", "10.0.0.2", "n2", &["web", "local"]);
    region.locality = place("eu", "b").into();
    let mut far = workload("far", "10.0.0.3", "n3", &["web", "local"]);
    far.locality = place("us", "a").into();
    let failover = LoadBalancing {
        preference: vec![RoutingScope::Region, RoutingScope::Zone],
        mode: BalanceMode::Failover,
        ..LoadBalancing::default()
    };
    let strict = LoadBalancing {
        preference: vec![RoutingScope::Node],
        mode: BalanceMode::Strict,
        ..LoadBalancing::default()
    };
    store.apply([
        Change::Service(service("web", "10.96.0.1", failover)),
        Change::Service(service("local", "10.96.0.2", strict)),
    ]);
    // The node's own locality becomes known only with the last workload.
    for workload in [far, region, here] {
        store.apply([Change::Workload(Arc::new(workload))]);
    }
    let snapshot = store.shared().load();
    assert_eq!(chosen(&snapshot, "10.96.0.1"), [["here"], ["region"], ["far"]]);
    assert_eq!(chosen(&snapshot, "10.96.0.2"), [["here"]]);
}

#[test]
fn host_network_workloads_do_not_own_their_address() {
    let mut store = store();
    let workload = workload("proxy", "192.0.2.1", "n1", &[]).with(|shared| shared.host_network = true);
    store.apply([Change::Workload(Arc::new(workload))]);
    assert!(store.shared().load().workload_by_address(ip("192.0.2.1")).is_none());
}

#[test]
fn load_outlives_a_change_of_the_workload() {
    let mut store = store();
    store.apply([Change::Workload(Arc::new(workload("a", "10.0.0.1", "n1", &[])))]);
    let guard = store.shared().load().load("c//Pod/shop/a").unwrap().enter();
    store.apply([Change::Workload(Arc::new(workload("a", "10.0.0.9", "n1", &[])))]);
    assert_eq!(store.shared().load().load("c//Pod/shop/a").unwrap().active(), 1);
    drop(guard);
    assert_eq!(store.shared().load().load("c//Pod/shop/a").unwrap().active(), 0);
}

#[test]
fn readers_are_told() {
    let mut store = store();
    let mut changed = store.shared().subscribe();
    assert!(!changed.has_changed().unwrap());
    store.apply([]);
    assert!(changed.has_changed().unwrap());
    assert_eq!(*changed.borrow_and_update(), 1);
}
