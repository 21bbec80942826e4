#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::collections::BTreeSet;

use mesh_control::source::Batch;
use mesh_control::translate::{Mesh, Message, Translator};
use mesh_xds::proto::Any;
use mesh_xds::proto::workload::Workload;
use mesh_xds::server::StoredResource;

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

/// A control server that reads the manifests serves the same resources.
#[test]
fn manifests_lead_to_the_same_resources() {
    let mesh = SyntheticMesh::new(450);
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in mesh.manifests() {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let (batches, mut received) = tokio::sync::mpsc::channel(1);
    mesh_control::source::files::watch(vec![directory.path().to_owned()], batches).unwrap();
    let Batch { changes, report, .. } = received.blocking_recv().unwrap();
    assert!(report.problems.is_empty(), "{:#?}", report.problems);

    let translated = Translator::new(Mesh::default()).apply(changes).upserts;
    let stored = translated.iter().map(|output| {
        let Message::Address(address) = &output.message else { panic!("a policy: {output:?}") };
        let aliases = output.aliases.iter().map(String::as_str);
        StoredResource::with_aliases(&output.name.name, aliases, Any::pack(address.as_ref()))
    });
    let named = |resource: StoredResource| format!("{} {}", resource.name(), resource.version());
    let (translated, expected): (BTreeSet<_>, BTreeSet<_>) =
        (stored.map(named).collect(), mesh.resources().map(named).collect());
    assert_eq!(translated, expected);
}
