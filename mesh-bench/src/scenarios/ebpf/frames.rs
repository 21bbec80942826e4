//! Packets as they come in on a device, and the contexts that programs see them in.

use std::net::{IpAddr, SocketAddr};

const HARDWARE_ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 1];
const TCP: u8 = 6;
const UDP: u8 = 17;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

pub(super) const SYN: u8 = 0x02;
pub(super) const ACK: u8 = 0x10;

/// A TCP segment without data and options, in an Ethernet frame.
pub(super) fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8) -> Vec<u8> {
    let mut segment = Vec::with_capacity(20);
    segment.extend(source.port().to_be_bytes());
    segment.extend(destination.port().to_be_bytes());
    segment.extend([0; 8]);
    segment.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame(source.ip(), destination.ip(), TCP, &segment)
}

/// An empty UDP datagram.
pub(super) fn udp(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(8);
    datagram.extend(source.port().to_be_bytes());
    datagram.extend(destination.port().to_be_bytes());
    datagram.extend([0, 8, 0, 0]);
    frame(source.ip(), destination.ip(), UDP, &datagram)
}

/// Without checksums: no program reads them.
fn frame(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let mut frame = Vec::with_capacity(14 + 40 + payload.len());
    frame.extend(HARDWARE_ADDRESS);
    frame.extend(HARDWARE_ADDRESS);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend((20 + length).to_be_bytes());
            frame.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (source, destination) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(octets(source));
            frame.extend(octets(destination));
        }
    }
    frame.extend(payload);
    frame
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// `struct __sk_buff` of a packet that came in on a device.
pub(super) fn packet_context(device: u32) -> Vec<u8> {
    let mut context = vec![0; 40];
    context.extend(device.to_ne_bytes());
    context.resize(192, 0);
    context
}

/// `struct bpf_sk_lookup` of a TCP packet.
pub(super) fn look_up_context(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let family = if source.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut context = vec![0; 8];
    context.extend(family.to_ne_bytes());
    context.extend(u32::from(TCP).to_ne_bytes());
    context.extend(addresses(source.ip()));
    context.extend(source.port().to_be_bytes());
    context.extend([0; 2]);
    context.extend(addresses(destination.ip()));
    context.extend(u32::from(destination.port()).to_ne_bytes());
    context.resize(72, 0);
    context
}

/// The fields of both families; the one it is not is zero.
fn addresses(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => [v4.octets().as_slice(), &[0; 16]].concat(),
        IpAddr::V6(v6) => [[0; 4].as_slice(), &v6.octets()].concat(),
    }
}
