//! Reads the addresses, ports and flags of a TCP packet.
//!
//! Everything is read relative to the network header, so that Ethernet and devices without a link layer (WireGuard,
//! IPIP, tun) need no distinction, and with a helper, so that it does not matter which part of the packet is linear.

use core::mem::{MaybeUninit, size_of};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_NET;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes_relative;
use aya_ebpf::programs::TcContext;
use mesh_common::{Address, Family, Outcome, Segment, TcpFlags};

const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;

pub(crate) const IPPROTO_TCP: u8 = 6;

/// More fragments follow, or this is not the first: no or not the whole transport header is here.
const IPV4_FRAGMENT_MASK: u16 = 0x3fff_u16.to_be();

#[repr(C)]
pub(crate) struct Ipv4Header {
    version_and_length: u8,
    traffic_class: u8,
    total_length: u16,
    identification: u16,
    fragment: u16,
    time_to_live: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

#[repr(C)]
pub(crate) struct Ipv6Header {
    version_class_label: u32,
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

#[repr(C)]
pub(crate) struct TcpHeader {
    /// Source port in network order.
    pub(crate) source: u16,
    /// Destination port in network order.
    pub(crate) destination: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    /// In words, in the upper half.
    pub(crate) length: u8,
    pub(crate) flags: TcpFlags,
    pub(crate) window: u16,
    pub(crate) checksum: u16,
    pub(crate) urgent: u16,
}

const _: () = assert!(size_of::<Ipv4Header>() == 20);
const _: () = assert!(size_of::<Ipv6Header>() == 40);
const _: () = assert!(size_of::<TcpHeader>() == 20);

/// A TCP packet.
pub(crate) struct Packet {
    pub(crate) family: Family,
    pub(crate) source: Address,
    pub(crate) destination: Address,
    /// Length of the IP packet as its header has it, in host order.
    pub(crate) length: u16,
    /// Bytes of the IP header with its options.
    pub(crate) ip_header: u16,
    pub(crate) tcp: TcpHeader,
}

impl Packet {
    /// Whether this opens a connection. A SYN with ACK answers one.
    #[inline(always)]
    pub(crate) fn opens(&self) -> bool {
        self.tcp.flags.has(TcpFlags::SYN) && !self.tcp.flags.has(TcpFlags::ACK)
    }

    /// What it says of its connection.
    #[inline(always)]
    pub(crate) fn segment(&self) -> Segment {
        // A packet too long for its length to be told has 0 there; the next one tells where it ended.
        let headers = self.ip_header + u16::from(self.tcp.length >> 4) * 4;
        Segment {
            sequence: u32::from_be(self.tcp.sequence),
            acknowledgement: u32::from_be(self.tcp.acknowledgement),
            payload: u32::from(self.length.saturating_sub(headers)),
            flags: self.tcp.flags,
        }
    }

    /// Source port in host order.
    #[inline(always)]
    pub(crate) fn source_port(&self) -> u16 {
        u16::from_be(self.tcp.source)
    }

    /// Destination port in host order.
    #[inline(always)]
    pub(crate) fn port(&self) -> u16 {
        u16::from_be(self.tcp.destination)
    }
}

/// Reads a TCP packet, or says why it is none.
#[inline(always)]
pub(crate) fn parse(ctx: &TcContext) -> Result<Packet, Outcome> {
    // A tagged packet shows the protocol inside; it comes by again on the VLAN's own device.
    // SAFETY: the context of a classifier is a valid `__sk_buff` for as long as the program runs.
    let (protocol, tagged) = unsafe { ((*ctx.skb.skb).protocol, (*ctx.skb.skb).vlan_present) };
    if tagged != 0 {
        return Err(Outcome::NotIp);
    }
    match protocol {
        ETH_P_IP => parse_ipv4(ctx),
        ETH_P_IPV6 => parse_ipv6(ctx),
        _ => Err(Outcome::NotIp),
    }
}

#[inline(always)]
fn parse_ipv4(ctx: &TcContext) -> Result<Packet, Outcome> {
    let ip: Ipv4Header = load(ctx, 0)?;
    if ip.version_and_length >> 4 != 4 {
        return Err(Outcome::Malformed);
    }
    if ip.protocol != IPPROTO_TCP {
        return Err(Outcome::NotTcp);
    }
    if ip.fragment & IPV4_FRAGMENT_MASK != 0 {
        return Err(Outcome::Fragment);
    }
    let length = u32::from(ip.version_and_length & 0xf) * 4;
    if length < size_of::<Ipv4Header>() as u32 {
        return Err(Outcome::Malformed);
    }
    Ok(Packet {
        family: Family::V4,
        source: Address::v4(ip.source),
        destination: Address::v4(ip.destination),
        length: u16::from_be(ip.total_length),
        ip_header: length as u16,
        tcp: load(ctx, length)?,
    })
}

#[inline(always)]
fn parse_ipv6(ctx: &TcContext) -> Result<Packet, Outcome> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;

    let ip: Ipv6Header = load(ctx, 0)?;
    if ip.version_class_label & 0xf000_0000_u32.to_be() != 0x6000_0000_u32.to_be() {
        return Err(Outcome::Malformed);
    }
    match ip.next_header {
        IPPROTO_TCP => Ok(Packet {
            family: Family::V6,
            source: Address::v6(ip.source),
            destination: Address::v6(ip.destination),
            length: u16::from_be(ip.payload_length).saturating_add(size_of::<Ipv6Header>() as u16),
            ip_header: size_of::<Ipv6Header>() as u16,
            tcp: load(ctx, size_of::<Ipv6Header>() as u32)?,
        }),
        FRAGMENT => Err(Outcome::Fragment),
        HOP_BY_HOP | ROUTING | AUTHENTICATION | DESTINATION => Err(Outcome::ExtensionHeader),
        _ => Err(Outcome::NotTcp),
    }
}

/// Reads a `T` at `offset` from the network header. `T` is one of the headers above: any bytes are a value.
#[inline(always)]
pub(crate) fn load<T>(ctx: &TcContext, offset: u32) -> Result<T, Outcome> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes all of `value` or fails.
    let result = unsafe {
        bpf_skb_load_bytes_relative(
            ctx.as_ptr(),
            offset,
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            BPF_HDR_START_NET as u32,
        )
    };
    if result < 0 {
        return Err(Outcome::Malformed);
    }
    // SAFETY: filled above.
    Ok(unsafe { value.assume_init() })
}
