//! Finds out whether a packet belongs to a connection of the agent.

use core::mem::{self, size_of_val};
use core::ptr;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_TCP_LISTEN, BPF_TCP_TIME_WAIT, bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::helpers::bpf_sk_release;
use aya_ebpf::helpers::generated::{bpf_skc_lookup_tcp, bpf_tcp_check_syncookie};
use aya_ebpf::programs::TcContext;
use mesh_common::{Address, Arrival, Config, Family, spread};

use crate::listeners::Listener;
use crate::maps::config;
use crate::parse::{Ipv4Header, Ipv6Header, Packet, load};

/// What the node knows of a packet's connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connection {
    /// Nothing.
    Unknown,
    /// It is one of ours: being opened, open or being closed.
    Open,
    /// It was one of ours a short time ago.
    TimeWait,
    /// The packet brings back a SYN cookie of our listener.
    Cookie,
}

/// Looks for the connection among the sockets of the agent's network namespace.
///
/// The caller has passed the gate: the kernel runs the sk_lookup programs when it finds no connection, which is
/// too dear for packets that have nothing to do with the mesh.
#[inline(always)]
pub(crate) fn connection(ctx: &TcContext, packet: &Packet, config: &Config, arrival: Arrival) -> Connection {
    let socket = look_up(
        ctx,
        config,
        packet.family,
        (&packet.source, packet.tcp.source),
        (&packet.destination, packet.tcp.destination),
    );
    if socket.is_null() {
        return Connection::Unknown;
    }
    // The helper may return a request or a time-wait socket: only what all kinds have in common may be read.
    // SAFETY: not null, and a reference is held until the release below.
    let state = unsafe { (*socket).state };
    let connection = match state {
        BPF_TCP_LISTEN if arrival == Arrival::Steered && brings_cookie(ctx, packet, socket) => {
            Connection::Cookie
        }
        BPF_TCP_LISTEN => Connection::Unknown,
        BPF_TCP_TIME_WAIT => Connection::TimeWait,
        _ => Connection::Open,
    };
    // SAFETY: the reference is ours and given back once.
    unsafe { bpf_sk_release(socket.cast()) };
    // `pick_listener` took the packet for one that came in here.
    if connection == Connection::Unknown
        && arrival == Arrival::Around
        && acknowledges_around(ctx, packet, config)
    {
        return Connection::Cookie;
    }
    connection
}

/// Whether the packet brings back a cookie of the listener that its SYN was turned around to.
#[inline(never)]
fn acknowledges_around(ctx: &TcContext, packet: &Packet, config: &Config) -> bool {
    let core =
        spread(&packet.source, packet.source_port(), &packet.destination, packet.port(), config.listeners);
    let Some(listener) = Listener::find(config, core, packet.family, Arrival::Around) else { return false };
    let acknowledges = brings_cookie(ctx, packet, listener.as_ptr());
    listener.release();
    acknowledges
}

/// Whether the agent has opened a connection with the packet's addresses and ports, on behalf of the pod that sends it:
/// towards the destination the two could not be told apart.
#[inline(always)]
pub(crate) fn agent_speaks_for(ctx: &TcContext, packet: &Packet) -> bool {
    let socket = look_up(
        ctx,
        &config(),
        packet.family,
        (&packet.destination, packet.tcp.destination),
        (&packet.source, packet.tcp.source),
    );
    if socket.is_null() {
        return false;
    }
    // SAFETY: as in `connection`.
    let state = unsafe { (*socket).state };
    // SAFETY: the reference is ours and given back once.
    unsafe { bpf_sk_release(socket.cast()) };
    state != BPF_TCP_LISTEN
}

/// The agent's socket for packets from `source`, address and port in network order, to `destination`.
#[inline(always)]
fn look_up(
    ctx: &TcContext,
    config: &Config,
    family: Family,
    source: (&Address, u16),
    destination: (&Address, u16),
) -> *mut bpf_sock {
    // SAFETY: plain integers.
    let mut tuple: bpf_sock_tuple = unsafe { mem::zeroed() };
    let ((source, source_port), (destination, destination_port)) = (source, destination);
    let length = match family {
        Family::V4 => {
            let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
                saddr: source.words[3],
                daddr: destination.words[3],
                sport: source_port,
                dport: destination_port,
            };
            tuple.__bindgen_anon_1.ipv4 = ipv4;
            size_of_val(&ipv4)
        }
        Family::V6 => {
            let ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
                saddr: source.words,
                daddr: destination.words,
                sport: source_port,
                dport: destination_port,
            };
            tuple.__bindgen_anon_1.ipv6 = ipv6;
            size_of_val(&ipv6)
        }
    };
    // SAFETY: the tuple is initialised and of the length that tells the family.
    unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), &mut tuple, length as u32, u64::from(config.netns), 0) }
}

/// Whether the packet acknowledges a SYN cookie: under a flood the kernel keeps no request that could be found.
#[inline(always)]
fn brings_cookie(ctx: &TcContext, packet: &Packet, listener: *mut bpf_sock) -> bool {
    match packet.family {
        Family::V4 => load::<Ipv4Header>(ctx, 0).is_ok_and(|ip| check_cookie(listener, &ip, packet)),
        Family::V6 => load::<Ipv6Header>(ctx, 0).is_ok_and(|ip| check_cookie(listener, &ip, packet)),
    }
}

#[inline(always)]
fn check_cookie<H>(listener: *mut bpf_sock, ip: &H, packet: &Packet) -> bool {
    // SAFETY: both headers are initialised and given with their lengths; the socket is held by the caller.
    let result = unsafe {
        bpf_tcp_check_syncookie(
            listener.cast(),
            ptr::from_ref(ip).cast_mut().cast(),
            size_of_val(ip) as u32,
            ptr::from_ref(&packet.tcp).cast_mut().cast(),
            size_of_val(&packet.tcp) as u32,
        )
    };
    result == 0
}
