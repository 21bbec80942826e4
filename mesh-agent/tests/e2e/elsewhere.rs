//! Connections in plain text that pass in the kernel with one end on the node: from pods outside of the mesh, to those,
//! and to what the mesh does not know.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;

use mesh_lab::{Manifests, UPLINK};
use serde_json::Value;

use crate::passage::{answer_length, echo};
use crate::world::{DENY_ALL, VIPS, World, eventually, same_family, who};

/// The node whose agent lets connections pass.
const NODE: &str = "routed";

fn families() -> [IpAddr; 2] {
    VIPS.map(|vip| vip.parse().unwrap())
}

/// What the agent says of the open connection of this source.
fn open(world: &World, source: SocketAddr) -> Option<Value> {
    let connections = world.mesh.meshctl(NODE, &["connections"]).unwrap();
    let source = source.to_string();
    let mut connections = connections.as_array().unwrap().iter();
    connections.find(|known| known["source"]["address"] == source).cloned()
}

/// Opens connections until the kernel passes one, and returns that.
fn passed(world: &World, from: &str, to: SocketAddr) -> TcpStream {
    eventually(&format!("a connection of {from} to {to} is passed in the kernel"), || {
        let stream = world.connect(from, to);
        who(&stream).unwrap();
        let source = stream.local_addr().unwrap();
        let seen = eventually("the connection is known", || open(world, source));
        (seen["transport"] == "kernel").then_some(stream)
    })
}

/// Sends bytes there and back, and waits until all that the connection has carried is counted.
fn carries(world: &World, stream: &TcpStream, direction: &str) -> Value {
    // `passed` has asked once already.
    let answer = answer_length(stream);
    echo(stream, 100_000);
    let (to_server, to_client) = (8 + 100_000, 2 * answer + 100_000);
    let source = stream.local_addr().unwrap();
    eventually(&format!("{to_server} and {to_client} bytes of {source}"), || {
        let seen = open(world, source)?;
        assert_eq!((&seen["direction"], &seen["transport"]), (&direction.into(), &"kernel".into()), "{seen}");
        let is = seen["bytes_to_server"] == to_server && seen["bytes_to_client"] == to_client;
        is.then_some(seen)
    })
}

#[test]
fn plain_text_from_another_node_passes_until_policy_ends_it() {
    let world = World::up();
    let mut streams = Vec::new();
    for family in families() {
        let stream = passed(&world, "legacy-b", world.address("web-r", family));
        let source = stream.local_addr().unwrap();
        assert_eq!(who(&stream).unwrap().source, source, "the server sees who calls");
        streams.push((stream, source));
    }
    for (stream, source) in &streams {
        // As if the agent had relayed it.
        echo(stream, 5_000);
        let seen = open(&world, *source).unwrap();
        assert_eq!((&seen["direction"], &seen["security"]), (&"inbound".into(), &"none".into()), "{seen}");
    }

    world.mesh.apply("deny.yaml", DENY_ALL).unwrap();
    for (stream, source) in streams {
        // The pod is told at once, the other end with its next packet.
        let line = world.logged(NODE, "inbound", source);
        assert_eq!(
            (&line["response_flags"], &line["transport"]),
            (&"UAEX".into(), &"kernel".into()),
            "{line}"
        );
        assert!(line["error"].as_str().unwrap().contains("shop/nobody"), "{line}");
        assert_eq!(line["dst.identity"], "spiffe://cluster.local/ns/shop/sa/web", "{line}");
        assert_eq!(line["src.identity"], Value::Null, "{line}");
        who(&stream).expect_err("it is over");
        world.try_ask("legacy-b", world.address("web-r", source.ip())).expect_err("nor is there another");
    }
}

#[test]
fn plain_text_to_another_node_passes_and_outlives_the_agent_and_enrolment() {
    let mut world = World::up();
    let streams = families().map(|family| {
        let stream = passed(&world, "client-r", world.address("legacy-b", family));
        assert_eq!(who(&stream).unwrap().source, stream.local_addr().unwrap());
        stream
    });
    world.mesh.kill_agent(NODE);
    for stream in &streams {
        echo(stream, 5_000);
    }
    world.mesh.start_agent(NODE).unwrap();
    for stream in &streams {
        echo(stream, 5_000);
        let source = stream.local_addr().unwrap();
        let seen = eventually("the next agent knows it", || open(&world, source));
        assert_eq!(
            (&seen["direction"], &seen["transport"]),
            (&"outbound".into(), &"kernel".into()),
            "{seen}"
        );
        assert_eq!(seen["security"], "none", "{seen}");
    }

    // From now on there is a tunnel to the pod.
    let everybody = Manifests::new().namespace("shop", true).namespace("legacy", true);
    world.mesh.apply("namespaces.yaml", everybody.text()).unwrap();
    for (family, stream) in families().into_iter().zip(&streams) {
        let to = world.address("legacy-b", family);
        eventually("new connections are encrypted", || {
            let stream = world.connect("client-r", to);
            let source = stream.local_addr().unwrap();
            who(&stream).ok()?;
            (open(&world, source)?["security"] == "mutual_tls").then_some(())
        });
        echo(stream, 5_000);
    }
}

#[test]
fn what_passes_is_counted_to_the_byte_at_one_end() {
    let world = World::up();
    for family in families() {
        for (from, to, direction) in [("legacy-b", "web-r", "inbound"), ("client-r", "legacy-b", "outbound")]
        {
            let stream = passed(&world, from, world.address(to, family));
            let seen = carries(&world, &stream, direction);
            let source = stream.local_addr().unwrap();
            drop(stream);
            let line = world.logged(NODE, direction, source);
            assert_eq!(line["response_flags"], "-", "{line}");
            assert_eq!(
                (&line["bytes_recv"], &line["bytes_sent"]),
                (&seen["bytes_to_server"], &seen["bytes_to_client"]),
                "{line}"
            );
        }
    }
}

/// Has the node translate what its pods send out of it, as nodes do whose pods' addresses mean nothing outside.
fn masquerade(world: &World) {
    let tables = ["ip", "ip6"].map(|family| {
        format!(
            "table {family} outside {{ chain postrouting {{ type nat hook postrouting priority srcnat; \
             oifname {UPLINK} masquerade; }}; }}\n"
        )
    });
    let script = format!("nft -f - <<END\n{}END", tables.concat());
    let run = || Command::new("sh").args(["-ec", &script]).output();
    let output = world.machine(NODE).namespace().run(run).unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_the_node_translates_passes_and_is_counted() {
    let world = World::up();
    masquerade(&world);
    for family in families() {
        let stream = passed(&world, "client-r", world.address("outside", family));
        let seen = who(&stream).unwrap().source;
        assert_eq!(seen.ip(), same_family(world.machine(NODE), family), "as from the agent");
        let client = same_family(world.machine("client-r"), family);
        assert_eq!(stream.local_addr().unwrap().ip(), client, "which the client does not see");
        drop(stream);

        let stream = passed(&world, "client-r", world.address("outside", family));
        carries(&world, &stream, "outbound");
        let source = stream.local_addr().unwrap();
        drop(stream);
        assert_eq!(world.logged(NODE, "outbound", source)["response_flags"], "-");
    }
}
