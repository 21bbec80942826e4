//! A small mesh for unit tests: node `n1`, pods in 10.1.0.0/16 and fd00::/16, services by the name of their test.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::{
    Change, LoadBalancing, LocalNode, NetworkAddress, PortMapping, Service, ServiceName, ServicePort,
    Snapshot, Store, TunnelProtocol, Workload,
};
use crate::pods::{FailureMode, LocalPod, LocalPods, Redirection};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn service_name(name: &str) -> ServiceName {
    ServiceName { namespace: "shop".into(), hostname: name.into() }
}

/// A service with port 80 and no target port of its own.
pub(crate) fn service(name: &str, addresses: &[&str]) -> Service {
    let address = |text: &&str| NetworkAddress { network: "".into(), address: ip(text) };
    Service {
        id: service_name(name),
        name: name.into(),
        addresses: addresses.iter().map(address).collect(),
        ports: vec![ServicePort { service_port: 80, target_port: 0 }],
        subject_alt_names: vec![],
        waypoint: None,
        load_balancing: LoadBalancing::default(),
    }
}

/// A workload on `node` that serves port 80 of `services` on its port 8080.
pub(crate) fn workload(name: &str, addresses: &[&str], node: &str, services: &[&str]) -> Workload {
    let ports = vec![PortMapping { service_port: 80, target_port: 8080 }];
    Workload {
        uid: format!("c//Pod/shop/{name}").into(),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
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
            services: services.iter().map(|service| (service_name(service), ports.clone())).collect(),
            authorization_policies: vec![],
            mutual_tls: Default::default(),
            redirection: Redirection::default(),
            failure_mode: None,
        }),
    }
}

/// The local pod of a workload.
pub(crate) fn pod(workload: &Workload, enrolled: bool) -> LocalPod {
    LocalPod {
        uid: Arc::clone(&workload.uid),
        name: workload.name().into(),
        namespace: Arc::clone(&workload.namespace),
        kubernetes_uid: None,
        service_account: Arc::clone(&workload.service_account),
        addresses: workload.addresses.to_vec(),
        device: None,
        enrolled,
        redirection: Redirection::default(),
        failure_mode: FailureMode::Open,
    }
}

pub(crate) fn pods(pods: impl IntoIterator<Item = LocalPod>) -> LocalPods {
    LocalPods::new(pods.into_iter().map(Arc::new))
}

pub(crate) fn snapshot(
    services: impl IntoIterator<Item = Service>,
    workloads: impl IntoIterator<Item = Workload>,
) -> Arc<Snapshot> {
    let mut store = Store::new(LocalNode {
        name: "n1".into(),
        trust_domain: "cluster.local".into(),
        ..LocalNode::default()
    });
    let services = services.into_iter().map(|service| Change::Service(Arc::new(service)));
    let workloads = workloads.into_iter().map(|workload| Change::Workload(Arc::new(workload)));
    store.apply(services.chain(workloads));
    store.shared().load()
}
