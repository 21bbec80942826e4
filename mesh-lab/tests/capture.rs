//! What passes a device is seen: on uplinks, bridges and veths, over either family, however it is cut into segments.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "test code"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use mesh_lab::{Capture, CaptureError, Lab, Machine, POD_BRIDGE, Topology, UPLINK};

fn lab() -> Lab {
    let text = "
name: cap
families: dual
nodes:
  - {name: r1, cni: routed, pods: [{name: client}]}
  - {name: b1, cni: bridge, pods: [{name: server}, {name: other}]}
";
    Lab::up(Topology::parse("cap", text).unwrap().unique()).unwrap()
}

/// Sends these parts, each in a segment of its own, and waits until the server has them all; returns the server's address.
fn send(client: &Machine, server: &Machine, address: IpAddr, parts: &'static [&'static [u8]]) -> SocketAddr {
    let listener = server.namespace().tcp_listener(SocketAddr::new(address, 0)).unwrap();
    listener.set_nonblocking(false).unwrap();
    let target = listener.local_addr().unwrap();
    let client = client
        .namespace()
        .spawn("client", move || {
            let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(3))?;
            stream.set_nodelay(true)?;
            for part in parts {
                stream.write_all(part)?;
                // The server has this part before the next is sent, so that no two travel together.
                stream.read_exact(&mut [0])?;
            }
            std::io::Result::Ok(())
        })
        .unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    for part in parts {
        let mut received = vec![0; part.len()];
        stream.read_exact(&mut received).unwrap();
        stream.write_all(b".").unwrap();
    }
    client.join().unwrap().unwrap();
    target
}

#[test]
fn a_payload_is_found_on_every_kind_of_device_however_it_is_cut() {
    let lab = lab();
    let machine = |name: &str| lab.machine(name).unwrap();
    let (client, server) = (machine("client"), machine("server"));
    for address in server.addresses().iter() {
        let captures =
            [("r1", UPLINK), ("b1", UPLINK), ("b1", POD_BRIDGE), ("client", UPLINK)].map(|(name, device)| {
                (name, device, Capture::of(machine(name).namespace(), device).start().unwrap())
            });
        let target = send(client, server, address, &[b"a sec", b"ret in th", b"ree segments"]);
        for (name, device, capture) in captures {
            let seen = capture.stop().unwrap();
            assert!(seen.contains(b"a secret in three segments"), "{name} {device} {address}");
            assert!(!seen.contains(b"something else"));
            assert!(!seen.is_tls13_only());
            let to_server: Vec<_> = seen.streams().iter().filter(|stream| stream.to() == target).collect();
            assert_eq!(to_server.len(), 1, "{name} {device} {address}");
            assert_eq!((to_server[0].len(), to_server[0].first(5)), (26, b"a sec".as_slice()));
            let answers = seen.streams().iter().find(|stream| stream.from() == target).unwrap();
            assert_eq!(answers.first(10), b"...");
        }
    }
}

#[test]
fn only_what_is_selected_is_kept_and_a_file_is_written() {
    let lab = lab();
    let machine = |name: &str| lab.machine(name).unwrap();
    let (client, server, other) = (machine("client"), machine("server"), machine("other"));
    let node = machine("r1").namespace();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("uplink.pcap");
    let of_server = Capture::of(node, UPLINK).hosts(server.addresses().iter()).file(&path).start().unwrap();
    let of_port = Capture::of(node, UPLINK).ports([1]).start().unwrap();
    let address = |machine: &Machine| machine.address().unwrap();
    send(client, server, address(server), &[b"to the server"]);
    send(client, other, address(other), &[b"to the other"]);
    let seen = of_server.stop().unwrap();
    assert!(seen.contains(b"to the server") && !seen.contains(b"to the other"));
    assert_eq!(of_port.stop().unwrap().packets(), 0);

    let file = std::fs::read(&path).unwrap();
    assert_eq!(file[..4], 0xa1b2_3c4d_u32.to_ne_bytes());
    let mut rest = &file[24..];
    let mut packets = 0;
    while !rest.is_empty() {
        let kept = u32::from_ne_bytes(rest[8..12].try_into().unwrap());
        assert_eq!(rest[16] >> 4, 4, "it begins with its IP header");
        rest = &rest[16 + usize::try_from(kept).unwrap()..];
        packets += 1;
    }
    assert_eq!(packets, seen.packets());
}

#[test]
fn a_capture_that_is_not_complete_says_nothing() {
    let lab = lab();
    let machine = |name: &str| lab.machine(name).unwrap();
    let (client, server) = (machine("client"), machine("server"));
    let capture = Capture::of(client.namespace(), UPLINK).limit(150).start().unwrap();
    send(client, server, server.address().unwrap(), &[b"too much"]);
    let error = capture.stop().unwrap_err();
    assert!(matches!(error, CaptureError::Incomplete { lost: 0, left_out, .. } if left_out > 0), "{error}");

    let error = Capture::of(client.namespace(), "nowhere0").start().unwrap_err();
    assert!(error.to_string().contains("nowhere0"), "{error}");
}
