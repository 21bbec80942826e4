use super::*;
use crate::config::{Change, LocalNode, Store};
use crate::pods::{FailureMode, Redirection};

fn workload(name: &str, node: &str) -> Workload {
    Workload {
        uid: format!("c//Pod/shop/{name}").into(),
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()].into(),
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
            tunnel: TunnelProtocol::Hbone,
            waypoint: None,
            network_gateway: None,
            weight: 1,
            services: vec![],
            authorization_policies: vec![],
            mutual_tls: Default::default(),
            redirection: Redirection::default(),
            failure_mode: None,
        }),
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
        workload("plain", "one").with(|shared| {
            shared.tunnel = TunnelProtocol::None;
            shared.failure_mode = Some(FailureMode::Open);
        }),
        workload("host", "one").with(|shared| shared.host_network = true),
        Workload { addresses: [].into(), ..workload("starting", "one") },
        workload("namesake", "one").with(|shared| shared.cluster = "other".into()),
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
