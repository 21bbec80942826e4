//! The agent's listening sockets.

use core::ptr;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::{bpf_map_lookup_elem, bpf_sk_release};
use mesh_common::{Config, Family, MAX_LISTENERS, listener_slot};

use crate::maps::LISTENERS;

/// A reference to a listening socket. The verifier insists on [`release`](Listener::release); there is no `Drop`,
/// because it must see the release on every path.
pub(crate) struct Listener(*mut bpf_sock);

impl Listener {
    /// The listener of `core`, or of the next core that has one: while an agent starts or stops, some do not.
    #[inline(always)]
    pub(crate) fn find(config: &Config, core: u32, family: Family) -> Option<Self> {
        let mut core = core;
        for attempt in 0..MAX_LISTENERS {
            if attempt >= config.listeners {
                break;
            }
            if core >= config.listeners {
                core = 0;
            }
            let slot = listener_slot(core, family);
            // SAFETY: a look-up in a socket map; the kernel takes a reference, or answers null.
            let socket = unsafe {
                bpf_map_lookup_elem(ptr::from_ref(&LISTENERS).cast_mut().cast(), ptr::from_ref(&slot).cast())
            };
            if !socket.is_null() {
                return Some(Self(socket.cast()));
            }
            core += 1;
        }
        None
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
pub(crate) fn agent_listens(config: &Config, family: Family) -> bool {
    match Listener::find(config, 0, family) {
        Some(listener) => {
            listener.release();
            true
        }
        None => false,
    }
}
