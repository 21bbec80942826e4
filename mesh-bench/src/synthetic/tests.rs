#![allow(clippy::unwrap_used, reason = "test code")]

use std::collections::BTreeSet;

use mesh_xds::proto::workload::Workload;

use super::{Deployment, SyntheticMesh};

fn workloads(size: usize) -> Vec<Workload> {
    SyntheticMesh::new(size).deployments().flat_map(Deployment::replicas).collect()
}

#[test]
fn it_has_as_many_workloads_as_asked_for_and_a_service_for_ten() {
    for (size, services) in [(0, 0), (1, 1), (10, 1), (1_234, 124)] {
        assert_eq!(workloads(size).len(), size);
        assert_eq!(SyntheticMesh::new(size).resources().count(), size + services);
    }
}

#[test]
fn it_is_the_same_every_time() {
    let versions = || -> Vec<String> {
        let resources = SyntheticMesh::new(500).resources();
        resources.map(|resource| format!("{} {}", resource.name(), resource.version())).collect()
    };
    assert_eq!(versions(), versions());
}

#[test]
fn a_larger_mesh_has_the_same_pods_and_more() {
    let names =
        |size| -> BTreeSet<String> { workloads(size).into_iter().map(|workload| workload.uid).collect() };
    assert!(names(2_000).is_superset(&names(1_000)));
}

#[test]
fn names_and_addresses_are_unique() {
    let all = workloads(30_000);
    let names: BTreeSet<_> = all.iter().map(|workload| &workload.uid).collect();
    let addresses: Vec<_> = all.iter().flat_map(|workload| &workload.addresses).collect();
    assert_eq!(names.len(), all.len());
    assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), addresses.len());
    // A quarter of the deployments are dual-stack.
    assert_eq!(addresses.len(), all.len() * 5 / 4);
}
