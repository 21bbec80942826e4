//! Trunks: what two of our own agents speak after a handshake of mutual TLS instead of HTTP/2. HBONE stays for everyone else; which
//! of the two it is, the TLS handshake agrees on ([`TRUNK`](crate::identity::TRUNK)).
//!
//! A request of a kilobyte costs a proxy little but system calls, wake-ups and packets. So a trunk is made for few of them:
//!
//! - what is read from a pod's socket goes straight into the buffer that is sealed next, and everything that became ready
//!   in one turn of the event loop leaves in one write;
//! - what comes out of a trunk is written to the pod's socket in the same turn, by the trunk itself: no queue between,
//!   no task woken. Only what the socket does not take is kept, as much as the stream's window allows;
//! - bytes are sealed and opened where they are ([`records`]): between two sockets nothing is copied.
//!
//! # On the wire
//!
//! Frames, each with a header of eight bytes in network order: kind (1), zero (1), length of the payload (2), stream (4).
//!
//! | Kind | Payload | Meaning |
//! |---|---|---|
//! | 0 HELLO | window (4), streams (4) | First frame of either side, within TLS; all others are in a trunk's own records: what each stream may have on its way to it, and how many streams it takes. |
//! | 1 OPEN | four texts, each with its length (2): authority, forwarded, baggage, trace parent | The client asks for a connection. Its streams count up from 1. |
//! | 2 OPENED | | The server is connected. |
//! | 3 REFUSED | status (2), reason | It is not, for a reason that HBONE has a status for; or, with status 0, it was not looked at and may be asked for elsewhere. |
//! | 4 DATA | bytes | |
//! | 5 END | | No more bytes in this direction. |
//! | 6 RESET | | The connection behind it broke, or was given up. |
//! | 7 CREDIT | bytes (4) | So many more may be on their way. |
//! | 8 PING, 9 PONG | 8 bytes | |
//! | 10 CLOSING | | No more streams are taken; those that are open go on. |
//!
//! Flow control is per stream only: a trunk's window would be the sum of its streams' anyway, so that one that nobody
//! reads cannot stall another. Everything a peer may send has a bound, and a peer that goes beyond it loses its trunk.

mod client;
mod engine;
mod frame;
mod outgoing;
mod records;
mod relay;
mod server;
mod shared;
mod stream;

pub(super) use client::{Opener, Opening};
pub(super) use engine::Engine;
pub(super) use frame::Open;
pub(super) use relay::relay;
pub(super) use server::OpenRequest;
pub(super) use shared::Shared;
pub(super) use stream::TrunkStream;
