//! Which service a connection was opened to.
//!
//! Between `connect` and the SYN, in one system call, a socket has no port yet and is known by its cookie; from the SYN
//! on by the addresses and ports of its connection, which is what the agent sees of it.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock, bpf_sock_ops};
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::macros::{map, sock_ops};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::{SockAddrContext, SockOpsContext};
use mesh_common::{Address, Family, Replaced, ServicePort, Tuple, capacity};

#[map]
static CONNECTING: LruHashMap<u64, Replaced> = LruHashMap::pinned(capacity::CONNECTING, 0);

#[map]
static OPENED_TO: LruHashMap<Tuple, ServicePort> = LruHashMap::pinned(capacity::OPENED_TO, 0);

const AF_INET6: u32 = 10;

/// The answer the kernel takes for none.
const NO_ANSWER: u32 = 1;

/// Notes that the kernel has drawn for the socket, and where it is being connected to: an endpoint, or still the service.
#[inline(always)]
pub(super) fn drawn(ctx: &SockAddrContext, service: &ServicePort, endpoint: ServicePort) -> Result<(), i32> {
    // SAFETY: the context is the kernel's own.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    CONNECTING.insert(cookie, Replaced { service: *service, endpoint, source_port: 0 }, 0)
}

/// A socket of the pod is about to send its SYN: it has a port now.
///
/// One that was connected as it is takes away what an earlier connection with its addresses and ports left behind. While
/// an agent takes over from another, this runs twice for a socket and must do the same again: the entry stays.
#[sock_ops]
pub(crate) fn opening(ctx: SockOpsContext) -> u32 {
    if ctx.op() != BPF_SOCK_OPS_TCP_CONNECT_CB {
        return NO_ANSWER;
    }
    // SAFETY: the context is the kernel's own.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let tuple = tuple(&ctx);
    // A socket may have been connected to an endpoint before, or failed to be, and now to something else.
    let reached = ServicePort::new(tuple.destination, tuple.destination_port);
    let port = tuple.source_port as u32;
    // SAFETY: an entry is its socket's alone, and the socket is busy here.
    let replaced = CONNECTING.get_ptr_mut(cookie).map(|replaced| unsafe { &mut *replaced });
    let applies = |replaced: &&mut Replaced| {
        replaced.endpoint == reached && (replaced.source_port == 0 || replaced.source_port == port)
    };
    if let Some(replaced) = replaced.filter(applies) {
        replaced.source_port = port;
        let _ = OPENED_TO.insert(tuple, replaced.service, 0);
    } else if OPENED_TO.get_ptr(tuple).is_some() {
        let _ = OPENED_TO.remove(tuple);
    }
    NO_ANSWER
}

/// Reads a field of the context: volatile and outside of branches, as in `pick_listener`.
macro_rules! read {
    ($ctx:expr, $($field:tt)+) => {{
        let ops: *const bpf_sock_ops = $ctx.ops;
        // SAFETY: the context is valid for as long as the program runs.
        unsafe { (&raw const (*ops).$($field)+).read_volatile() }
    }};
}

/// Reads an address in both families. The one it is not may be anything.
macro_rules! addresses {
    ($ctx:expr, $v4:ident, $v6:ident) => {
        (
            Address::v4(read!($ctx, $v4)),
            Address::v6([read!($ctx, $v6[0]), read!($ctx, $v6[1]), read!($ctx, $v6[2]), read!($ctx, $v6[3])]),
        )
    };
}

#[inline(always)]
fn tuple(ctx: &SockOpsContext) -> Tuple {
    let (source_v4, source_v6) = addresses!(ctx, local_ip4, local_ip6);
    let (destination_v4, destination_v6) = addresses!(ctx, remote_ip4, remote_ip6);
    let (source, destination) = match read!(ctx, family) {
        AF_INET6 => (source_v6, destination_v6),
        _ => (source_v4, destination_v4),
    };
    Tuple {
        source,
        destination,
        // Here the local port is in host order and the remote one in network order, in the upper half of the word's
        // bytes.
        source_port: read!(ctx, local_port) as u16,
        destination_port: u32::from_be(read!(ctx, remote_port)) as u16,
    }
}

/// The service that a connected socket, whose peer is `address` and `port`, was opened to.
#[inline(always)]
pub(super) fn of_socket(
    socket: *mut bpf_sock,
    family: Family,
    address: Address,
    port: u16,
) -> Option<&'static ServicePort> {
    // SAFETY: the socket is valid for as long as the program runs; the addresses are read volatile because the
    // verifier wants each word by itself.
    let (source, source_port) = unsafe {
        let source = match family {
            Family::V4 => Address::v4((&raw const (*socket).src_ip4).read_volatile()),
            Family::V6 => Address::v6([
                (&raw const (*socket).src_ip6[0]).read_volatile(),
                (&raw const (*socket).src_ip6[1]).read_volatile(),
                (&raw const (*socket).src_ip6[2]).read_volatile(),
                (&raw const (*socket).src_ip6[3]).read_volatile(),
            ]),
        };
        (source, (&raw const (*socket).src_port).read_volatile() as u16)
    };
    let tuple = Tuple { source, destination: address, source_port, destination_port: port };
    // SAFETY: the value is written once, and copied out by the caller.
    unsafe { OPENED_TO.get(tuple) }
}
