//! The echo server and the traffic generator, across a real network.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "test code"
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use mesh_lab::echo::Answer;
use mesh_lab::traffic::Load;
use mesh_lab::{Lab, Machine, Topology};

const BINARY: &str = env!("CARGO_BIN_EXE_mesh-lab");
const SOON: Duration = Duration::from_secs(10);

fn lab() -> Lab {
    let text = "
name: traffic
nodes:
  - {name: node1, pods: [{name: client}]}
  - {name: node2, cni: bridge, pods: [{name: web1}, {name: web2}]}
";
    Lab::up(Topology::parse("traffic", text).unwrap().unique()).unwrap()
}

/// `address:port` as in a URL.
fn at(server: IpAddr, port: u16) -> String {
    SocketAddr::new(server, port).to_string()
}

fn once<K: ToString>(key: K, count: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([(key.to_string(), count)])
}

#[test]
fn tells_who_answered_whom_over_what() {
    let lab = lab();
    let (client, server) = (lab.pod("client").unwrap(), lab.pod("web1").unwrap());
    let _echo = server.echo(8080).unwrap();
    for (own, other) in client.addresses().iter().zip(server.addresses().iter()) {
        let url = format!("http://{}/hello", at(other, 8080));
        let http = Load::http(&url).unwrap();
        for (load, protocol) in [
            (http.clone(), "HTTP/1.1"),
            (http.http2(), "HTTP/2.0"),
            (Load::tcp(&at(other, 8080)).unwrap(), "TCP"),
        ] {
            for (load, connections) in
                [(load.clone().connections(2), 2), (load.new_connection_per_request(), 20)]
            {
                let report = client.traffic(load.requests(20)).unwrap().finish();
                assert_eq!((report.succeeded, report.failed), (20, 0), "{report}");
                assert_eq!(report.connections, connections, "{report}");
                assert_eq!(report.pods, once("web1", 20));
                assert_eq!(report.sources, once(own, 20));
                assert_eq!(report.families, once(if own.is_ipv4() { "IPv4" } else { "IPv6" }, 20));
                assert_eq!(report.protocols, once(protocol, 20));
                assert!(report.latency.p50 > 0 && report.latency.max >= report.latency.p50, "{report}");
            }
        }
    }
}

#[test]
fn traffic_sees_failures_and_can_be_followed() {
    let lab = lab();
    let (client, server) = (lab.pod("client").unwrap(), lab.pod("web1").unwrap());
    let echo = server.echo(8080).unwrap();
    let load = Load::http(&format!("http://{}/", at(server.address().unwrap(), 8080))).unwrap();

    let traffic =
        client.traffic(load.clone().rate(500.0).timeout(SOON).new_connection_per_request()).unwrap();
    let before = traffic.wait_for(SOON, |report| report.succeeded >= 20).unwrap();
    assert_eq!(before.failed, 0, "{before}");
    assert!(traffic.progress().lately.succeeded >= 20);
    echo.stop().unwrap();
    let after = traffic.wait_for(SOON, |report| report.failed >= 3).unwrap();
    assert!(after.errors.contains_key("connect: connection refused"), "{after}");
    let report = traffic.stop();
    assert_eq!(report.requests, report.succeeded + report.failed);

    let _echo = server.echo(8080).unwrap();
    let address = at(server.address().unwrap(), 8080);
    let slow =
        Load::http(&format!("http://{address}/delay?ms=5000")).unwrap().timeout(Duration::from_millis(50));
    let report = client.traffic(slow.requests(1)).unwrap().finish();
    assert_eq!(report.errors, once("timeout", 1));
    let broken = Load::http(&format!("http://{address}/status?code=503")).unwrap();
    let report = client.traffic(broken.requests(3)).unwrap().finish();
    assert_eq!(report.errors, once("status 503", 3));
    assert_eq!(report.connections, 1, "a bad status is no broken connection");
}

#[test]
fn the_programs_do_the_same() {
    let lab = lab();
    let client = lab.pod("client").unwrap();
    let mut servers = Vec::new();
    for name in ["web1", "web2"] {
        let program = lab.pod(name).unwrap().program(BINARY).unwrap();
        let mut server = program.args(["echo", "--udp", "--listen", "80", "--name", name]).spawn().unwrap();
        server.wait_for_log("listens on [::]:80", SOON).unwrap();
        servers.push(server);
    }
    let web = |name: &str| at(lab.pod(name).unwrap().ipv6().unwrap().into(), 80);

    let url = format!("http://{}/echo", web("web1"));
    let curl =
        client.program("curl").unwrap().args(["-sS", "--data-binary", "some words", &url]).output().unwrap();
    assert_eq!(curl.stdout, "some words", "{}", curl.stderr);
    let url = format!("http://{}/bytes?n=100000", web("web2"));
    let curl = client.program("curl").unwrap().args(["-sS", &url]).output().unwrap();
    assert_eq!(curl.stdout.len(), 100_000);
    let url = format!("http://{}/path?query", web("web2"));
    let curl = client.program("curl").unwrap().args(["-sS", "-H", "x-test: yes", &url]).output().unwrap();
    let answer: Answer = serde_json::from_str(&curl.stdout).unwrap();
    assert_eq!((answer.pod.as_str(), answer.path.as_deref()), ("web2", Some("/path?query")));
    assert_eq!(answer.headers["x-test"], "yes");
    assert_eq!(answer.source.ip(), IpAddr::from(client.ipv6().unwrap()));

    let traffic =
        ["traffic", "http", &format!("http://{}/", web("web1")), "-n", "10", "--follow", "-o", "json"];
    let output = client.program(BINARY).unwrap().args(traffic).output().unwrap();
    assert!(output.status.success(), "{}", output.stderr);
    let last: serde_json::Value = serde_json::from_str(output.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(last["report"]["pods"]["web1"], 10, "{}", output.stdout);

    // A signal ends it with the result so far.
    let traffic = ["traffic", "tcp", &web("web2"), "--duration", "600", "--follow", "--interval", "0.05"];
    let mut traffic = client.program(BINARY).unwrap().args(traffic).spawn().unwrap();
    traffic.wait_for_log("\"web2\"", SOON).unwrap();
    let log = traffic.log_path().to_owned();
    assert!(traffic.stop(SOON).unwrap().success());
    assert!(std::fs::read_to_string(log).unwrap().contains("failed     0"));

    // Nobody listens: the exit status says so.
    let traffic = ["traffic", "tcp", &at(client.address().unwrap(), 9), "-n", "1"];
    let output = client.program(BINARY).unwrap().args(traffic).output().unwrap();
    assert!(
        !output.status.success() && output.stdout.contains("connect: connection refused"),
        "{}",
        output.stdout
    );
}

#[test]
fn raw_tcp_and_udp_are_echoed() {
    let lab = lab();
    let (client, server) = (lab.pod("client").unwrap(), lab.pod("web1").unwrap());
    let _echo = server.echo(9000).unwrap();
    for address in server.addresses().iter() {
        let target = SocketAddr::new(address, 9000);
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        assert!(half_closed_exchange(client, target, &sent) == sent, "all comes back after the client's end");
        assert_eq!(half_closed_exchange(client, target, b""), b"");
        // Begins as HTTP might, and is not.
        assert_eq!(half_closed_exchange(client, target, b"PO"), b"PO");

        let unspecified = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = client.namespace().udp_socket(unspecified.parse().unwrap()).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let ask = |text: &[u8]| {
            let mut buffer = [0; 2048];
            socket.send_to(text, target).unwrap();
            let (length, source) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(source, target);
            buffer[..length].to_vec()
        };
        assert_eq!(ask(b"a datagram"), b"a datagram");
        let answer: Answer = serde_json::from_slice(&ask(b"who\n")).unwrap();
        assert_eq!((answer.pod.as_str(), answer.protocol.as_str()), ("web1", "UDP"));
    }
}

/// Sends everything, closes the sending side, and reads to the end.
fn half_closed_exchange(client: &Machine, target: SocketAddr, sent: &[u8]) -> Vec<u8> {
    let exchange = || {
        let mut stream = TcpStream::connect_timeout(&target, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        let mut sender = stream.try_clone()?;
        std::thread::scope(|scope| {
            let sending =
                scope.spawn(move || sender.write_all(sent).and_then(|()| sender.shutdown(Shutdown::Write)));
            let mut received = Vec::new();
            stream.read_to_end(&mut received)?;
            sending.join().unwrap()?;
            Ok(received)
        })
    };
    let received: std::io::Result<Vec<u8>> = client.namespace().run(exchange).unwrap();
    received.unwrap()
}

#[test]
fn a_load_waits_for_the_first_answer_if_it_is_told_to() {
    let lab = lab();
    let (client, server) = (lab.pod("client").unwrap(), lab.pod("web1").unwrap());
    let url = format!("http://{}/", at(server.ipv4().unwrap().into(), 8080));
    let arguments = |wait: &str| {
        ["traffic", "http", &url, "--requests=5", "--output=json", wait].map(str::to_owned).to_vec()
    };
    let refused = client.program(BINARY).unwrap().args(arguments("--wait=0.2")).output().unwrap();
    assert!(!refused.status.success(), "{}", refused.stdout);
    assert!(refused.stderr.contains("within 200ms"), "{}", refused.stderr);

    let waiting = std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| client.program(BINARY).unwrap().args(arguments("--wait=10")).output().unwrap());
        let _echo = server.echo(8080).unwrap();
        waiting.join().unwrap()
    });
    let report: serde_json::Value = serde_json::from_str(&waiting.stdout).unwrap();
    assert_eq!((&report["succeeded"], &report["failed"]), (&5.into(), &0.into()), "{report}");
}
