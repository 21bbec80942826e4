//! The manifests in `examples/` are what they claim to be.

use std::collections::BTreeMap;

use mesh_control::settings::SourceSettings;
use mesh_control::source::files;
use mesh_xds::proto::workload::address::Type;
use serde::Deserialize;

use super::agent::Agent;
use super::fixture::{repository, settings_of};

#[derive(Deserialize)]
struct Lab {
    nodes: Vec<LabNode>,
}

#[derive(Deserialize)]
struct LabNode {
    name: String,
    pods: Vec<LabPod>,
}

#[derive(Deserialize)]
struct LabPod {
    name: String,
    namespace: String,
    addresses: Vec<std::net::IpAddr>,
}

#[test]
fn nothing_is_wrong_with_them() {
    let folders = ["manifests", "more", "policies"].map(|folder| repository(&format!("examples/{folder}")));
    let validation = files::validate(&folders, std::io::empty(), "istio-system");
    assert!(validation.problems.is_empty(), "{:#?}", validation.problems);
    assert!(validation.accepted.len() > 20, "{:#?}", validation.accepted);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_where_the_lab_builds_them() {
    let lab = std::fs::read_to_string(repository("examples/lab.yaml")).unwrap();
    let lab: Lab = serde_saphyr::from_str(&lab).unwrap();
    let mut built = BTreeMap::new();
    for node in lab.nodes {
        for pod in node.pods {
            let uid = format!("Kubernetes//Pod/{}/{}", pod.namespace, pod.name);
            built.insert(uid, (node.name.clone(), pod.addresses));
        }
    }

    let examples = ["examples/manifests", "examples/more"].map(repository);
    let settings = settings_of(SourceSettings::Manifests(examples.into()));
    let control = mesh_control::control::Control::start(settings).await.unwrap();
    let agent = Agent::connect(&format!("http://{}", control.grpc_address));
    agent
        .eventually("as many pods as the lab has", |told| {
            let described: BTreeMap<_, _> = told
                .resources
                .values()
                .filter_map(|address| match address.r#type.as_ref()? {
                    Type::Workload(workload) if !workload.node.is_empty() => {
                        let addresses = workload.addresses.iter().map(|octets| address_of(octets)).collect();
                        Some((workload.uid.clone(), (workload.node.clone(), addresses)))
                    }
                    _ => None,
                })
                .collect();
            (described == built).then_some(())
        })
        .await;
    control.stop().await;
}

fn address_of(octets: &[u8]) -> std::net::IpAddr {
    <[u8; 4]>::try_from(octets)
        .map(Into::into)
        .unwrap_or_else(|_| <[u8; 16]>::try_from(octets).unwrap().into())
}
