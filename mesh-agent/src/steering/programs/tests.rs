//! `steer`, `guard` and `deliver` on packets made by hand, run by the kernel (`BPF_PROG_TEST_RUN`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::AsFd;
use std::path::Path;

use aya::TestRunOptions;
use aya::programs::TestRun as _;
use mesh_common::{
    Address, Config, ConfigFlags, Device, DeviceFlags, Effect, Outcome, Pod, PodFlags, Tables as _,
    agent_device,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::steering::host::testing::in_namespace;
use crate::steering::{CoreListeners, ListenerPair};

mod passage;

const NEXT: u32 = u32::MAX;
const DROP: u32 = 2;
const REDIRECT: u32 = 7;

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
    passages: Passages,
    bpffs: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bpffs = TempDir::new().unwrap();
        mount(Some("bpf"), bpffs.path(), Some("bpf"), MsFlags::empty(), None::<&Path>).unwrap();
        let pins = Pins::open(&bpffs.path().join("agent")).unwrap();
        let (programs, mut maps, passages, _) = load(&pins).unwrap();
        assert_eq!(programs.no_cgroup_programs(), None);
        maps.set_config(Config {
            mark_mask: 0x3000,
            capture_mark: 0x1000,
            agent_mark: 0x2000,
            // For the kernel any negative number is the network namespace the packet is in.
            netns: u32::MAX,
            ..Config::default()
        })
        .unwrap();
        let pod = Pod { id: 1, flags: ENROLLED, device: DEVICE, rules: 0 };
        maps.set_pod(&Address::from(IpAddr::from(CLIENT)), pod).unwrap();
        maps.set_pod(&Address::from(IpAddr::from(CLIENT_V6)), pod).unwrap();
        maps.set_device(DEVICE, Device { owner: 1, ..Device::default() }).unwrap();
        maps.add_host_address(NODE.into()).unwrap();
        Self { programs, maps, passages, bpffs }
    }

    /// Has the packets come in behind an enrolled pod's device, or on one without such.
    fn behind_device(&mut self, owner: u32) {
        self.maps.set_device(DEVICE, Device { owner, flags: DeviceFlags::ETHERNET }).unwrap();
    }

    fn listen(&mut self) -> [TcpListener; 2] {
        let sockets = ["127.0.0.1:0", "[::1]:0"].map(|address| TcpListener::bind(address).unwrap());
        let [v4, v6] = &sockets;
        let pair = ListenerPair { v4: Some(v4.as_fd()), v6: Some(v6.as_fd()) };
        self.maps.set_listeners(&[CoreListeners { steered: pair, around: pair }]).unwrap();
        sockets
    }

    /// Runs `steer` on a packet and returns its answer, the packet and its mark after it.
    fn run(&mut self, packet: &[u8], mark: u32) -> (u32, Vec<u8>, u32) {
        self.run_at(Hook::Steer, packet, mark)
    }

    fn run_at(&mut self, hook: Hook, packet: &[u8], mark: u32) -> (u32, Vec<u8>, u32) {
        // `struct __sk_buff`: length, type, mark and more that is of no interest.
        let mut context_in = [0_u8; 192];
        context_in[8..12].copy_from_slice(&mark.to_ne_bytes());
        let (mut context_out, mut after) = (context_in, vec![0; packet.len()]);
        let result = self
            .programs
            .of_devices(hook)
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
        let expected = match outcome.effect() {
            // So that `guard` lets it go on.
            Effect::Pass if is_decided(outcome) && self.goes_to_enrolled(packet) => 0x20f0,
            _ => 0xf0,
        };
        assert_eq!(mark, expected, "{outcome:?}");
        for ((index, now), then) in self.counts().into_iter().enumerate().zip(before) {
            assert!(
                !is_packet(Outcome::ALL[index]) || now - then == u64::from(index == outcome as usize),
                "{outcome:?}"
            );
        }
    }

    /// Asserts what `guard` does with a packet that the node sends, and how it counts it, if it does.
    fn expect_of_guard(&mut self, packet: &[u8], outcome: Option<Outcome>) {
        let before = self.counts();
        let (answer, after, mark) = self.run_at(Hook::Guard, packet, 0xf0);
        match outcome.map(Outcome::effect) {
            Some(Effect::Capture) => {
                assert_eq!((answer, mark), (REDIRECT, 0xf0), "{outcome:?}");
                let addressed = (agent_device::AROUND_MAC.as_slice(), &packet[6..]);
                assert_eq!(after.split_at(6), addressed, "{outcome:?}");
            }
            Some(Effect::Drop) => assert_eq!(answer, DROP, "{outcome:?}"),
            _ => assert_eq!((answer, after.as_slice(), mark), (NEXT, packet, 0xf0), "{outcome:?}"),
        }
        for ((index, now), then) in self.counts().into_iter().enumerate().zip(before) {
            let counted = outcome.is_some_and(|outcome| index == outcome as usize);
            assert!(!is_packet(Outcome::ALL[index]) || now - then == u64::from(counted), "{outcome:?}");
        }
    }

    /// Whether a packet's destination is an enrolled pod.
    fn goes_to_enrolled(&self, packet: &[u8]) -> bool {
        let destination: IpAddr = match packet[12..14] {
            [0x08, 0x00] => <[u8; 4]>::try_from(&packet[30..34]).unwrap().into(),
            _ => <[u8; 16]>::try_from(&packet[38..54]).unwrap().into(),
        };
        self.maps.pod(&destination.into()).is_some_and(|pod| pod.is_enrolled())
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

/// Whether a packet that passes was looked at as far as its connection.
fn is_decided(outcome: Outcome) -> bool {
    use Outcome::{Excluded, FailOpen, Flow, NoSocket, Verdict};
    matches!(outcome, Excluded | FailOpen | Flow | NoSocket | Verdict)
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
        bench.expect(&ipv4(CLIENT, SERVER, TCP, 0, dont, &tcp(80, SYN)), Outcome::Outbound, REDIRECT);
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
            bench.expect(&packet, Outcome::Outbound, REDIRECT);
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
        bench.expect(&options, Outcome::Outbound, REDIRECT);
        options.truncate(14 + 60 + 19);
        bench.expect(&options, Outcome::Malformed, NEXT);
    });
}

#[test]
fn addresses_decide() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let _listeners = bench.listen();
        bench.expect(&syn(CLIENT, SERVER), Outcome::Outbound, REDIRECT);
        bench.expect(&syn(CLIENT, NODE), Outcome::HostAddress, NEXT);
        bench.expect(&syn(SERVER, CLIENT), Outcome::Spoofed, DROP);
        bench.expect(&syn_v6(SERVER_V6, CLIENT_V6), Outcome::Spoofed, DROP);
        bench.expect(&ipv4(CLIENT, SERVER, TCP, 0, 0, &tcp(80, ACK)), Outcome::NoSocket, NEXT);
        bench.expect(&ipv4(CLIENT, SERVER, TCP, 0, 0, &tcp(80, SYN | ACK)), Outcome::NoSocket, NEXT);

        bench.maps.remove_device(DEVICE).unwrap();
        bench.expect(&syn(SERVER, CLIENT), Outcome::Inbound, REDIRECT);
        bench.expect(&syn(SERVER, NODE), Outcome::NotEnrolled, NEXT);
        let (pod, closed) = (Address::from(IpAddr::from(CLIENT)), ENROLLED.with(PodFlags::FAIL_CLOSED, true));
        bench.maps.set_pod(&pod, Pod { id: 1, flags: ENROLLED, device: DEVICE + 1, rules: 0 }).unwrap();
        bench.expect(&syn(CLIENT, SERVER), Outcome::Spoofed, DROP);
        bench.maps.set_pod(&pod, Pod { id: 1, flags: closed, device: DEVICE, rules: 0 }).unwrap();
        bench.expect(&syn(CLIENT, SERVER), Outcome::Outbound, REDIRECT);
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
        bench.expect(&syn(CLIENT, SERVER), Outcome::Outbound, REDIRECT);
    });
}

#[test]
fn marked_packets_pass() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let _listeners = bench.listen();
        for mark in [0x1000, 0x2000, 0x10f0] {
            assert_eq!(bench.run(&syn(CLIENT, SERVER), mark), (NEXT, syn(CLIENT, SERVER), mark));
        }
    });
}

#[test]
fn what_the_agent_sends_goes_into_pods_or_to_the_node() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let deliver = |bench: &mut Bench, packet: &[u8], outcome: Outcome| {
            let before = bench.maps.count(outcome as u32).unwrap();
            let (answer, after, mark) = bench.run_at(Hook::Deliver, packet, 0xf0);
            assert_eq!(after, packet, "{outcome:?}");
            assert_eq!(bench.maps.count(outcome as u32).unwrap(), before + 1, "{outcome:?}");
            (answer, mark)
        };
        // Nothing has said yet that the pod may be reached past its device's queues.
        let to_pod = syn(SERVER, CLIENT);
        assert_eq!(deliver(&mut bench, &to_pod, Outcome::DeliveredToNode), (NEXT, 0x10f0));
        let flags = DeviceFlags::ETHERNET.with(DeviceFlags::SHORTCUT, true);
        bench.maps.set_device(DEVICE, Device { owner: 1, flags }).unwrap();
        assert_eq!(deliver(&mut bench, &to_pod, Outcome::DeliveredToPod), (REDIRECT, 0xf0));
        let to_pod = syn_v6(SERVER_V6, CLIENT_V6);
        assert_eq!(deliver(&mut bench, &to_pod, Outcome::DeliveredToPod), (REDIRECT, 0xf0));
        // Elsewhere, and what nobody expects of it: the node may have a way.
        let away = syn(CLIENT, SERVER);
        assert_eq!(deliver(&mut bench, &away, Outcome::DeliveredToNode), (NEXT, 0x10f0));
        let not_tcp = ipv4(SERVER, CLIENT, 17, 0, 0, &[0; 40]);
        assert_eq!(deliver(&mut bench, &not_tcp, Outcome::DeliveredToNode), (NEXT, 0x10f0));
        // The answers of what was turned around.
        let around = Config { around_device: DEVICE, ..bench.maps.config().unwrap() };
        bench.maps.set_config(around).unwrap();
        assert_eq!(deliver(&mut bench, &syn(SERVER, CLIENT), Outcome::DeliveredAround), (NEXT, 0x20f0));
    });
}

#[test]
fn the_guard_turns_around_what_has_not_been_decided_about() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let device = Device { owner: 1, flags: DeviceFlags::ETHERNET };
        bench.maps.set_device(DEVICE, device).unwrap();
        bench.expect_of_guard(&syn(SERVER, CLIENT), Some(Outcome::FailOpen));
        let listeners = bench.listen();
        bench.expect_of_guard(&syn(SERVER, CLIENT), Some(Outcome::Around));
        bench.expect_of_guard(&syn_v6(SERVER_V6, CLIENT_V6), Some(Outcome::Around));
        bench.expect_of_guard(&syn(CLIENT, SERVER), None);
        bench.expect_of_guard(&ipv4(SERVER, CLIENT, 17, 0, 0, &[0; 40]), None);
        // No connection of the agent's: older than the enrolment.
        bench.expect_of_guard(&ipv4(SERVER, CLIENT, TCP, 0, 0, &tcp(80, ACK)), None);
        for mark in [0x1000, 0x2000, 0x3000] {
            let sent = bench.run_at(Hook::Guard, &syn(SERVER, CLIENT), mark);
            assert_eq!(sent, (NEXT, syn(SERVER, CLIENT), mark), "a socket of the agent's");
        }
        // While the kubelet is not known, every process of the node may be it.
        bench.expect_of_guard(&syn(NODE, CLIENT), Some(Outcome::NodeProcess));
        let known = Config { flags: ConfigFlags::KUBELET_KNOWN, ..bench.maps.config().unwrap() };
        bench.maps.set_config(known).unwrap();
        bench.expect_of_guard(&syn(NODE, CLIENT), Some(Outcome::Around));
        // What a bridge floods is for the pod behind another device.
        let elsewhere = Pod { id: 1, flags: ENROLLED, device: DEVICE + 1, rules: 0 };
        bench.maps.set_pod(&Address::from(IpAddr::from(CLIENT)), elsewhere).unwrap();
        bench.expect_of_guard(&syn(NODE, CLIENT), None);

        drop(listeners);
        let flags = ENROLLED.with(PodFlags::FAIL_CLOSED, true);
        let pod = Pod { id: 1, flags, device: DEVICE, rules: 0 };
        bench.maps.set_pod(&Address::from(IpAddr::from(CLIENT)), pod).unwrap();
        bench.expect_of_guard(&syn(SERVER, CLIENT), Some(Outcome::FailClosed));
    });
}

#[test]
fn what_the_guard_cannot_read_does_not_reach_a_pod() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let _listeners = bench.listen();
        for fragment in [0x2000, 0x00b9, 0x20b9] {
            let part = |to, protocol| ipv4(NODE, to, protocol, 0, fragment, &tcp(80, SYN));
            bench.expect_of_guard(&part(CLIENT, TCP), Some(Outcome::Hidden));
            bench.expect_of_guard(&part(CLIENT, 17), None);
            bench.expect_of_guard(&part(SERVER, TCP), None);
        }
        // Each extension header, in front of what it names.
        let header = |next: u8, words: u8, length: usize| [vec![next, words], vec![0; length - 2]].concat();
        for (number, words, length) in [(0, 0, 8), (43, 2, 24), (44, 9, 8), (51, 4, 24), (60, 1, 16)] {
            let with = |next: u8, rest: &[u8]| {
                ipv6(SERVER_V6, CLIENT_V6, number, &[&header(next, words, length), rest].concat())
            };
            bench.expect_of_guard(&with(TCP, &tcp(80, SYN)), Some(Outcome::Hidden));
            bench.expect_of_guard(&with(17, &[0; 8]), None);
            let twice = [header(TCP, 0, 8), tcp(80, SYN)].concat();
            bench.expect_of_guard(&with(60, &twice), Some(Outcome::Hidden));
            bench.expect_of_guard(&with(60, &[]), Some(Outcome::Hidden));
            let many = [header(60, 0, 8).repeat(9), header(17, 0, 8)].concat();
            bench.expect_of_guard(&with(60, &many), Some(Outcome::Hidden));
            let mut elsewhere = with(TCP, &tcp(80, SYN));
            elsewhere[38..54].copy_from_slice(&SERVER_V6.octets());
            bench.expect_of_guard(&elsewhere, None);
        }
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
                prop_assert!([NEXT, REDIRECT, DROP].contains(&answer));
                prop_assert_eq!(after, packet);
                prop_assert_eq!(packets(&bench.counts()), before + 1);
                Ok(())
            })
            .unwrap();
    });
}

/// Whether an outcome is a packet's own, and not counted beside it.
fn is_packet(outcome: Outcome) -> bool {
    !matches!(outcome.effect(), Effect::Lookup | Effect::Passage | Effect::Deliver)
}

/// All packets counted.
fn packets(counts: &[u64]) -> u64 {
    Outcome::ALL.iter().zip(counts).filter(|(outcome, _)| is_packet(**outcome)).map(|(_, count)| count).sum()
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
