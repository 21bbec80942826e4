//! What is encrypted, who is refused, and what becomes of connections when policy changes.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use mesh_lab::{Capture, UPLINK};
use serde_json::Value;

use crate::world::{DENY_ALL, PATIENCE, STRICT, VIPS, World, eventually, who};

const HBONE_PORT: u16 = 15008;
const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The pods `client-*` reach the pods `web-*`, at the usual port.
const CLIENTS_TO_WEB: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: clients, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  rules:
    - from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]
      to: [{operation: {ports: ['8080']}}]
";

impl World {
    /// Waits until a request is refused.
    fn until_refused(&self, from: &str, to: SocketAddr) {
        eventually(&format!("{from} is refused by {to}"), || self.try_ask(from, to).is_err().then_some(()));
    }

    /// Waits for the line of a refused connection on the server's side.
    fn refusal(&self, node: &str, source: &str) -> Value {
        let source = self.machine(source).ipv4().unwrap().to_string() + ":";
        eventually(&format!("a refusal of {source} on {node}"), || {
            self.log(node).into_iter().find(|line| {
                line["direction"] == "inbound"
                    && line["src.addr"].as_str().is_some_and(|address| address.starts_with(&source))
                    && line["response_flags"] != "-"
            })
        })
    }
}

#[test]
fn between_nodes_there_is_nothing_to_read() {
    let world = World::up();
    let payload =
        |number: usize| format!("the payload of connection {number}, which nobody else should read");
    let send = |from: &str, to: SocketAddr, number: usize| {
        let mut stream = world.connect(from, to);
        stream.write_all(payload(number).as_bytes()).unwrap();
        who(&stream).ok();
    };
    let captures: Vec<_> = ["routed", "bridged"]
        .map(|node| Capture::of(world.machine(node).namespace(), UPLINK).start().unwrap())
        .into();
    let mut number = 0;
    for family in VIPS.map(|vip| vip.parse::<IpAddr>().unwrap()) {
        for (from, to) in [("client-r", "web-b"), ("client-b", "web-r")] {
            send(from, world.address(to, family), number);
            number += 1;
        }
    }
    // What the mesh does not carry is readable: the capture is not blind.
    send("legacy-r", world.address("legacy-b", V4), number);

    for capture in captures {
        let captured = capture.stop().unwrap();
        for hidden in 0..number {
            assert!(!captured.contains(payload(hidden).as_bytes()), "connection {hidden}");
        }
        assert!(captured.contains(payload(number).as_bytes()), "the counter-proof");
        let tunnels = captured.streams().iter().filter(|stream| stream.to().port() == HBONE_PORT);
        assert!(tunnels.count() >= 2, "a tunnel for each family and direction");
    }
}

#[test]
fn strict_pods_take_no_plain_text() {
    let world = World::up();
    let to = world.address("web-r", V4);
    assert_eq!(world.ask("legacy-r", to).pod, "web-r", "permissive by default");
    world.mesh.apply("strict.yaml", STRICT).unwrap();
    for from in ["legacy-r", "legacy-b", "outside"] {
        world.until_refused(from, to);
        let line = world.refusal("routed", from);
        assert_eq!(line["response_flags"], "MTLS", "{line}");
        let error = line["error"].as_str().unwrap();
        assert!(error.contains("PeerAuthentication shop/default"), "{error}");
    }
    for from in ["client-r", "client-b"] {
        assert_eq!(world.ask(from, to).pod, "web-r");
    }
    // A port may differ.
    let exception = STRICT.replace("metadata: {name: default", "metadata: {name: web").replace(
        "spec: {mtls: {mode: STRICT}}",
        "spec: {selector: {matchLabels: {app: web}}, portLevelMtls: {8080: {mode: PERMISSIVE}}}",
    );
    world.mesh.apply("exception.yaml", &exception).unwrap();
    eventually("plain text is taken at the port", || world.try_ask("legacy-b", to).ok());
}

/// Who is let through by [`CLIENTS_TO_WEB`], with passage in the kernel and without.
fn decisions(passage: &str) -> Vec<(String, String, bool)> {
    let mut world = World::lab();
    world.mesh = world.mesh.agent_arguments([format!("--in-kernel-passage={passage}")]);
    world.apply_usual();
    world.mesh.start().unwrap();
    world.mesh.apply("nobody.yaml", DENY_ALL).unwrap();
    world.mesh.apply("clients.yaml", CLIENTS_TO_WEB).unwrap();
    world.until_refused("web-r", world.address("client-r", V4));
    world.until_refused("web-b", world.address("client-b", V4));
    eventually("the clients are let through", || {
        let answers =
            ["client-r", "client-b"].map(|from| world.try_ask(from, world.address("web-r", V4)).is_ok());
        answers.iter().all(|answered| *answered).then_some(())
    });
    let mut decisions = Vec::new();
    for from in ["client-r", "web-r", "legacy-r", "client-b", "web-b"] {
        for to in ["client-r", "web-r", "client-b", "web-b"].into_iter().filter(|to| *to != from) {
            // Twice: the second connection of a pair may pass in the kernel.
            let answered = [(); 2].map(|()| world.try_ask(from, world.address(to, V4)).is_ok());
            assert_eq!(answered[0], answered[1], "{from} to {to}");
            decisions.push((from.to_owned(), to.to_owned(), answered[0]));
        }
    }
    let line = world.refusal("routed", "web-b");
    assert_eq!(line["response_flags"], "UAEX", "{line}");
    assert!(line["error"].as_str().unwrap().contains("AuthorizationPolicy shop/nobody"), "{line}");
    decisions
}

#[test]
fn policy_decides_the_same_in_the_kernel_and_in_the_agent() {
    let with = decisions("on");
    assert_eq!(with, decisions("off"));
    for (from, to, allowed) in with {
        assert_eq!(allowed, from.starts_with("client") && to.starts_with("web"), "{from} to {to}");
    }
}

#[test]
fn a_change_of_policy_ends_open_connections() {
    let world = World::up();
    let web = ["web-r", "web-b"].map(|pod| world.address(pod, V4));
    // The first connection of a pair goes through the agent, the next one on the same node passes in the kernel.
    let mut open: Vec<TcpStream> = Vec::new();
    for to in web {
        open.push(world.connect("client-r", to));
        who(open.last().unwrap()).unwrap();
    }
    eventually("a connection passes in the kernel", || {
        let stream = world.connect("client-r", web[0]);
        who(&stream).unwrap();
        open.push(stream);
        let shown = world.mesh.meshctl("routed", &["connections"]).unwrap();
        shown.to_string().contains("\"kernel\"").then_some(())
    });
    let other = world.connect("client-b", web[1]);
    who(&other).unwrap();

    let only_client_b = DENY_ALL.replace("nobody", "only-one").replace(
        "spec: {}",
        &format!(
            "spec: {{rules: [{{from: [{{source: {{ipBlocks: [{}]}}}}]}}]}}",
            world.machine("client-b").ipv4().unwrap()
        ),
    );
    let begin = Instant::now();
    world.mesh.apply("only-one.yaml", &only_client_b).unwrap();
    for mut stream in open {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let ended = stream.read(&mut [0; 64]);
        assert!(
            matches!(&ended, Ok(0))
                || ended.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset),
            "{ended:?}"
        );
    }
    println!("all ended {:?} after the file was written", begin.elapsed());
    who(&other).expect("what is still allowed goes on");
}

#[test]
fn a_policy_that_cannot_be_used_denies_and_says_so() {
    let world = World::up();
    let custom = DENY_ALL
        .replace("nobody", "custom")
        .replace("spec: {}", "spec: {action: CUSTOM, provider: {name: x}}");
    world.mesh.apply("custom.yaml", &custom).unwrap();
    let to = world.address("web-b", V4);
    world.until_refused("client-r", to);
    let line = world.refusal("bridged", "client-r");
    let error = line["error"].as_str().unwrap();
    assert!(error.contains("AuthorizationPolicy shop/custom") && error.contains("CUSTOM"), "{error}");
    world.mesh.withdraw("custom.yaml").unwrap();
    eventually("it is gone", || world.try_ask("client-r", to).ok());
}

#[test]
fn the_port_of_tunnels_is_for_the_mesh_only() {
    let world = World::up();
    let at = |pod: &str| SocketAddr::new(world.machine(pod).ipv4().unwrap().into(), HBONE_PORT);
    // A pod of the mesh, on its own node and on the other; one that is not; somebody outside.
    for (from, to) in
        [("client-r", "web-r"), ("client-r", "web-b"), ("legacy-r", "web-r"), ("outside", "web-b")]
    {
        let address = at(to);
        let dialled = world.machine(from).namespace().run(|| TcpStream::connect_timeout(&address, PATIENCE));
        // Who is refused at once may hear of it before `connect` has returned.
        let Ok(mut stream) = dialled.unwrap() else { continue };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.windows(3).any(|bytes| bytes == b"200"), "{from} to {to}: {answer:?}");
    }
    let line = world.refusal("routed", "legacy-r");
    assert_eq!(line["response_flags"], "TLSF", "{line}");
    // Nobody listens there for the node itself.
    let from_node = world.machine("routed").namespace();
    let to = at("web-r");
    let dialled = from_node.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(2))).unwrap();
    assert!(dialled.is_err());
}

#[test]
fn a_thousand_policies_change_under_load() {
    let world = World::up();
    world.mesh.apply("nobody.yaml", DENY_ALL).unwrap();
    world.mesh.apply("clients.yaml", CLIENTS_TO_WEB).unwrap();
    let (web, client) = (world.address("web-b", V4), world.address("client-b", V4));
    world.until_refused("web-r", client);
    eventually("the clients are let through", || world.try_ask("client-r", web).ok());

    let traffic = world.steady("client-r", web);
    for round in 0..3 {
        let policies: String = (0..1000)
            .map(|number| {
                let principal = format!("cluster.local/ns/other/sa/account-{number}-{round}");
                CLIENTS_TO_WEB
                    .replace("name: clients", &format!("name: many-{number}"))
                    .replace("cluster.local/ns/shop/sa/client", &principal)
                    + "---"
            })
            .collect();
        world.mesh.apply("many.yaml", &policies).unwrap();
        let so_far = traffic.report().succeeded;
        traffic.wait_for(PATIENCE, |report| report.succeeded >= so_far + 50).unwrap();
        assert!(world.try_ask("web-r", client).is_err(), "what was forbidden stays so");
    }
    eventually("the agent has them all", || {
        let known = world.mesh.meshctl("bridged", &["policies", "web-b"]).unwrap();
        (known[0]["policies"].as_array().unwrap().len() == 1002).then_some(())
    });
    let report = traffic.stop();
    assert_eq!(report.failed, 0, "{report}");
}
