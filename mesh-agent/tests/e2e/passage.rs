//! What the kernel does for pods by itself: balancing when they connect, and passing what stays on the node.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::world::{SERVICE_PORT, VIPS, World, eventually, who};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Set where the test program is to be a client in a pod: the address, and how often to connect.
const TASK: &str = "MESH_E2E_CLIENT";

/// One connection of a client in a pod.
struct Found {
    server: String,
    peer: SocketAddr,
    local: SocketAddr,
}

/// Has a process of a pod, in its cgroup, connect `times` one after the other.
fn connect_from(world: &World, pod: &str, to: SocketAddr, times: usize) -> Vec<Found> {
    let program = world.machine(pod).program(std::env::current_exe().unwrap()).unwrap();
    let output = program
        .args(["--exact", "passage::runs_in_a_pod", "--nocapture"])
        .env(TASK, format!("{to} {times}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
    let found: Vec<_> =
        output.stdout.lines().filter_map(|line| line.strip_prefix("found ")).map(parse).collect();
    assert_eq!(found.len(), times, "{}{}", output.stdout, output.stderr);
    found
}

fn parse(line: &str) -> Found {
    let words: Vec<_> = line.split(' ').collect();
    Found { server: words[0].to_owned(), peer: words[1].parse().unwrap(), local: words[2].parse().unwrap() }
}

/// Not a test but the client in a pod; does nothing where it is not asked to be one.
#[test]
fn runs_in_a_pod() {
    let Ok(task) = std::env::var(TASK) else { return };
    let (to, times) = task.split_once(' ').unwrap();
    let (to, times): (SocketAddr, usize) = (to.parse().unwrap(), times.parse().unwrap());
    println!();
    for _ in 0..times {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
        let server = who(&stream).unwrap().pod;
        println!("found {server} {} {}", stream.peer_addr().unwrap(), stream.local_addr().unwrap());
    }
}

/// Connects from `client-r` to the service, and checks what everybody is told, in both families.
fn service_is_balanced(world: &World, balanced_at_connect: bool) {
    eventually("client-r's connections are balanced, or not", || {
        let pods = world.mesh.meshctl("routed", &["pods"]).unwrap();
        let pods = pods.as_array().unwrap();
        let pod = pods.iter().find(|pod| pod["name"] == "client-r")?;
        (pod["balanced_at_connect"] == balanced_at_connect).then_some(())
    });
    for vip in VIPS {
        let to = SocketAddr::new(vip.parse().unwrap(), SERVICE_PORT);
        let mut shares: BTreeMap<String, usize> = BTreeMap::new();
        let mut passed = 0;
        for Found { server, peer, local } in connect_from(world, "client-r", to, 60) {
            assert_eq!(peer, to, "the client sees the address it asked for");
            let line = world.logged("routed", "outbound", local);
            assert_eq!(line["dst.service"], "web.shop.svc.cluster.local", "{line}");
            assert_eq!(line["response_flags"], "-", "{line}");
            assert_eq!(line["dst.workload"], server, "{line}");
            let security = if server == "web-r" { "same_node" } else { "mutual_tls" };
            assert_eq!(line["security"], security, "{line}");
            passed += usize::from(line["transport"] == "kernel");
            *shares.entry(server).or_default() += 1;
        }
        // Half of 60 is 30; each bound is more than four standard deviations away.
        assert!(shares.len() == 2 && shares.values().all(|share| (13..=47).contains(share)), "{shares:?}");
        if balanced_at_connect {
            // The first ones teach the kernel.
            assert!(passed > 0, "{shares:?}: none was passed in the kernel");
        } else {
            assert_eq!(passed, 0, "the agent chooses");
        }
    }
}

#[test]
fn services_are_balanced_when_pods_connect() {
    service_is_balanced(&World::up(), true);
}

#[test]
fn services_are_balanced_by_the_agent_where_the_kernel_shall_not() {
    let World { echoes, mesh } = World::lab();
    let mesh = mesh.agent_arguments(["--connect-time-balancing", "off"]);
    let mut world = World { echoes, mesh };
    world.apply_usual();
    world.mesh.start().unwrap();
    service_is_balanced(&world, false);
}

/// What the agent of `routed` says of the open connection of this source.
fn open(world: &World, direction: &str, source: SocketAddr) -> Option<Value> {
    let connections = world.mesh.meshctl("routed", &["connections"]).unwrap();
    let source = source.to_string();
    let mut connections = connections.as_array().unwrap().iter();
    connections.find(|known| known["direction"] == direction && known["source"]["address"] == source).cloned()
}

/// Opens connections from `client-r` to `web-r` until the kernel passes one, and returns that.
fn passed(world: &World) -> TcpStream {
    let to = world.address("web-r", V4);
    eventually("a connection is passed in the kernel", || {
        let stream = world.connect("client-r", to);
        who(&stream).unwrap();
        let source = stream.local_addr().unwrap();
        let seen = eventually("the connection is known", || open(world, "outbound", source));
        (seen["transport"] == "kernel").then_some(stream)
    })
}

/// Waits until both sides' records of an open connection have these counts.
fn counted(world: &World, source: SocketAddr, to_server: u64, to_client: u64) {
    for direction in ["outbound", "inbound"] {
        eventually(&format!("{direction}: {to_server} and {to_client} bytes"), || {
            let seen = open(world, direction, source)?;
            let is = seen["bytes_to_server"] == to_server && seen["bytes_to_client"] == to_client;
            (is && seen["transport"] == "kernel" && seen["security"] == "same_node").then_some(())
        });
    }
}

/// Sends bytes and takes them back.
pub(crate) fn echo(mut stream: &TcpStream, bytes: usize) {
    // `who` made the connection one of lines.
    let sent = [vec![b'x'; bytes - 1], vec![b'\n']].concat();
    let mut back = vec![0; bytes];
    stream.write_all(&sent).unwrap();
    stream.read_exact(&mut back).unwrap();
    assert_eq!(sent, back);
}

/// Asks who answers, and returns the length of the answer.
pub(crate) fn answer_length(stream: &TcpStream) -> u64 {
    let mut line = serde_json::to_string(&who(stream).unwrap()).unwrap();
    line.push('\n');
    line.len().try_into().unwrap()
}

#[test]
fn passed_connections_are_counted_to_the_byte() {
    let world = World::up();
    let stream = passed(&world);
    let source = stream.local_addr().unwrap();
    // `passed` has asked once already.
    let answer = answer_length(&stream);
    echo(&stream, 100_000);
    let (to_server, to_client) = (8 + 100_000, 2 * answer + 100_000);
    counted(&world, source, to_server, to_client);

    drop(stream);
    for direction in ["outbound", "inbound"] {
        let line = world.logged("routed", direction, source);
        for (key, value) in [
            ("transport", "kernel"),
            ("security", "same_node"),
            ("response_flags", "-"),
            ("src.identity", "spiffe://cluster.local/ns/shop/sa/client"),
            ("dst.identity", "spiffe://cluster.local/ns/shop/sa/web"),
        ] {
            assert_eq!(line[key], value, "{key} of {line}");
        }
        assert_eq!(
            (&line["bytes_recv"], &line["bytes_sent"]),
            (&to_server.into(), &to_client.into()),
            "{line}"
        );
    }
}

#[test]
fn passed_connections_survive_the_agent() {
    let mut world = World::up();
    let stream = passed(&world);
    world.mesh.kill_agent("routed");
    echo(&stream, 5_000);
    world.mesh.start_agent("routed").unwrap();
    echo(&stream, 5_000);
}

#[test]
fn passed_connections_survive_the_end_of_enrolment() {
    let world = World::up();
    let stream = passed(&world);
    let manifest = mesh_lab::Manifests::new().pod(world.machine("web-r"), "web");
    let outside =
        manifest.text().replace("labels: {app: web}", "labels: {app: web, istio.io/dataplane-mode: none}");
    world.mesh.apply("web-r.yaml", &outside).unwrap();
    eventually("web-r left the mesh", || {
        let pods = world.mesh.meshctl("routed", &["pods"]).unwrap();
        let pods = pods.as_array().unwrap();
        pods.iter().any(|pod| pod["name"] == "web-r" && pod["state"] != "enrolled").then_some(())
    });
    echo(&stream, 50_000);
    assert_eq!(world.ask("client-r", world.address("web-r", V4)).pod, "web-r");
    echo(&stream, 50_000);
}

/// Opens a connection of `client-r` from a port of its choice.
fn connect_from_port(world: &World, port: u16, to: SocketAddr) -> TcpStream {
    let client = world.machine("client-r");
    let own = SocketAddr::new(client.ipv4().unwrap().into(), port);
    let stream = client.namespace().run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        socket.bind(&own.into()).unwrap();
        socket.connect_timeout(&to.into(), Duration::from_secs(5)).unwrap();
        TcpStream::from(socket)
    });
    stream.unwrap()
}

#[test]
fn the_agent_takes_no_port_that_a_passed_connection_has() {
    const PORTS: std::ops::Range<u16> = 40_000..40_016;
    let World { echoes, mesh } = World::lab();
    let mesh = mesh.agent_arguments(["--connect-time-balancing", "off"]);
    let mut world = World { echoes, mesh };
    world.apply_usual();
    world.mesh.start().unwrap();
    let _first = passed(&world);
    let range = format!("{} {}", PORTS.start, PORTS.end - 1);
    let node = world.machine("routed").namespace();
    node.run(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).unwrap()).unwrap();

    // Three of four ports are the client's own, towards the same server.
    let server = world.address("web-r", V4);
    let taken: Vec<_> = PORTS.filter(|port| port % 4 != 0).collect();
    let _straight: Vec<_> = taken
        .iter()
        .map(|port| connect_from_port(&world, *port, server))
        .inspect(|stream| drop(who(stream)))
        .collect();

    // To the service the agent connects, on the client's behalf.
    let vip = SocketAddr::new(VIPS[0].parse().unwrap(), SERVICE_PORT);
    let mut near = 0;
    while near < 2 {
        let stream = world.connect("client-r", vip);
        let own = stream.local_addr().unwrap();
        near += usize::from(who(&stream).unwrap().pod == "web-r");
        drop(stream);
        let line = world.logged("routed", "outbound", own);
        assert_eq!((&line["attempts"], &line["response_flags"]), (&1.into(), &"-".into()), "{line}");
    }
}
