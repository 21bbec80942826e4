//! Reads the addresses, ports and flags of a TCP packet.
//!
//! Read where they lie, if that is in the linear part of a packet of an Ethernet device: there is no call in it. Else, for
//! devices without a link layer (WireGuard, IPIP, tun), IP options and fragmented buffers, with a helper and relative to
//! the network header, which needs no such distinction. Whether a device is an Ethernet is the agent's word and nothing
//! in the packet: what a packet without a link layer begins with is its sender's choice.

use core::mem::{MaybeUninit, size_of};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_NET;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes_relative;
use aya_ebpf::programs::TcContext;
use mesh_common::{Address, Device, DeviceFlags, Family, Outcome, Segment, TcpFlags};

const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;

pub(crate) const IPPROTO_TCP: u8 = 6;
/// IPv6 headers that may come before the transport header.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// More fragments follow, or this is not the first: no or not the whole transport header is here.
const IPV4_FRAGMENT_MASK: u16 = 0x3fff_u16.to_be();

#[repr(C)]
#[derive(Clone, Copy)]
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
#[derive(Clone, Copy)]
pub(crate) struct Ipv6Header {
    version_class_label: u32,
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

#[repr(C)]
#[derive(Clone, Copy)]
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

const ETHERNET_HEADER: u32 = 14;
/// Without options.
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;

const _: () = assert!(size_of::<Ipv4Header>() == IPV4_HEADER as usize);
const _: () = assert!(size_of::<Ipv6Header>() == IPV6_HEADER as usize);
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
    #[inline(always)]
    fn ipv4(ip: &Ipv4Header, tcp: &TcpHeader) -> Self {
        Self {
            family: Family::V4,
            source: Address::v4(ip.source),
            destination: Address::v4(ip.destination),
            length: u16::from_be(ip.total_length),
            ip_header: ip.length() as u16,
            tcp: *tcp,
        }
    }

    #[inline(always)]
    fn ipv6(ip: &Ipv6Header, tcp: &TcpHeader) -> Self {
        Self {
            family: Family::V6,
            source: Address::v6(ip.source),
            destination: Address::v6(ip.destination),
            length: u16::from_be(ip.payload_length).saturating_add(IPV6_HEADER as u16),
            ip_header: IPV6_HEADER as u16,
            tcp: *tcp,
        }
    }

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

/// Reads a TCP packet that came in on `device`, or says why it is none.
///
/// Into memory of the caller's: of a `Result` with a packet in it the compiler would move parts that are not there.
#[inline(always)]
pub(crate) fn parse<'a>(
    ctx: &TcContext,
    device: Option<&Device>,
    packet: &'a mut MaybeUninit<Packet>,
) -> Result<&'a Packet, Outcome> {
    // A tagged packet shows the protocol inside; it comes by again on the VLAN's own device.
    // SAFETY: the context of a classifier is a valid `__sk_buff` for as long as the program runs.
    let (protocol, tagged) = unsafe { ((*ctx.skb.skb).protocol, (*ctx.skb.skb).vlan_present) };
    if tagged != 0 {
        return Err(Outcome::NotIp);
    }
    if device.is_some_and(|device| device.flags.has(DeviceFlags::ETHERNET)) {
        let linear = match protocol {
            ETH_P_IP => linear_ipv4(ctx, packet),
            ETH_P_IPV6 => linear_ipv6(ctx, packet),
            _ => return Err(Outcome::NotIp),
        };
        if linear? {
            // SAFETY: filled, as the answer says.
            return Ok(unsafe { packet.assume_init_ref() });
        }
    }
    load_packet(ctx, protocol, packet)?;
    // SAFETY: filled, or there was no return from here.
    Ok(unsafe { packet.assume_init_ref() })
}

/// Reads an IPv4 packet that is as most are: linear at least as far as its TCP header, and without options. Says
/// whether it is.
#[inline(always)]
fn linear_ipv4(ctx: &TcContext, packet: &mut MaybeUninit<Packet>) -> Result<bool, Outcome> {
    let Some(ip) = linear::<0, Ipv4Header>(ctx) else { return Ok(false) };
    ip.check()?;
    if ip.length() != IPV4_HEADER {
        return Ok(false);
    }
    let Some(tcp) = linear::<{ IPV4_HEADER }, _>(ctx) else { return Ok(false) };
    packet.write(Packet::ipv4(ip, tcp));
    Ok(true)
}

/// The same for IPv6.
#[inline(always)]
fn linear_ipv6(ctx: &TcContext, packet: &mut MaybeUninit<Packet>) -> Result<bool, Outcome> {
    let Some(ip) = linear::<0, Ipv6Header>(ctx) else { return Ok(false) };
    ip.check()?;
    let Some(tcp) = linear::<{ IPV6_HEADER }, _>(ctx) else { return Ok(false) };
    packet.write(Packet::ipv6(ip, tcp));
    Ok(true)
}

/// Any other. A function of its own, for the room its headers take on the stack.
#[inline(never)]
fn load_packet(ctx: &TcContext, protocol: u32, packet: &mut MaybeUninit<Packet>) -> Result<(), Outcome> {
    match protocol {
        ETH_P_IP => {
            let ip: Ipv4Header = load(ctx, 0)?;
            ip.check()?;
            packet.write(Packet::ipv4(&ip, &load(ctx, ip.length())?));
        }
        ETH_P_IPV6 => {
            let ip: Ipv6Header = load(ctx, 0)?;
            ip.check()?;
            packet.write(Packet::ipv6(&ip, &load(ctx, IPV6_HEADER)?));
        }
        _ => return Err(Outcome::NotIp),
    }
    Ok(())
}

/// Where a packet is on its way to that is, or may be, TCP but in fragments or behind extension headers, which is why
/// [`parse`] has not read it. `None` where it is certain to be something else.
#[inline(always)]
pub(crate) fn hidden_destination(ctx: &TcContext) -> Option<Address> {
    // SAFETY: the context of a classifier is a valid `__sk_buff` for as long as the program runs.
    match unsafe { (*ctx.skb.skb).protocol } {
        ETH_P_IP => {
            let ip: Ipv4Header = load(ctx, 0).ok()?;
            (ip.check() == Err(Outcome::Fragment)).then(|| Address::v4(ip.destination))
        }
        ETH_P_IPV6 => {
            let ip: Ipv6Header = load(ctx, 0).ok()?;
            let is_hidden = matches!(ip.check(), Err(Outcome::Fragment | Outcome::ExtensionHeader))
                && leads_to_tcp(ctx, ip.next_header);
            is_hidden.then(|| Address::v6(ip.destination))
        }
        _ => None,
    }
}

/// Whether TCP follows the extension headers of an IPv6 packet, or what follows cannot be told.
#[inline(always)]
fn leads_to_tcp(ctx: &TcContext, first: u8) -> bool {
    /// More than anybody has a use for.
    const MAX_EXTENSION_HEADERS: u32 = 8;

    let (mut next, mut offset) = (first, IPV6_HEADER);
    for _ in 0..MAX_EXTENSION_HEADERS {
        if next == IPPROTO_TCP {
            return true;
        }
        if !matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION) {
            return false;
        }
        // All of them begin with the next one's number and, but for fragments, their own length.
        let Ok([following, length]) = load::<[u8; 2]>(ctx, offset) else { return true };
        offset += match next {
            FRAGMENT => 8,
            AUTHENTICATION => (u32::from(length) + 2) * 4,
            _ => (u32::from(length) + 1) * 8,
        };
        next = following;
    }
    true
}

impl Ipv4Header {
    /// Bytes of the header with its options.
    #[inline(always)]
    fn length(&self) -> u32 {
        u32::from(self.version_and_length & 0xf) * 4
    }

    /// Whether a TCP header follows, or what there is instead.
    #[inline(always)]
    fn check(&self) -> Result<(), Outcome> {
        if self.version_and_length >> 4 != 4 {
            return Err(Outcome::Malformed);
        }
        if self.protocol != IPPROTO_TCP {
            return Err(Outcome::NotTcp);
        }
        if self.fragment & IPV4_FRAGMENT_MASK != 0 {
            return Err(Outcome::Fragment);
        }
        if self.length() < IPV4_HEADER {
            return Err(Outcome::Malformed);
        }
        Ok(())
    }
}

impl Ipv6Header {
    /// Whether a TCP header follows, or what there is instead.
    #[inline(always)]
    fn check(&self) -> Result<(), Outcome> {
        if self.version_class_label & 0xf000_0000_u32.to_be() != 0x6000_0000_u32.to_be() {
            return Err(Outcome::Malformed);
        }
        match self.next_header {
            IPPROTO_TCP => Ok(()),
            FRAGMENT => Err(Outcome::Fragment),
            HOP_BY_HOP | ROUTING | AUTHENTICATION | DESTINATION => Err(Outcome::ExtensionHeader),
            _ => Err(Outcome::NotTcp),
        }
    }
}

/// The `T` at `OFFSET` from the IP header of a packet of an Ethernet device, if it is in the linear part. `T` is one of the
/// headers above: any bytes are a value.
#[inline(always)]
fn linear<const OFFSET: u32, T>(ctx: &TcContext) -> Option<&T> {
    let start = ctx.data() + (ETHERNET_HEADER + OFFSET) as usize;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: within the packet, as the verifier insists on. It also lets words be read where they lie only on machines
    // that can, or that have their IP headers aligned.
    Some(unsafe { &*(start as *const T) })
}

/// Reads a `T` at `offset` from the network header, wherever it is in memory.
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
