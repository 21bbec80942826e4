use super::*;
use crate::config::{Change, LocalNode, Locality, Store};
use crate::pods::{FailureMode, Redirection};

fn workload(name: &str, node: &str) -> Workload {
    Workload {
        uid: format!("c//Pod/shop/{name}").into(),
        name: name.into(),
        namespace: "shop".into(),
        service_account: "default".into(),
        trust_domain: "cluster.local".into(),
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        hostname: "".into(),
        network: "".into(),
        cluster: "c".into(),
        node: node.into(),
        host_network: false,
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        workload_name: name.into(),
        tunnel: TunnelProtocol::Hbone,
        waypoint: None,
        network_gateway: None,
        healthy: true,
        weight: 1,
        locality: Locality::default(),
        services: vec![],
        authorization_policies: vec![],
        mutual_tls: Default::default(),
        redirection: Redirection::default(),
        failure_mode: None,
    }
}

#[tokio::test]
async fn workloads_of_this_node_are_its_pods() {
    let mut store = Store::new(LocalNode { name: "one".into(), cluster: "c".into(), ..LocalNode::default() });
    let source = ControlSource::new(store.shared(), FailureMode::Closed);
    let (sender, mut desired) = watch::channel(DesiredPods::default());
    let running = tokio::spawn(source.run(sender));
    assert!(!desired.borrow().complete, "an empty snapshot says nothing");

    let changes = [
        workload("here", "one"),
        Workload {
            tunnel: TunnelProtocol::None,
            failure_mode: Some(FailureMode::Open),
            ..workload("plain", "one")
        },
        Workload { host_network: true, ..workload("host", "one") },
        Workload { addresses: vec![], ..workload("starting", "one") },
        Workload { cluster: "other".into(), ..workload("namesake", "one") },
        workload("there", "two"),
    ];
    store.apply(changes.map(|workload| Change::Workload(Arc::new(workload))));
    let named = desired.wait_for(|desired| desired.complete).await.unwrap().clone();
    let enrolled: Vec<_> = named.pods.iter().map(|pod| (&*pod.name, pod.enrolled)).collect();
    assert_eq!(enrolled, [("here", true), ("plain", false)]);
    let modes: Vec<_> = named.pods.iter().map(|pod| pod.failure_mode).collect();
    assert_eq!(
        modes,
        [FailureMode::Closed, FailureMode::Open],
        "the agent's default, and the pod's own word"
    );
    assert_eq!(named.pods[0].addresses.len(), 2);

    let names = ["here", "plain", "host", "starting", "namesake", "there"];
    store.apply(names.map(|name| Change::Remove(format!("c//Pod/shop/{name}").into())));
    desired.wait_for(|desired| desired.complete && desired.pods.is_empty()).await.unwrap();
    running.abort();
}
