//! The agent's listening sockets.

use core::ptr;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::{bpf_map_lookup_elem, bpf_sk_release};
use mesh_common::{Arrival, Config, Family, MAX_LISTENERS, listener_slot};

use crate::maps::LISTENERS;

/// A reference to a listening socket. The verifier insists on [`release`](Listener::release); there is no `Drop`,
/// because it must see the release on every path.
pub(crate) struct Listener(*mut bpf_sock);

impl Listener {
    /// The listener of `core`, or of the next core that has one: while an agent starts or stops, some do not.
    #[inline(always)]
    pub(crate) fn find(config: &Config, core: u32, family: Family, arrival: Arrival) -> Option<Self> {
        // Its own first: nearly always it is there.
        Self::in_slot(listener_slot(core, family, arrival))
            .or_else(|| Self::in_slot(live_slot(config.listeners, core, family, arrival)))
    }

    #[inline(always)]
    fn in_slot(slot: u32) -> Option<Self> {
        // SAFETY: a look-up in a socket map; the kernel takes a reference, or answers null.
        let socket = unsafe {
            bpf_map_lookup_elem(ptr::from_ref(&LISTENERS).cast_mut().cast(), ptr::from_ref(&slot).cast())
        };
        (!socket.is_null()).then_some(Self(socket.cast()))
    }

    /// The socket, for a helper.
    #[inline(always)]
    pub(crate) fn as_ptr(&self) -> *mut bpf_sock {
        self.0
    }

    /// Gives the reference back.
    #[inline(always)]
    pub(crate) fn release(self) {
        // SAFETY: the reference is ours and given back once.
        unsafe { bpf_sk_release(self.0.cast()) };
    }
}

/// Whether an agent takes connections of this family. A socket leaves the map when it is closed, so this is also
/// how the death of an agent shows, without anybody having to say so.
#[inline(always)]
pub(crate) fn agent_listens(config: &Config, family: Family, arrival: Arrival) -> bool {
    live_slot(config.listeners, 0, family, arrival) != NO_SLOT
}

/// Outside of the map.
const NO_SLOT: u32 = u32::MAX;

#[inline(always)]
fn live_slot(listeners: u32, core: u32, family: Family, arrival: Arrival) -> u32 {
    search_live_slot(listeners, core, family as u32, arrival as u32)
}

/// The slot of `core`'s listener, or of the next core that has one.
///
/// A function that the verifier checks by itself (global linkage, plain integers), once. Inlined, the loop is gone
/// through again for every way that leads to it, and Linux 6.1 gives up at a million instructions.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn search_live_slot(listeners: u32, core: u32, family: u32, arrival: u32) -> u32 {
    let family = if family == Family::V4 as u32 { Family::V4 } else { Family::V6 };
    let arrival = if arrival == Arrival::Steered as u32 { Arrival::Steered } else { Arrival::Around };
    let mut core = core;
    for attempt in 0..MAX_LISTENERS {
        if attempt >= listeners {
            break;
        }
        if core >= listeners {
            core = 0;
        }
        let slot = listener_slot(core, family, arrival);
        if let Some(listener) = Listener::in_slot(slot) {
            listener.release();
            return slot;
        }
        core += 1;
    }
    NO_SLOT
}
