//! The load: a server and a client, each a process of one thread in a pod of its own.
//!
//! They are as cheap as ordinary programs are, no cheaper: non-blocking sockets on one event loop, no allocation per request. What
//! they cost is part of what is measured, directly as well as through every contender.

mod client;
mod result;
mod server;

pub(crate) use client::{DriveOptions, drive};
pub(crate) use result::Measured;
pub(crate) use server::{LISTENING, ServeOptions, serve};

/// Bytes of a request, and of its answer.
const MESSAGE: usize = 1024;

/// Bytes that are written at once when as many as possible are.
const BULK: usize = 128 << 10;

/// The first byte of every connection says what it is for.
mod purpose {
    /// Bytes are counted; at their end the count is sent back.
    pub(super) const COUNT: u8 = b'b';
    /// Messages are sent back.
    pub(super) const ECHO: u8 = b'e';
    /// The byte is sent back, and the client closes.
    pub(super) const TOUCH: u8 = b't';
}
