//! Certificates come, change and fail to come, under traffic.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use mesh_lab::echo::Answer;
use mesh_lab::traffic::{Report, Traffic};
use mesh_lab::{Kind, Manifests};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::world::{PATIENCE, SERVICE_PORT, VIPS, World, eventually, same_family, who};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const NODES: [&str; 2] = ["routed", "bridged"];

/// A mesh whose certificates live for so many seconds.
fn short_lived(seconds: u64) -> World {
    let world = World::lab();
    let World { echoes, mesh } = world;
    let mut world = World { echoes, mesh: mesh.certificate_lifetime(Duration::from_secs(seconds)) };
    world.apply_usual();
    world.mesh.start().unwrap();
    world
}

fn service() -> SocketAddr {
    SocketAddr::new(VIPS[0].parse().unwrap(), SERVICE_PORT)
}

/// How the identity of the service account `account` is doing on a node.
fn status(world: &World, node: &str, account: &str) -> Value {
    let report = world.mesh.meshctl(node, &["identities"]).unwrap();
    let name = format!("/ns/shop/sa/{account}");
    let identities = report["identities"].as_array().unwrap();
    let known = identities.iter().find(|known| known["identity"].as_str().unwrap().ends_with(&name));
    known.cloned().unwrap_or(Value::Null)
}

/// How many requests of a node have not found the authority.
fn unreachable(world: &World, node: &str) -> u64 {
    let report = world.mesh.meshctl(node, &["identities"]).unwrap();
    report["failures"]["unreachable"].as_u64().unwrap()
}

/// The serial number of its certificate.
fn serial(world: &World, node: &str, account: &str) -> Option<String> {
    status(world, node, account)["serial"].as_str().map(str::to_owned)
}

/// Waits until both nodes have new certificates for their pods.
fn renewed(world: &World) {
    for (node, account) in NODES.into_iter().zip(["client", "web"]) {
        let before = serial(world, node, account);
        eventually(&format!("{account} of {node} is certified anew"), || {
            serial(world, node, account).filter(|now| Some(now) != before.as_ref())
        });
    }
}

/// Waits until a node has certificates for its pods.
fn certified(world: &World, node: &str) {
    for account in ["client", "web"] {
        eventually(&format!("{account} of {node} is certified"), || {
            (status(world, node, account)["state"] == "valid").then_some(())
        });
    }
}

/// Waits until the last error of an identity has all of these words in it, and returns it.
fn last_error(world: &World, node: &str, account: &str, words: &[&str]) -> String {
    eventually(&format!("{account} of {node} fails because of {words:?}"), || {
        let error = status(world, node, account)["last_error"].as_str()?.to_owned();
        words.iter().all(|word| error.contains(word)).then_some(error)
    })
}

/// Waits until so many more requests were answered.
fn go_on(traffic: &Traffic, more: u64) -> Report {
    let so_far = traffic.report().succeeded;
    traffic.wait_for(PATIENCE, |report| report.succeeded >= so_far + more).unwrap()
}

/// Ends a load that must not have noticed anything.
fn unharmed(traffic: Traffic) {
    let report = traffic.stop();
    assert_eq!(report.failed, 0, "{report}");
}

/// Connects, is refused, and returns what the client's agent says about it. The reset may come before `connect` has
/// returned, so the source address is chosen first.
fn refused(world: &World, node: &str, from: &str, to: SocketAddr) -> Value {
    let own = SocketAddr::new(same_family(world.machine(from), to.ip()), 0);
    let open = move || -> std::io::Result<(SocketAddr, std::io::Result<Answer>)> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&own.into())?;
        let connected = socket.connect_timeout(&to.into(), PATIENCE);
        let stream = TcpStream::from(socket);
        let source = stream.local_addr()?;
        Ok((source, connected.and_then(|()| who(&stream))))
    };
    let (source, answer) = world.machine(from).namespace().run(open).unwrap().unwrap();
    answer.expect_err("nobody answers");
    world.logged(node, "outbound", source)
}

fn refused_for_want_of_identity(world: &World, node: &str, from: &str, to: SocketAddr, reason: &str) {
    let line = refused(world, node, from, to);
    assert_eq!(line["response_flags"], "NOID", "{line}");
    assert!(line["error"].as_str().unwrap().contains(reason), "{line}");
}

#[test]
fn leaves_are_renewed_unseen() {
    let world = short_lived(8);
    let to = world.address("web-b", V4);
    let long_lived = world.connect("client-r", to);
    let source = long_lived.local_addr().unwrap();
    who(&long_lived).unwrap();
    let traffic = world.steady("client-r", to);
    for _ in 0..3 {
        renewed(&world);
        go_on(&traffic, 50);
        assert_eq!(who(&long_lived).unwrap().pod, "web-b");
    }
    unharmed(traffic);
    drop(long_lived);
    let line = world.logged("routed", "outbound", source);
    assert_eq!((&line["security"], &line["transport"]), (&"mutual_tls".into(), &"hbone".into()), "{line}");
}

#[test]
fn the_root_is_replaced_unseen() {
    let world = short_lived(5);
    let to = world.address("web-b", V4);
    let long_lived = world.connect("client-r", to);
    who(&long_lived).unwrap();
    let traffic = world.steady("client-r", to);
    let roots = |node: &str| -> Vec<String> {
        let report = world.mesh.meshctl(node, &["identities"]).unwrap();
        let roots = report["roots"].as_array().unwrap().iter();
        roots.map(|root| root["serial"].as_str().unwrap().to_owned()).collect()
    };
    let [old] = roots("routed").try_into().unwrap();
    world.mesh.rotate_root().unwrap();
    for phase in ["announced", "retiring", "steady"] {
        eventually(phase, || {
            let shown = world.mesh.show_authority().unwrap();
            shown.contains(&format!("rotation: {phase}")).then_some(())
        });
        go_on(&traffic, 50);
        // Its tunnel was opened with a certificate of the old root, and ends when that is no longer trusted.
        if phase != "steady" {
            assert_eq!(who(&long_lived).unwrap().pod, "web-b");
        }
        if phase == "announced" {
            eventually("both nodes trust both", || {
                NODES.iter().all(|node| roots(node).len() == 2).then_some(())
            });
        }
    }
    eventually("both nodes trust the new root alone", || {
        NODES.iter().all(|node| roots(node).len() == 1 && !roots(node).contains(&old)).then_some(())
    });
    go_on(&traffic, 100);
    unharmed(traffic);
}

#[test]
fn an_agent_that_starts_without_the_authority_serves_its_own_node() {
    let mut world = World::up();
    NODES.iter().for_each(|node| certified(&world, node));
    let cache = world.mesh.state_directory("routed").join("configuration");
    eventually("the configuration is on disk", || cache.is_file().then_some(()));
    world.mesh.kill_control();
    world.mesh.kill_agent("routed");
    world.mesh.start_agent("routed").unwrap();
    last_error(&world, "routed", "client", &[]);

    assert_eq!(world.ask("client-r", world.address("web-r", V4)).pod, "web-r");
    let report = world.requests("client-r", service(), 40);
    assert_eq!(report.failed, 0, "{report}");
    assert!(report.pods.keys().eq(["web-r"]), "{report}");
    let across = world.address("web-b", V4);
    refused_for_want_of_identity(&world, "routed", "client-r", across, "has no certificate yet");
    // Without a certificate the server's agent resets the tunnel, during the connect or during the handshake.
    let line = refused(&world, "bridged", "client-b", world.address("web-r", V4));
    assert!(["TLSF", "UF"].contains(&line["response_flags"].as_str().unwrap()), "{line}");

    world.mesh.start_control().unwrap();
    certified(&world, "routed");
    assert_eq!(world.ask("client-r", across).pod, "web-b");
    assert_eq!(world.ask("client-b", world.address("web-r", V4)).pod, "web-r");
}

#[test]
fn a_token_certifies_only_pods_of_its_own_node() {
    let mut world = World::lab();
    world.apply_usual();
    // A service account that no pod of the bridged node has.
    let alone = Manifests::new().pod(world.machine("client-r"), "alone");
    world.mesh.apply("client-r.yaml", alone.text()).unwrap();
    world.mesh.lend_token("routed", "bridged").unwrap();
    world.mesh.start().unwrap();
    let error = last_error(&world, "routed", "alone", &["bridged", "/ns/shop/sa/alone"]);
    let log = std::fs::read_to_string(world.mesh.agent_log("routed")).unwrap();
    assert!(log.lines().any(|line| line.contains("/ns/shop/sa/alone") && line.contains("bridged")), "{log}");
    assert_eq!(serial(&world, "routed", "alone"), None);
    let across = world.address("web-b", V4);
    refused_for_want_of_identity(&world, "routed", "client-r", across, &error);
}

/// Replaces a pod by another with its addresses, and waits until the agents of both nodes know.
fn replace(world: &World, pod: &str) {
    let address = world.machine(pod).address().unwrap().to_string();
    let known = |node: &str| -> Vec<Value> {
        let workloads = world.mesh.meshctl(node, &["workloads"]).unwrap();
        let workloads = workloads.as_array().unwrap().iter();
        let there = workloads.filter(|workload| {
            let mut addresses = workload["addresses"].as_array().unwrap().iter();
            addresses.any(|known| known.as_str().unwrap().ends_with(&address))
        });
        there.map(|workload| workload["identity"].clone()).collect()
    };
    world.mesh.withdraw(&format!("{pod}.yaml")).unwrap();
    for node in NODES {
        eventually(&format!("{node} forgets {pod}"), || known(node).is_empty().then_some(()));
    }
    let manifest = Manifests::new().pod(world.machine(pod), "heir");
    let manifest = manifest.text().replace(&format!("name: {pod}\n"), &format!("name: heir-of-{pod}\n"));
    world.mesh.apply("heir.yaml", &manifest).unwrap();
    for node in NODES {
        eventually(&format!("{node} knows the heir of {pod}"), || {
            known(node).iter().any(|who| who.as_str().unwrap().ends_with("/sa/heir")).then_some(())
        });
    }
    let Kind::Pod { node, .. } = world.machine(pod).kind() else { panic!("{pod} is no pod") };
    eventually("the heir is certified", || (status(world, node, "heir")["state"] == "valid").then_some(()));
}

#[test]
fn the_tunnel_to_a_pod_is_not_used_for_the_heir_of_its_address() {
    let world = World::up();
    let to = world.address("web-b", V4);
    let pooled = world.connect("client-r", to);
    who(&pooled).unwrap();
    replace(&world, "web-b");
    let stream = world.connect("client-r", to);
    let source = stream.local_addr().unwrap();
    assert_eq!(who(&stream).unwrap().pod, "web-b", "what answers has not changed, only whose it is");
    drop((stream, pooled));
    let line = world.logged("routed", "outbound", source);
    assert!(line["dst.identity"].as_str().unwrap().ends_with("/ns/shop/sa/heir"), "{line}");
    assert_eq!(line["security"], "mutual_tls", "{line}");
}

#[test]
fn what_a_pod_was_allowed_the_heir_of_its_address_is_not() {
    let world = World::up();
    let policy = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: clients, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  action: ALLOW
  rules:
    - from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]
";
    world.mesh.apply("policy.yaml", policy).unwrap();
    let to = world.address("web-b", V4);
    eventually("the policy holds", || world.try_ask("web-r", to).is_err().then_some(()));
    let pooled = world.connect("client-r", to);
    who(&pooled).unwrap();
    replace(&world, "client-r");
    let stream = world.connect("client-r", to);
    who(&stream).expect_err("the policy names another");
    eventually("the refusal names the heir", || {
        let refused = |line: &Value| line["direction"] == "inbound" && line["response_flags"] == "UAEX";
        let of_heir =
            |line: &Value| line["src.identity"].as_str().is_some_and(|who| who.ends_with("/sa/heir"));
        world.log("bridged").iter().any(|line| refused(line) && of_heir(line)).then_some(())
    });
}

#[test]
fn certificates_outlast_an_absent_authority_until_they_expire() {
    let mut world = short_lived(16);
    let (across, beside) = (world.address("web-b", V4), world.address("web-r", V4));
    let traffic = world.steady("client-r", across);
    renewed(&world);
    let before = unreachable(&world, "routed");
    world.mesh.kill_control();
    // A renewal that is due fails, which is at about half a life: the other half is left.
    // Whose renewal it is nobody can say: one request at a time looks for the authority.
    eventually("the authority is missed", || (unreachable(&world, "routed") > before).then_some(()));
    go_on(&traffic, 50);
    world.mesh.start_control().unwrap();
    renewed(&world);
    unharmed(traffic);

    world.mesh.kill_control();
    for (node, account) in NODES.into_iter().zip(["client", "web"]) {
        eventually(&format!("the certificate of {account} expires on {node}"), || {
            (status(&world, node, account)["state"] == "expired").then_some(())
        });
    }
    refused_for_want_of_identity(&world, "routed", "client-r", across, "expired at");
    assert_eq!(world.ask("client-r", beside).pod, "web-r");

    world.mesh.start_control().unwrap();
    NODES.iter().for_each(|node| certified(&world, node));
    assert_eq!(world.ask("client-r", across).pod, "web-b");
}
