//! In the cgroups of enrolled pods: a connection to a service may go straight to an endpoint on the same node.
//!
//! `connect4` and `connect6` put the endpoint in the place of the service's address before the socket is connected;
//! from there on the connection is one between two pods, and no packet has to be translated. `getpeername4` and
//! `getpeername6` tell the application the address it asked for, and `opening` remembers it by the connection's
//! addresses and ports, for the agent's balancing and reports. Nothing here decides what is allowed: `steer` sees the packets.
//!
//! Left alone is whatever is not TCP in so many words (UDP, multipath TCP), a socket that is bound to a port (it may be
//! connected to that endpoint already), and everything while no agent listens: the endpoints may have changed since.

mod origin;

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::helpers::generated::bpf_get_current_ancestor_cgroup_id;
use aya_ebpf::macros::{cgroup_sock_addr, map};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::{
    Address, Arrival, Family, LocalEndpoint, LocalEndpoints, MAX_CGROUP_DEPTH, Outcome, Pod, ServicePort,
    Tables as _, admits, capacity, captures_outbound,
};

use crate::counters::count;
use crate::listeners::agent_listens;
use crate::maps::{KernelTables, config};

#[map]
static CGROUPS: HashMap<u64, Address> = HashMap::pinned(capacity::CGROUPS, BPF_F_NO_PREALLOC);

#[map]
static SERVICES: HashMap<ServicePort, LocalEndpoints> =
    HashMap::pinned(capacity::SERVICES, BPF_F_NO_PREALLOC);

/// Let the system call go on.
const PROCEED: i32 = 1;

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;

/// Reads a field of the context. Volatile, so that the compiler does not join two loads into one the verifier refuses.
macro_rules! read {
    ($ctx:expr, $($field:tt)+) => {{
        let request: *const bpf_sock_addr = $ctx.sock_addr;
        // SAFETY: the context is valid for as long as the program runs.
        unsafe { (&raw const (*request).$($field)+).read_volatile() }
    }};
}

/// Writes a field of the context, in the same way.
macro_rules! write {
    ($ctx:expr, $value:expr => $($field:tt)+) => {{
        let request: *mut bpf_sock_addr = $ctx.sock_addr;
        let value = $value;
        // SAFETY: as for reading; the kernel takes the value over after the program.
        unsafe { (&raw mut (*request).$($field)+).write_volatile(value) }
    }};
}

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    if let Some(endpoint) = balance(&ctx, read_v4(&ctx)) {
        write_v4(&ctx, &endpoint.address);
        write_port(&ctx, endpoint.port);
    }
    PROCEED
}

/// Also for IPv4 through an IPv6 socket: its address is IPv4-mapped, as all are in the maps.
#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    if let Some(endpoint) = balance(&ctx, read_v6(&ctx)) {
        write_v6(&ctx, &endpoint.address);
        write_port(&ctx, endpoint.port);
    }
    PROCEED
}

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    if let Some(service) = origin::of_socket(socket(&ctx), Family::V4, read_v4(&ctx), read_port(&ctx)) {
        write_v4(&ctx, &service.address);
        write_port(&ctx, service.port);
    }
    PROCEED
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    if let Some(service) = origin::of_socket(socket(&ctx), Family::V6, read_v6(&ctx), read_port(&ctx)) {
        write_v6(&ctx, &service.address);
        write_port(&ctx, service.port);
    }
    PROCEED
}

/// The endpoint to connect to instead of `destination`, if there is to be one.
#[inline(always)]
fn balance(ctx: &SockAddrContext, destination: Address) -> Option<&'static LocalEndpoint> {
    if read!(ctx, type_) != SOCK_STREAM || read!(ctx, protocol) != IPPROTO_TCP {
        return None;
    }
    let service = ServicePort::new(destination, read_port(ctx));
    // SAFETY: the element is replaced as a whole, and stays readable until the program ends.
    let endpoints: &'static LocalEndpoints = unsafe { SERVICES.get(service) }?;
    // SAFETY: the socket is valid for as long as the program runs.
    if unsafe { (*socket(ctx)).src_port } != 0 {
        return None;
    }
    let client = client()?;
    let family = if destination.is_v4() { Family::V4 } else { Family::V6 };
    if !client.is_enrolled()
        || !captures_outbound(&KernelTables, &client, &destination, service.port)
        || !agent_listens(&config(), family, Arrival::Steered)
    {
        return None;
    }
    // SAFETY: takes nothing, returns a number.
    let random = unsafe { bpf_get_prandom_u32() };
    // The agent must know of either that the draw was made; where nothing can be noted, it makes it.
    let Some(endpoint) = endpoints.draw(random) else {
        let _ = origin::drawn(ctx, &service, service);
        count(Outcome::ConnectElsewhere);
        return None;
    };
    let pod = KernelTables.pod(&endpoint.address)?;
    if !admits(&KernelTables, &client, &pod, endpoint) {
        let _ = origin::drawn(ctx, &service, service);
        count(Outcome::ConnectRefused);
        return None;
    }
    origin::drawn(ctx, &service, ServicePort::new(endpoint.address, endpoint.port)).ok()?;
    count(Outcome::ConnectLocal);
    Some(endpoint)
}

/// The pod that is calling. Its containers have cgroups of their own below the pod's.
#[inline(always)]
fn client() -> Option<Pod> {
    for level in 1..=MAX_CGROUP_DEPTH {
        // SAFETY: takes and returns numbers.
        let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if cgroup == 0 {
            return None;
        }
        // SAFETY: the address is copied out at once by the look-up that follows.
        if let Some(address) = unsafe { CGROUPS.get(cgroup) } {
            return KernelTables.pod(address);
        }
    }
    None
}

#[inline(always)]
fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    read!(ctx, __bindgen_anon_1.sk)
}

#[inline(always)]
fn read_v4(ctx: &SockAddrContext) -> Address {
    Address::v4(read!(ctx, user_ip4))
}

#[inline(always)]
fn read_v6(ctx: &SockAddrContext) -> Address {
    Address::v6([
        read!(ctx, user_ip6[0]),
        read!(ctx, user_ip6[1]),
        read!(ctx, user_ip6[2]),
        read!(ctx, user_ip6[3]),
    ])
}

#[inline(always)]
fn read_port(ctx: &SockAddrContext) -> u16 {
    u16::from_be(read!(ctx, user_port) as u16)
}

#[inline(always)]
fn write_v4(ctx: &SockAddrContext, address: &Address) {
    write!(ctx, address.words[3] => user_ip4);
}

#[inline(always)]
fn write_v6(ctx: &SockAddrContext, address: &Address) {
    write!(ctx, address.words[0] => user_ip6[0]);
    write!(ctx, address.words[1] => user_ip6[1]);
    write!(ctx, address.words[2] => user_ip6[2]);
    write!(ctx, address.words[3] => user_ip6[3]);
}

#[inline(always)]
fn write_port(ctx: &SockAddrContext, port: u16) {
    write!(ctx, port.to_be() as u32 => user_port);
}
