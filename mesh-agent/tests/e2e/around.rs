//! The ways to a pod that do not come in where packets are steered: the same is decided about them as about any other plain
//! text.

use std::net::{IpAddr, SocketAddr};

use mesh_lab::OwnCgroup;
use mesh_lab::translation::{Masquerade, Translation, Translator, route_services};
use serde_json::Value;

use crate::world::{DENY_ALL, PORT, STRICT, VIPS, World, eventually, same_family, who};

const NODE_PORT: u16 = 30_080;
/// Of a pod on its own node: to the kernel the same, but not where NodePorts are.
const HOST_PORT: u16 = 18_080;

/// The kubelet's cgroup below that of its node, and how agents are told.
const KUBELET: &str = "kubelet";
const KUBELET_KNOWN: &str = "--kubelet-cgroup=kubelet";

/// Each node with its pods, and who translates there.
const NODES: [(&str, &str, &str, &str, Translator); 2] = [
    ("routed", "web-r", "legacy-r", "p-legacy-r", Translator::Nftables),
    ("bridged", "web-b", "legacy-b", "cni0", Translator::Iptables),
];

/// A mesh whose agents are told this, too.
fn world_with(argument: &str) -> World {
    let mut world = World::lab();
    world.mesh = world.mesh.agent_arguments([argument]);
    world.apply_usual();
    world.mesh.start().unwrap();
    world
}

/// A mesh whose agents know the kubelet, on nodes that translate.
fn world(masquerade: Masquerade) -> World {
    let world = world_with(KUBELET_KNOWN);
    for (node, web, _, device, by) in NODES {
        let node = world.machine(node);
        for family in families() {
            let own = |port| SocketAddr::new(same_family(node, family), port);
            let from = vec![own(NODE_PORT), own(HOST_PORT), service(family)];
            let to = world.address(web, family);
            Translation { by, from, to, masquerade }.install(node).unwrap();
            route_services(node, &[service(family).ip()], device).unwrap();
        }
    }
    world
}

fn families() -> [IpAddr; 2] {
    VIPS.map(|vip| vip.parse().unwrap())
}

/// The address of a service that the mesh does not know.
fn service(family: IpAddr) -> SocketAddr {
    let address = if family.is_ipv4() { "10.96.7.7" } else { "fd00:96::77" };
    SocketAddr::new(address.parse().unwrap(), 80)
}

/// Every way around: from where, to what. What the node itself sends is what its processes and the pods in its network
/// namespace send.
fn ways(world: &World) -> Vec<(String, SocketAddr, &'static str, &'static str)> {
    let mut ways = Vec::new();
    let others = NODES.into_iter().rev();
    for ((node, web, legacy, ..), (other_node, _, other_legacy, ..)) in NODES.into_iter().zip(others) {
        for family in families() {
            let [node_port, host_port] = [NODE_PORT, HOST_PORT]
                .map(|port| SocketAddr::new(same_family(world.machine(node), family), port));
            let (service, pod) = (service(family), world.address(web, family));
            for (from, to) in [
                ("outside", node_port),
                ("outside", host_port),
                (node, node_port),
                (node, host_port),
                (node, service),
                (node, pod),
                (legacy, node_port),
                (legacy, service),
                (legacy, pod),
                (other_node, node_port),
                (other_node, pod),
                (other_legacy, node_port),
                (other_legacy, pod),
            ] {
                ways.push((from.to_owned(), to, node, web));
            }
        }
    }
    ways
}

/// The line of the connection with this port of its client's.
fn line(world: &World, node: &str, local: SocketAddr) -> Value {
    world.logged(node, "inbound", local)
}

/// Connects and asks; returns what the agent wrote about it. The client's address must be kept.
fn refused(world: &World, from: &str, to: SocketAddr, node: &str) -> Value {
    let (local, answer) = world.try_ask_from(from, to);
    assert!(answer.is_err(), "{from} to {to} is let through");
    line(world, node, local)
}

/// Waits until policy has come to both nodes.
fn until_refused(world: &World) {
    for (_, web, legacy, ..) in NODES {
        let to = world.address(web, families()[0]);
        eventually("plain text is refused", || world.try_ask(legacy, to).is_err().then_some(()));
    }
}

/// Asks as the kubelet of the node, with curl.
fn probe(world: &World, node: &str, to: SocketAddr) -> String {
    let node = world.machine(node);
    let kubelet = OwnCgroup::create_on(node, KUBELET).unwrap();
    let script = format!("exec curl -s -o /dev/null -w '%{{http_code}}' --max-time 5 http://{to}/");
    eventually("the agent has found the kubelet, and the probe passes", || {
        Some(kubelet.shell(node, &script).unwrap()).filter(|code| code != "000")
    })
}

#[test]
fn what_comes_around_is_plain_text_like_any_other() {
    let world = world(Masquerade::Off);
    for (from, to, node, web) in ways(&world) {
        let stream = world.connect(&from, to);
        let local = stream.local_addr().unwrap();
        let answer = who(&stream).unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
        assert_eq!((answer.pod.as_str(), answer.source.ip()), (web, local.ip()), "{from} to {to}");
        drop(stream);
        let line = line(&world, node, local);
        assert_eq!(line["response_flags"], "-", "{line}");
        assert_eq!(line["dst.workload"], web, "{line}");
    }

    world.mesh.apply("strict.yaml", STRICT).unwrap();
    until_refused(&world);
    for (from, to, node, _) in ways(&world) {
        let line = refused(&world, &from, to, node);
        assert_eq!(line["response_flags"], "MTLS", "{from} to {to}: {line}");
        assert!(line["error"].as_str().unwrap().contains("PeerAuthentication shop/default"), "{line}");
    }
    // Probes pass, and pods that can prove who they are.
    for (node, web, ..) in NODES {
        for family in families() {
            assert_eq!(probe(&world, node, world.address(web, family)), "200");
            assert_eq!(world.ask("client-r", world.address(web, family)).pod, web);
        }
        assert!(world.counted(node, "pass_kubelet") >= 2);
        assert!(world.counted(node, "capture_around") > 0);
    }
}

#[test]
fn authorization_policies_decide_about_what_comes_around() {
    let world = world(Masquerade::Off);
    world.mesh.apply("nobody.yaml", DENY_ALL).unwrap();
    until_refused(&world);
    for (from, to, node, _) in ways(&world) {
        let line = refused(&world, &from, to, node);
        assert_eq!(line["response_flags"], "UAEX", "{from} to {to}: {line}");
        assert!(line["error"].as_str().unwrap().contains("shop/nobody"), "{line}");
    }
    for (node, web, ..) in NODES {
        assert_eq!(probe(&world, node, world.address(web, families()[0])), "200");
    }

    // Whoever has the address of `outside` may, at the pod's port.
    let outside = world.machine("outside");
    let allowed: Vec<String> = outside.addresses().iter().map(|address| format!("'{address}'")).collect();
    let policy = format!(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: outside, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  rules:
    - from: [{{source: {{ipBlocks: [{}]}}}}]
      to: [{{operation: {{ports: ['{PORT}']}}}}]
",
        allowed.join(", ")
    );
    world.mesh.apply("outside.yaml", &policy).unwrap();
    for (node, web, ..) in NODES {
        for family in families() {
            let node_port = SocketAddr::new(same_family(world.machine(node), family), NODE_PORT);
            let answer = eventually("outside is let through", || world.try_ask("outside", node_port).ok());
            assert_eq!(answer.pod, web);
            assert_eq!(refused(&world, node, node_port, node)["response_flags"], "UAEX");
        }
    }
}

#[test]
fn what_is_masqueraded_is_decided_about_by_the_address_of_the_node() {
    let world = world(Masquerade::On);
    let ways = || {
        NODES.into_iter().flat_map(|(node, web, ..)| families().map(|family| (node, web, family))).map(
            |(node, web, family)| (web, SocketAddr::new(same_family(world.machine(node), family), NODE_PORT)),
        )
    };
    for (web, node_port) in ways() {
        assert_eq!(world.ask("outside", node_port).pod, web);
    }
    world.mesh.apply("strict.yaml", STRICT).unwrap();
    until_refused(&world);
    for (_, node_port) in ways() {
        assert!(world.try_ask("outside", node_port).is_err(), "{node_port}");
    }
}

#[test]
fn what_is_known_of_the_kubelet_is_told() {
    let explained = |world: &World| -> Value {
        let node = same_family(world.machine("routed"), families()[0]).to_string();
        let web = world.address("web-r", families()[0]).to_string();
        world.mesh.meshctl("routed", &["explain", &node, &web]).unwrap()["steering"]["outcome"].clone()
    };
    let check = |world: &World| -> Value {
        let report = world.mesh.meshctl("routed", &["check"]).unwrap();
        let checks = report["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == "kubelet").unwrap().clone()
    };

    let world = world_with(KUBELET_KNOWN);
    assert!(check(&world)["detail"].as_str().unwrap().contains("not there"), "{}", check(&world));
    let kubelet = OwnCgroup::create_on(world.machine("routed"), KUBELET).unwrap();
    let found =
        eventually("the kubelet is found", || Some(check(&world)).filter(|check| check["status"] == "ok"));
    assert!(found["detail"].as_str().unwrap().contains(kubelet.path().to_str().unwrap()), "{found}");
    assert_eq!(explained(&world), "capture_around");
    drop((kubelet, world));

    // An agent that is not told, and finds none, lets all of the node's processes pass and says so.
    let world = world_with("--in-kernel-passage=on");
    let unknown = check(&world);
    assert_eq!(unknown["status"], "warn", "{unknown}");
    assert!(unknown["detail"].as_str().unwrap().contains("around policy"), "{unknown}");
    assert_eq!(explained(&world), "pass_node_process");
    world.mesh.apply("strict.yaml", STRICT).unwrap();
    until_refused(&world);
    assert_eq!(world.ask("routed", world.address("web-r", families()[0])).pod, "web-r");
}
