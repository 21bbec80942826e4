//! The kernel side of the mesh: programs that bring the TCP connections of enrolled pods to the agent, or straight to
//! a pod of the same node.
//!
//! `steer` runs for every packet that enters the node through a device and puts those that belong to the agent into the
//! agent's network namespace. `guard` runs for every packet that leaves the node for an enrolled pod, and sends there what
//! has come past `steer`. `pick_listener` runs when the kernel then looks for a listening socket, and names the one of a
//! data-plane core. `deliver` runs for what the agent sends back. The programs of `connect` run before any packet, when a
//! pod connects to a service, and may choose the endpoint. What they decide is in `mesh_common`, where user space runs
//! it too.
#![no_std]
#![no_main]
// One instruction that the compiler does not offer otherwise; see `flows`.
#![feature(asm_experimental_arch)]

mod connect;
mod counters;
mod deliver;
mod flows;
mod guard;
mod listeners;
mod maps;
mod parse;
mod peer;
mod pick_listener;
mod reset;
mod socket;
mod steer;

/// Never reached: nothing here can panic, and the verifier would refuse the loop if it were kept.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are lent to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
