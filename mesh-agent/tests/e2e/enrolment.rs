//! Pods enter and leave the mesh while they run.

use std::net::{IpAddr, SocketAddr};

use mesh_lab::Manifests;
use mesh_lab::mesh::Mesh;

use crate::world::{SERVICE_PORT, VIPS, World, eventually, who};

fn vip() -> IpAddr {
    VIPS[0].parse().unwrap()
}

/// Puts the namespace `shop` into the mesh or out of it and waits until both agents did so.
fn enrol(world: &World, enrolled: bool) {
    let namespaces = Manifests::new().namespace("shop", enrolled).namespace("legacy", false);
    world.mesh.apply("namespaces.yaml", namespaces.text()).unwrap();
    for node in ["routed", "bridged"] {
        eventually(&format!("pods of {node} enrolled: {enrolled}"), || {
            (enrolled_pods(&world.mesh, node) == if enrolled { 2 } else { 0 }).then_some(())
        });
    }
}

fn enrolled_pods(mesh: &Mesh, node: &str) -> usize {
    let pods = mesh.meshctl(node, &["pods"]).unwrap();
    let pods = pods.as_array().or_else(|| pods["pods"].as_array()).expect("a list of pods");
    pods.iter().filter(|pod| pod["state"] == "enrolled").count()
}

#[test]
fn connections_older_than_enrolment_survive_it() {
    let mut world = World::lab();
    world.apply_usual();
    let namespaces = Manifests::new().namespace("shop", false).namespace("legacy", false);
    world.mesh.apply("namespaces.yaml", namespaces.text()).unwrap();
    world.mesh.start().unwrap();

    let pairs = [("client-r", "web-r"), ("client-r", "web-b"), ("client-b", "web-b"), ("client-b", "web-r")];
    let older: Vec<_> = pairs
        .iter()
        .flat_map(|(client, server)| {
            VIPS.map(|family| world.connect(client, world.address(server, family.parse().unwrap())))
        })
        .collect();
    let before: Vec<_> = older.iter().map(|stream| who(stream).unwrap()).collect();

    enrol(&world, true);
    for (stream, before) in older.iter().zip(&before) {
        let after = who(stream).expect("a connection older than enrolment survives it");
        assert_eq!((&after.pod, after.source), (&before.pod, before.source));
    }
    // Newer ones are steered: only the mesh knows the service's address.
    let newer = world.connect("client-r", SocketAddr::new(vip(), SERVICE_PORT));
    who(&newer).unwrap();

    enrol(&world, false);
    who(&newer).expect("a steered connection survives the end of enrolment");
    for stream in &older {
        who(stream).expect("an older connection survives the end of enrolment, too");
    }
    let direct = world.ask("client-r", world.address("web-b", vip()));
    assert_eq!(direct.pod, "web-b");
}

#[test]
fn a_label_on_the_pod_decides_for_the_pod() {
    let world = World::up();
    let pod = Manifests::new().pod(world.machine("client-r"), "client");
    let opted_out =
        pod.text().replace("labels: {app: client}", "labels: {app: client, istio.io/dataplane-mode: none}");
    world.mesh.apply("client-r.yaml", &opted_out).unwrap();
    eventually("client-r left the mesh", || (enrolled_pods(&world.mesh, "routed") == 1).then_some(()));
    let to = world.address("outside", vip());
    let stream = world.connect("client-r", to);
    assert_eq!(who(&stream).unwrap().source, stream.local_addr().unwrap());
}

#[test]
fn a_pod_that_is_gone_is_forgotten() {
    let world = World::up();
    world.mesh.withdraw("client-r.yaml").unwrap();
    eventually("client-r is forgotten", || (enrolled_pods(&world.mesh, "routed") == 1).then_some(()));
    let stream = world.connect("client-r", world.address("outside", vip()));
    assert_eq!(who(&stream).unwrap().source, stream.local_addr().unwrap());
}
