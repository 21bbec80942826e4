//! `steer` on packets made by hand, run by the kernel (`BPF_PROG_TEST_RUN`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::AsFd;
use std::path::Path;

use aya::TestRunOptions;
use aya::programs::TestRun as _;
use mesh_common::{Address, Config, Device, DeviceFlags, Effect, Outcome, Pod, PodFlags, Tables as _};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::steering::CoreListeners;
use crate::steering::host::testing::in_namespace;

const NEXT: u32 = u32::MAX;
const TO_STACK: u32 = 0;
const DROP: u32 = 2;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const TCP: u8 = 6;

/// The device of test runs: `lo` of the network namespace.
const DEVICE: u32 = 1;

const ENROLLED: PodFlags =
    PodFlags(PodFlags::ENROLLED.0 | PodFlags::CAPTURE_OUTBOUND.0 | PodFlags::CAPTURE_INBOUND.0);

/// Loaded programs in a BPF file system of their own; `CLIENT` is an enrolled pod on `DEVICE`.
struct Bench {
    programs: Programs,
    maps: Maps,
    bpffs: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bpffs = TempDir::new().unwrap();
        mount(Some("bpf"), bpffs.path(), Some("bpf"), MsFlags::empty(), None::<&Path>).unwrap();
        let pins = Pins::open(&bpffs.path().join("agent")).unwrap();
        let (programs, mut maps) = load(&pins).unwrap();
        maps.set_config(Config { mark_mask: 0x3000, capture_mark: 0x1000, agent_mark: 0x2000, listeners: 0 })
            .unwrap();
        let pod = Pod { id: 1, flags: ENROLLED, device: DEVICE, rules: 0 };
        maps.set_pod(&Address::from(IpAddr::from(CLIENT)), pod).unwrap();
        maps.set_pod(&Address::from(IpAddr::from(CLIENT_V6)), pod).unwrap();
        maps.set_device(DEVICE, Device { owner: 1, ..Device::default() }).unwrap();
        maps.add_host_address(NODE.into()).unwrap();
        Self { programs, maps, bpffs }
    }

    fn listen(&mut self) -> [TcpListener; 2] {
        let sockets = ["127.0.0.1:0", "[::1]:0"].map(|address| TcpListener::bind(address).unwrap());
        let [v4, v6] = &sockets;
        self.maps.set_listeners(&[CoreListeners { v4: Some(v4.as_fd()), v6: Some(v6.as_fd()) }]).unwrap();
        sockets
    }

    /// Runs `steer` on a packet and returns its answer, the packet and its mark after it.
    fn run(&mut self, packet: &[u8], mark: u32) -> (u32, Vec<u8>, u32) {
        // `struct __sk_buff`: length, type, mark and more that is of no interest.
        let mut context_in = [0_u8; 192];
        context_in[8..12].copy_from_slice(&mark.to_ne_bytes());
        let (mut context_out, mut after) = (context_in, vec![0; packet.len()]);
        let result = self
            .programs
            .steer()
            .unwrap()
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut after),
                ctx_in: Some(&context_in),
                ctx_out: Some(&mut context_out),
                ..TestRunOptions::new()
            })
            .unwrap();
        (result.return_value, after, u32::from_ne_bytes(context_out[8..12].try_into().unwrap()))
    }

    /// Asserts how a packet is counted, and that this is its only count.
    fn expect(&mut self, packet: &[u8], outcome: Outcome, answer: u32) {
        let before = self.counts();
        let (answered, after, mark) = self.run(packet, 0xf0);
        assert_eq!(answered, answer, "{outcome:?}");
        assert_eq!(after, packet, "{outcome:?}");
        assert_eq!(mark, if answer == TO_STACK { 0x10f0 } else { 0xf0 }, "{outcome:?}");
        for ((index, now), then) in self.counts().into_iter().enumerate().zip(before) {
            assert!(!is_packet(Outcome::ALL[index]) || now - then == u64::from(index == outcome as usize), "{outcome:?}");
        }
    }

    fn counts(&self) -> Vec<u64> {
        (0..Outcome::ALL.len()).map(|index| self.maps.count(u32::try_from(index).unwrap()).unwrap()).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = umount2(self.bpffs.path(), MntFlags::MNT_DETACH);
    }
}

fn ethernet(protocol: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(protocol.to_be_bytes());
    frame.extend(payload);
    frame
}

fn tcp(port: u16, flags: u8) -> Vec<u8> {
    let mut header = vec![0; 20];
    header[..2].copy_from_slice(&40_000_u16.to_be_bytes());
    header[2..4].copy_from_slice(&port.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = flags;
    header
}

/// With `options` words of IP options, and the fragment field.
fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, options: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 20];
    header[0] = 0x45 + options;
    let length = u16::try_from(20 + usize::from(options) * 4 + payload.len()).unwrap();
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&from.octets());
    header[16..].copy_from_slice(&to.octets());
    // No-operation options.
    header.extend(vec![1; usize::from(options) * 4]);
    header.extend(payload);
    ethernet(0x0800, &header)
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 40];
    header[0] = 0x60;
    header[4..6].copy_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
    header[6] = next;
    header[7] = 64;
    header[8..24].copy_from_slice(&from.octets());
    header[24..].copy_from_slice(&to.octets());
    header.extend(payload);
    ethernet(0x86dd, &header)
}

fn syn(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    ipv4(from, to, TCP, 0, 0, &tcp(80, SYN))
}

fn syn_v6(from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    ipv6(from, to, TCP, &tcp(80, SYN))
}

#[test]
fn what_is_not_tcp_passes() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let _listeners = bench.listen();
        bench.expect(&ethernet(0x0806, &[0; 28]), Outcome::NotIp, NEXT);
        bench.expect(&ethernet(0x88cc, &[0; 60]), Outcome::NotIp, NEXT);
        for protocol in [1, 17, 47, 132] {
            bench.expect(&ipv4(CLIENT, SERVER, protocol, 0, 0, &[0; 40]), Outcome::NotTcp, NEXT);
        }
        for next in [17, 58, 59] {
            bench.expect(&ipv6(CLIENT_V6, SERVER_V6, next, &[0; 40]), Outcome::NotTcp, NEXT);
        }
    });
}

#[test]
fn fragments_and_extension_headers_pass() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let _listeners = bench.listen();
        let (more, offset, dont) = (0x2000, 0x00b9, 0x4000);
        for fragment in [more, offset, more | offset] {
            bench.expect(&ipv4(CLIENT, SERVER, TCP, 0, fragment, &tcp(80, SYN)), Outcome::Fragment, NEXT);
        }
        bench.expect(&ipv4(CLIENT, SERVER, TCP, 0, dont, &tcp(80, SYN)), Outcome::Outbound, TO_STACK);
        bench.expect(&ipv6(CLIENT_V6, SERVER_V6, 44, &[0; 40]), Outcome::Fragment, NEXT);
        for header in [0, 43, 51, 60] {
            bench.expect(&ipv6(CLIENT_V6, SERVER_V6, header, &[0; 40]), Outcome::ExtensionHeader, NEXT);
        }
    });
}

#[test]
fn truncated_and_malformed_packets_pass() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let _listeners = bench.listen();
        for packet in [syn(CLIENT, SERVER), syn_v6(CLIENT_V6, SERVER_V6)] {
            bench.expect(&packet, Outcome::Outbound, TO_STACK);
            // The kernel itself refuses a test packet without a whole IP header.
            for length in [packet.len() - 1, packet.len() - 19] {
                bench.expect(&packet[..length], Outcome::Malformed, NEXT);
            }
        }
        let mut short = syn(CLIENT, SERVER);
        short[14] = 0x44;
        bench.expect(&short, Outcome::Malformed, NEXT);
        let mut liar = syn(CLIENT, SERVER);
        liar[14] = 0x65;
        bench.expect(&liar, Outcome::Malformed, NEXT);
        let mut options = ipv4(CLIENT, SERVER, TCP, 10, 0, &tcp(80, SYN));
        bench.expect(&options, Outcome::Outbound, TO_STACK);
        options.truncate(14 + 60 + 19);
        bench.expect(&options, Outcome::Malformed, NEXT);
    });
}

#[test]
fn addresses_decide() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let _listeners = bench.listen();
        bench.expect(&syn(CLIENT, SERVER), Outcome::Outbound, TO_STACK);
        bench.expect(&syn(CLIENT, NODE), Outcome::HostAddress, NEXT);
        bench.expect(&syn(SERVER, CLIENT), Outcome::Spoofed, DROP);
        bench.expect(&syn_v6(SERVER_V6, CLIENT_V6), Outcome::Spoofed, DROP);
        bench.expect(&ipv4(CLIENT, SERVER, TCP, 0, 0, &tcp(80, ACK)), Outcome::NoSocket, NEXT);
        bench.expect(&ipv4(CLIENT, SERVER, TCP, 0, 0, &tcp(80, SYN | ACK)), Outcome::NoSocket, NEXT);

        bench.maps.remove_device(DEVICE).unwrap();
        bench.expect(&syn(SERVER, CLIENT), Outcome::Inbound, TO_STACK);
        bench.expect(&syn(SERVER, NODE), Outcome::NotEnrolled, NEXT);
        let (pod, closed) = (Address::from(IpAddr::from(CLIENT)), ENROLLED.with(PodFlags::FAIL_CLOSED, true));
        bench.maps.set_pod(&pod, Pod { id: 1, flags: ENROLLED, device: DEVICE + 1, rules: 0 }).unwrap();
        bench.expect(&syn(CLIENT, SERVER), Outcome::Spoofed, DROP);
        bench.maps.set_pod(&pod, Pod { id: 1, flags: closed, device: DEVICE, rules: 0 }).unwrap();
        bench.expect(&syn(CLIENT, SERVER), Outcome::Outbound, TO_STACK);
        assert_eq!(bench.maps.pod(&pod).unwrap().flags, closed);
    });
}

#[test]
fn without_a_listener_each_pod_fails_its_way() {
    in_namespace(|| {
        let mut bench = Bench::new();
        bench.expect(&syn(CLIENT, SERVER), Outcome::FailOpen, NEXT);
        drop(bench.listen());
        bench.expect(&syn(CLIENT, SERVER), Outcome::FailOpen, NEXT);
        let flags = ENROLLED.with(PodFlags::FAIL_CLOSED, true);
        let pod = Pod { id: 1, flags, device: DEVICE, rules: 0 };
        bench.maps.set_pod(&Address::from(IpAddr::from(CLIENT)), pod).unwrap();
        bench.expect(&syn(CLIENT, SERVER), Outcome::FailClosed, DROP);
        let _listeners = bench.listen();
        bench.expect(&syn(CLIENT, SERVER), Outcome::Outbound, TO_STACK);
    });
}

#[test]
fn marked_packets_pass_and_bridge_ports_are_rewritten() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let _listeners = bench.listen();
        for mark in [0x1000, 0x2000, 0x10f0] {
            assert_eq!(bench.run(&syn(CLIENT, SERVER), mark), (NEXT, syn(CLIENT, SERVER), mark));
        }
        let bridge_mac = [6, 5, 4, 3, 2, 1];
        let port = Device { owner: 1, flags: DeviceFlags::BRIDGE_PORT, bridge_mac, ..Device::default() };
        bench.maps.set_device(DEVICE, port).unwrap();
        let (answer, after, mark) = bench.run(&syn(CLIENT, SERVER), 0);
        assert_eq!((answer, mark), (TO_STACK, 0x1000));
        let (destination, rest) = after.split_at(6);
        assert_eq!((destination, rest), (bridge_mac.as_slice(), &syn(CLIENT, SERVER)[6..]));
    });
}

#[test]
fn any_bytes_get_an_answer_and_one_count() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let _listeners = bench.listen();
        let packet = prop_oneof![
            proptest::collection::vec(any::<u8>(), 34..200),
            mutated(syn(CLIENT, SERVER)),
            mutated(syn_v6(CLIENT_V6, SERVER_V6)),
            mutated(ipv4(CLIENT, SERVER, TCP, 10, 0, &tcp(80, ACK))),
        ];
        let config = ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let bench = std::cell::RefCell::new(bench);
        runner
            .run(&packet, |packet| {
                let mut bench = bench.borrow_mut();
                let before: u64 = packets(&bench.counts());
                let (answer, after, _) = bench.run(&packet, 0);
                prop_assert!([NEXT, TO_STACK, DROP].contains(&answer));
                prop_assert_eq!(after, packet);
                prop_assert_eq!(packets(&bench.counts()), before + 1);
                Ok(())
            })
            .unwrap();
    });
}

/// Whether an outcome is a packet's own, and not counted beside it.
fn is_packet(outcome: Outcome) -> bool {
    !matches!(outcome.effect(), Effect::Lookup | Effect::Passage)
}

/// All packets counted.
fn packets(counts: &[u64]) -> u64 {
    Outcome::ALL
        .iter()
        .zip(counts)
        .filter(|(outcome, _)| is_packet(**outcome))
        .map(|(_, count)| count)
        .sum()
}

/// A packet with some bytes changed and perhaps its end missing.
fn mutated(packet: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = packet.len();
    let changes = proptest::collection::vec((12..length, any::<u8>()), 0..6);
    // Shorter than its IP header is what the kernel refuses to test.
    (Just(packet), changes, 54..=length).prop_map(|(mut packet, changes, length)| {
        for (at, value) in changes {
            packet[at] = value;
        }
        packet.truncate(length.max(14 + 40));
        packet
    })
}
