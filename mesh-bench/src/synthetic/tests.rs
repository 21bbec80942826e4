#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::collections::BTreeSet;

use mesh_control::model::{self, Kind, Resource};
use mesh_control::source::{Batch, Change};
use mesh_control::translate::{Mesh, Message, Translator};
use mesh_xds::proto::Any;
use mesh_xds::proto::workload::Workload;
use mesh_xds::server::StoredResource;
use serde_json::Value;

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

    assert_eq!(served(changes), offered(mesh));
}

/// So does one that watches a Kubernetes API with the objects, although those say who the endpoints are.
#[test]
fn objects_lead_to_the_same_resources() {
    let mesh = SyntheticMesh::new(450);
    let read = |object: Value| {
        let kind = object.get("kind").and_then(Value::as_str).map(str::to_owned);
        let kind = Kind::ALL.into_iter().find(|known| kind.as_deref() == Some(known.name())).unwrap();
        let (resource, findings) = model::read(kind, object);
        assert!(findings.is_empty(), "{findings:?}");
        resource.unwrap()
    };
    let resources: Vec<Resource> = mesh.objects().map(read).collect();
    let slices = resources.iter().filter(|resource| resource.key().kind == Kind::EndpointSlice).count();
    assert_eq!(slices, 45 + 12, "one for each family of a service");
    assert_eq!(served(resources.into_iter().map(Change::Upsert)), offered(mesh));
}

#[test]
fn the_first_endpoint_of_its_slice_is_the_pod_that_is_named() {
    let mesh = SyntheticMesh::new(50);
    let objects: Vec<Value> = mesh.objects().collect();
    let text = |object: &Value, field: &str| object.pointer(field).and_then(Value::as_str).map(str::to_owned);
    for pod in mesh.sliced_pods() {
        let listing: Vec<_> = objects
            .iter()
            .filter(|object| text(object, "/kind").as_deref() == Some("EndpointSlice"))
            .filter(|slice| slice.to_string().contains(&pod.pod))
            .map(|slice| (text(slice, "/metadata/name"), text(slice, "/endpoints/0/targetRef/name")))
            .collect();
        assert_eq!(listing, [(Some(pod.slice), Some(pod.pod))]);
    }
    assert_eq!(mesh.sliced_pods().count(), 3);
}

/// Names and versions of what a control server makes of resources.
fn served(changes: impl IntoIterator<Item = Change>) -> BTreeSet<String> {
    let translated = Translator::new(Mesh::default()).apply(changes).upserts;
    let stored = translated.iter().map(|output| {
        let Message::Address(address) = &output.message else { panic!("a policy: {output:?}") };
        let aliases = output.aliases.iter().map(String::as_str);
        StoredResource::with_aliases(&output.name.name, aliases, Any::pack(address.as_ref()))
    });
    stored.map(named).collect()
}

fn offered(mesh: SyntheticMesh) -> BTreeSet<String> {
    mesh.resources().map(named).collect()
}

fn named(resource: StoredResource) -> String {
    format!("{} {}", resource.name(), resource.version())
}
