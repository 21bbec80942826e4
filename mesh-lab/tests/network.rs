//! Every machine reaches every other, whatever the wiring, from its own address.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "test code"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use mesh_lab::{Lab, Machine, Topology};

/// Two nodes of each kind with two pods each, and a host outside.
fn lab(families: &str) -> Lab {
    let text = format!(
        "
name: net
families: {families}
nodes:
  - {{name: r1, cni: routed, pods: [{{name: r1a}}, {{name: r1b}}]}}
  - {{name: r2, cni: routed, pods: [{{name: r2a}}]}}
  - {{name: b1, cni: bridge, pods: [{{name: b1a}}, {{name: b1b}}]}}
  - {{name: b2, cni: bridge, bridgeNetfilter: false, pods: [{{name: b2a}}]}}
hosts:
  - name: outside
"
    );
    let begin = Instant::now();
    let lab = Lab::up(Topology::parse("net", &text).unwrap().unique()).unwrap();
    eprintln!("up in {:?}", begin.elapsed());
    lab
}

/// Connects, exchanges bytes, and tells which source address the server saw.
fn exchange(client: &Machine, server: &Machine, address: std::net::IpAddr) -> SocketAddr {
    let listener = server.namespace().tcp_listener(SocketAddr::new(address, 0)).unwrap();
    listener.set_nonblocking(false).unwrap();
    let target = listener.local_addr().unwrap();
    let client = client
        .namespace()
        .spawn("client", move || {
            let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(3))?;
            stream.write_all(b"ping")?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            std::io::Result::Ok(answer)
        })
        .unwrap();
    let (mut stream, peer) = listener.accept().unwrap();
    let mut asked = String::new();
    stream.read_to_string(&mut asked).unwrap();
    stream.write_all(asked.as_bytes()).unwrap();
    drop(stream);
    assert_eq!(client.join().unwrap().unwrap(), "ping");
    peer
}

fn everybody_reaches_everybody(families: &str, addresses: usize) {
    let lab = lab(families);
    for client in lab.machines() {
        for server in lab.machines() {
            assert_eq!(server.addresses().iter().count(), addresses);
            for (own, other) in client.addresses().iter().zip(server.addresses().iter()) {
                let seen = exchange(client, server, other).ip();
                // A bridge node calls its pods from the bridge's address, as nodes do.
                if client.name() != "b1" && client.name() != "b2" {
                    assert_eq!(seen, own, "{} to {}", client.name(), server.name());
                }
            }
        }
    }
    lab.down().unwrap();
}

#[test]
fn dual_stack() {
    everybody_reaches_everybody("dual", 2);
}

#[test]
fn one_family() {
    everybody_reaches_everybody("v4", 1);
    everybody_reaches_everybody("v6", 1);
}
