//! Ends a connection that passed: turns one of its packets into a reset for its sender and one for its receiver.
//!
//! A TCP takes a reset only with the very number it expects next (RFC 5961). For the sender that is what it
//! acknowledges. For the receiver it is what has been let through so far; should some of that be lost, the receiver
//! asks back, and that packet ends it.

use core::ptr;

use aya_ebpf::bindings::{BPF_F_INGRESS, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_skb_change_tail};
use aya_ebpf::programs::TcContext;
use mesh_common::{Address, Family, Segment, TcpFlags};

use crate::parse::{IPPROTO_TCP, Packet, TcpHeader};

const ETHERNET_HEADER: u32 = 14;
/// Where the protocol is in an Ethernet header, behind both addresses.
const ETHERNET_PROTOCOL: usize = 12;
/// Where both addresses are in an IP header, and the length.
const IPV4_ADDRESSES: u32 = 12;
const IPV6_ADDRESSES: u32 = 8;
const IPV4_LENGTH: u32 = 2;
const IPV6_LENGTH: u32 = 4;
const IPV4_CHECKSUM: u32 = 10;
const TCP_CHECKSUM: u32 = 16;
const TCP_HEADER: u32 = size_of::<TcpHeader>() as u32;

/// What a TCP checksum covers besides the segment. An IPv4 address is in its IPv4-mapped form: the 0xffff in front is
/// nothing to the checksum, so both families have the same.
#[repr(C)]
struct PseudoHeader {
    source: Address,
    destination: Address,
    length: u32,
    protocol: u32,
}

/// Which way a reset goes: as the packet it is made from, or back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    On,
    Back,
}

/// How a reset gets back to the sender of a packet.
#[repr(u64)]
#[derive(Clone, Copy)]
pub(crate) enum Back {
    /// Out of the device that the packet came in on.
    Out = 0,
    /// Into the device that the packet was to leave by, as if its receiver had sent it: the node sends it on, and
    /// translates it back if it has translated the packet.
    In = BPF_F_INGRESS as u64,
}

/// Sends a reset back to the sender and makes the packet itself one for the receiver, which expects the number
/// `expected`. If this fails, the packet must not go on.
#[inline(always)]
pub(crate) fn reset_both_ends(
    ctx: &TcContext,
    packet: &Packet,
    segment: &Segment,
    expected: u32,
    back: Back,
) -> bool {
    // SAFETY: the context of a classifier is a valid `__sk_buff` for as long as the program runs.
    let (protocol, device) = unsafe { ((*ctx.skb.skb).protocol, (*ctx.skb.skb).ifindex) };
    // Pods are behind Ethernet devices; on another kind everything below would be off by a header.
    if ctx.load::<u16>(ETHERNET_PROTOCOL).map(u32::from) != Ok(protocol) {
        return false;
    }
    let ip = ETHERNET_HEADER;
    let tcp = ip + u32::from(packet.ip_header);
    // SAFETY: the packet is cut off behind its TCP header, which was read.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, tcp + TCP_HEADER, 0) } != 0 || !set_length(ctx, packet, ip) {
        return false;
    }

    let pseudo = PseudoHeader {
        source: packet.source,
        destination: packet.destination,
        length: TCP_HEADER.to_be(),
        protocol: u32::from(IPPROTO_TCP).to_be(),
    };
    // The same for both ways: a sum does not care for the order.
    let pseudo = sum(&pseudo);
    let acknowledged = segment.flags.has(TcpFlags::ACK).then_some(segment.acknowledgement);
    write(ctx, packet, tcp, pseudo, Way::Back, acknowledged.unwrap_or_default(), Some(segment.end()))
        && ctx.clone_redirect(device, back as u64).is_ok()
        && write(ctx, packet, tcp, pseudo, Way::On, expected, acknowledged)
}

/// Gives the IP header the length of a packet without options and data.
#[inline(always)]
fn set_length(ctx: &TcContext, packet: &Packet, ip: u32) -> bool {
    match packet.family {
        Family::V4 => {
            let length = (packet.ip_header + TCP_HEADER as u16).to_be();
            let former = packet.length.to_be();
            store(ctx, ip + IPV4_LENGTH, &length)
                && ctx.l3_csum_replace((ip + IPV4_CHECKSUM) as usize, former.into(), length.into(), 2).is_ok()
        }
        Family::V6 => store(ctx, ip + IPV6_LENGTH, &(TCP_HEADER as u16).to_be()),
    }
}

/// Writes the addresses, on every layer, and a TCP header that is a reset.
#[inline(always)]
fn write(
    ctx: &TcContext,
    packet: &Packet,
    offset: u32,
    pseudo: u64,
    way: Way,
    sequence: u32,
    acknowledgement: Option<u32>,
) -> bool {
    let (there, back) = ((&packet.source, packet.tcp.source), (&packet.destination, packet.tcp.destination));
    let ((source, source_port), (destination, destination_port)) = match way {
        Way::On => (there, back),
        Way::Back => (back, there),
    };
    // The Ethernet addresses change places both times: before the packet is sent back, and before it goes on.
    let Ok([to, from]) = ctx.load::<[[u8; 6]; 2]>(0) else { return false };
    let addressed = match packet.family {
        Family::V4 => store(ctx, ETHERNET_HEADER + IPV4_ADDRESSES, &[source.words[3], destination.words[3]]),
        Family::V6 => {
            store(ctx, ETHERNET_HEADER + IPV6_ADDRESSES, source)
                && store(ctx, ETHERNET_HEADER + IPV6_ADDRESSES + size_of::<Address>() as u32, destination)
        }
    };
    let tcp = TcpHeader {
        source: source_port,
        destination: destination_port,
        sequence: sequence.to_be(),
        acknowledgement: acknowledgement.unwrap_or_default().to_be(),
        length: (TCP_HEADER as u8 / 4) << 4,
        flags: if acknowledgement.is_some() { TcpFlags::RST.and(TcpFlags::ACK) } else { TcpFlags::RST },
        window: 0,
        checksum: 0,
        urgent: 0,
    };
    store(ctx, 0, &[from, to])
        && addressed
        && store(ctx, offset, &tcp)
        && set_checksum(ctx, (offset + TCP_CHECKSUM) as usize, pseudo, sum(&tcp))
}

/// Sets the TCP checksum, which is 0 now, to one over `pseudo` and `header`.
///
/// A packet of a local sender carries no checksum yet: only the sum of the pseudo header, for the device to go on from.
/// Which kind this is, a program cannot see. But the kernel knows: of the two steps it takes both, or the first alone.
#[inline(always)]
fn set_checksum(ctx: &TcContext, field: usize, pseudo: u64, header: u64) -> bool {
    ctx.l4_csum_replace(field, 0, pseudo, u64::from(BPF_F_PSEUDO_HDR)).is_ok()
        && ctx.l4_csum_replace(field, 0, header, 0).is_ok()
}

#[inline(always)]
fn sum<T>(value: &T) -> u64 {
    // SAFETY: the helper reads `T`, whose size is a multiple of four and which has no padding.
    let sum = unsafe {
        bpf_csum_diff(ptr::null_mut(), 0, ptr::from_ref(value).cast_mut().cast(), size_of::<T>() as u32, 0)
    };
    sum as u32 as u64
}

#[inline(always)]
fn store<T>(ctx: &TcContext, offset: u32, value: &T) -> bool {
    ctx.store(offset as usize, value, u64::from(BPF_F_RECOMPUTE_CSUM)).is_ok()
}
