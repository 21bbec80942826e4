//! Connections that pass: they do on a verdict only, and end when it is taken back.

use std::net::SocketAddr;

use super::*;
use crate::steering::PassageKey;

/// Makes `SERVER` an enrolled pod on another device, to whose port 80 `CLIENT` may connect past the agent.
fn let_pass(bench: &mut Bench) -> [PassageKey; 2] {
    let pod = Pod { id: 2, flags: ENROLLED, device: DEVICE + 1, rules: 0 };
    let pairs: [(IpAddr, IpAddr); 2] = [(CLIENT.into(), SERVER.into()), (CLIENT_V6.into(), SERVER_V6.into())];
    pairs.map(|(source, server)| {
        bench.maps.set_pod(&Address::from(server), pod).unwrap();
        let key = PassageKey { source, destination: SocketAddr::new(server, 80) };
        assert!(bench.passages.allow(key).unwrap());
        key
    })
}

#[test]
fn a_verdict_lets_a_connection_pass() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let keys = let_pass(&mut bench);
        // With an agent and without one.
        for [first, later, other] in [
            [
                syn(CLIENT, SERVER),
                ipv4(CLIENT, SERVER, TCP, 0, 0, &tcp(80, ACK)),
                ipv4(CLIENT, SERVER, TCP, 0, 0, &tcp(81, SYN)),
            ],
            [
                syn_v6(CLIENT_V6, SERVER_V6),
                ipv6(CLIENT_V6, SERVER_V6, TCP, &tcp(80, ACK)),
                ipv6(CLIENT_V6, SERVER_V6, TCP, &tcp(81, SYN)),
            ],
        ] {
            bench.expect(&later, Outcome::NoSocket, NEXT);
            bench.expect(&first, Outcome::Verdict, NEXT);
            for packet in [&first, &later] {
                bench.expect(packet, Outcome::Flow, NEXT);
            }
            bench.expect(&other, Outcome::FailOpen, NEXT);
            let _listeners = bench.listen();
            bench.expect(&other, Outcome::Outbound, REDIRECT);
            bench.expect(&first, Outcome::Flow, NEXT);
        }
        let _listeners = bench.listen();
        for (key, packet) in keys.into_iter().zip([
            ipv4(CLIENT, SERVER, TCP, 0, 0, &from_port(50_000)),
            ipv6(CLIENT_V6, SERVER_V6, TCP, &from_port(50_000)),
        ]) {
            bench.passages.suspend(key).unwrap();
            bench.expect(&packet, Outcome::Outbound, REDIRECT);
        }
    });
}

/// One header for both families: addresses from and to.
fn packet(from: IpAddr, to: IpAddr, header: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(from, to, TCP, 0, 0, header),
        (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(from, to, TCP, header),
        _ => panic!("one family"),
    }
}

/// What the other end of a connection sends, whose client has `tcp` send.
fn answer(port: u16, flags: u8) -> Vec<u8> {
    let mut header = tcp(40_000, flags);
    header[..2].copy_from_slice(&port.to_be_bytes());
    header
}

/// The pod and an address elsewhere, for each family.
const PAIRS: [(IpAddr, IpAddr); 2] =
    [(IpAddr::V4(CLIENT), IpAddr::V4(SERVER)), (IpAddr::V6(CLIENT_V6), IpAddr::V6(SERVER_V6))];

#[test]
fn a_pods_connection_to_elsewhere_passes() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let _listeners = bench.listen();
        for (pod, elsewhere) in PAIRS {
            let key = PassageKey { source: pod, destination: SocketAddr::new(elsewhere, 80) };
            assert!(bench.passages.allow(key).unwrap());
            bench.expect(&packet(pod, elsewhere, &tcp(80, SYN)), Outcome::Verdict, NEXT);
            bench.expect(&packet(pod, elsewhere, &tcp(80, ACK)), Outcome::Flow, NEXT);
            bench.expect(&packet(pod, elsewhere, &tcp(81, SYN)), Outcome::Outbound, REDIRECT);

            // Its answers come in somewhere, or are translated first.
            bench.behind_device(0);
            let (answers, data) = (answer(80, SYN | ACK), answer(80, ACK));
            bench.expect(&packet(elsewhere, pod, &answers), Outcome::Flow, NEXT);
            bench.expect_of_guard(&packet(elsewhere, pod, &data), Some(Outcome::Flow));
            // The same ports, but opened from there, are another connection.
            let opened = packet(elsewhere, pod, &answer(80, SYN));
            bench.expect(&opened, Outcome::Inbound, REDIRECT);
            bench.expect_of_guard(&opened, Some(Outcome::Around));

            bench.passages.revoke(key).unwrap();
            for hook in [Hook::Steer, Hook::Guard] {
                let before = bench.counts()[Outcome::Cut as usize];
                let data = packet(elsewhere, pod, &data);
                let (verdict, after, _) = bench.run_at(hook, &data, 0);
                assert_eq!((verdict, bench.counts()[Outcome::Cut as usize]), (NEXT, before + 1), "{hook:?}");
                assert_eq!(after[..14], data[..14], "{hook:?}: goes on to the pod");
                assert_eq!(after[after.len() - 7] & 0x04, 0x04, "{hook:?}: as a reset");
            }
            bench.behind_device(1);
        }
    });
}

#[test]
fn a_connection_from_elsewhere_passes() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let _listeners = bench.listen();
        for (pod, elsewhere) in PAIRS {
            let key = PassageKey { source: elsewhere, destination: SocketAddr::new(pod, 80) };
            assert!(bench.passages.allow(key).unwrap());
            bench.behind_device(0);
            let opens = packet(elsewhere, pod, &tcp(80, SYN));
            // What was translated came from somebody else.
            bench.expect_of_guard(&opens, Some(Outcome::Around));
            bench.expect(&opens, Outcome::Verdict, NEXT);
            bench.expect(&packet(elsewhere, pod, &tcp(80, ACK)), Outcome::Flow, NEXT);
            bench.expect(&packet(elsewhere, pod, &tcp(81, SYN)), Outcome::Inbound, REDIRECT);
            bench.behind_device(1);
            bench.expect(&packet(pod, elsewhere, &answer(80, SYN | ACK)), Outcome::Flow, NEXT);
            bench.expect(&packet(elsewhere, pod, &tcp(80, ACK)), Outcome::Spoofed, DROP);
        }
    });
}

/// A SYN from another port.
fn from_port(port: u16) -> Vec<u8> {
    let mut header = tcp(80, SYN);
    header[..2].copy_from_slice(&port.to_be_bytes());
    header
}

#[test]
fn a_packet_of_a_revoked_connection_becomes_a_reset() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let keys = let_pass(&mut bench);
        let mut data = tcp(80, ACK);
        data[4..8].copy_from_slice(&1_u32.to_be_bytes());
        data[8..12].copy_from_slice(&77_u32.to_be_bytes());
        // As if it were one that an end of the flow sends, after ten bytes that passed.
        let next = |bytes: u32| {
            let mut header = data.clone();
            header[4..8].copy_from_slice(&(1 + bytes).to_be_bytes());
            [header, vec![0; 10]].concat()
        };
        for (first, passed, cut, headers) in [
            (
                syn(CLIENT, SERVER),
                ipv4(CLIENT, SERVER, TCP, 0, 0, &next(0)),
                ipv4(CLIENT, SERVER, TCP, 2, 0, &next(10)),
                14 + 28,
            ),
            (
                syn_v6(CLIENT_V6, SERVER_V6),
                ipv6(CLIENT_V6, SERVER_V6, TCP, &next(0)),
                ipv6(CLIENT_V6, SERVER_V6, TCP, &next(10)),
                14 + 40,
            ),
        ] {
            bench.expect(&first, Outcome::Verdict, NEXT);
            bench.expect(&passed, Outcome::Flow, NEXT);
            let key = keys[usize::from(headers != 14 + 28)];
            bench.passages.revoke(key).unwrap();
            let before = bench.counts()[Outcome::Cut as usize];
            let (answer, after, mark) = bench.run(&cut, 0);
            // `guard` lets the reset go on to the server.
            assert_eq!((answer, mark, bench.counts()[Outcome::Cut as usize]), (NEXT, 0x2000, before + 1));
            let reset = &after[headers..headers + 20];
            assert_eq!(reset[..4], data[..4], "ports");
            assert_eq!(reset[4..8], 11_u32.to_be_bytes(), "what the server expects");
            assert_eq!(reset[8..12], data[8..12], "acknowledgement");
            assert_eq!(reset[12..16], [0x50, 0x14, 0, 0], "length, RST and ACK, no window");
            assert_eq!(after[..14], cut[..14], "goes on to whom it was addressed");

            let (ip, addresses) = (&after[14..headers], if headers == 14 + 28 { 12..20 } else { 8..40 });
            let length = u16::try_from(reset.len()).unwrap().to_be_bytes();
            let pseudo = [&ip[addresses], &[0, TCP], &length].concat();
            assert_eq!(checksum(&[&pseudo, reset].concat()), 0, "a checksum over it all");
            if headers == 14 + 28 {
                assert_eq!(ip[2..4], 48_u16.to_be_bytes());
                // The test packet had none: what it lacked then is what it lacks now.
                assert_eq!(checksum(ip), checksum(&cut[14..headers]));
            } else {
                assert_eq!(ip[4..6], length);
            }
        }
    });
}

/// The checksum of RFC 1071; 0 over something that carries its own.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = (sum >> 16) + (sum & 0xffff);
    !u16::try_from((sum >> 16) + (sum & 0xffff)).unwrap()
}
