//! Moves bytes between the two sides of a connection until both are done, one breaks, or nothing moves any more.
//!
//! Each direction is a [`Flow`]: between two sockets, or between a socket and a stream of a tunnel (`tunnel::relay`).
//! A flow waits for bytes without holding a buffer, takes one to read into, and gives it back as soon as everything
//! is written. While the receiver does not take what was read, nothing more is read: that is the back-pressure, and
//! one buffer is all a slow receiver can pin down.
//!
//! How ends travel:
//! - a FIN from one side becomes a FIN to the other, after all bytes, and the opposite direction goes on;
//! - a reset from one side becomes a reset to the other. A server that answers and resets without reading the rest
//!   of the request has its answer delivered first, as without a proxy between.
//!
//! When the agent is about to end ([`Lifetime`]), a client is told that its server has ended as soon as the connection is at rest, between an
//! answer and the next request: clients that keep connections open open another then, and lose no request.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use slab::Slab;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::socket::{Stream, close_write, try_read};
use crate::telemetry::Traffic;

mod buffers;
#[cfg(test)]
mod tests;

pub use buffers::BufferPool;
pub(super) use buffers::{Buffer, Size};

/// Bytes one flow moves before others get their turn.
pub(super) const QUOTA: usize = 512 << 10;

/// The idle time is looked at this many times before it is over: cheap, and late by a quarter at most.
const IDLE_CHECKS: u32 = 4;

/// How long nothing may have moved on a connection that is at rest.
const REST_CHECK: Duration = Duration::from_millis(20);

/// How a relay ended.
#[derive(Debug)]
pub enum RelayEnd {
    /// Both sides closed in good order.
    Complete,
    /// The client broke the connection.
    ClientBroke(io::Error),
    /// The server broke the connection.
    ServerBroke(io::Error),
    /// Nothing moved for longer than the idle time-out.
    Idle,
}

/// Relays until the end. Both sides are to be dropped then: that closes them, or resets them if it was no good end.
pub(super) async fn relay(
    client: &mut Stream,
    server: &mut Stream,
    traffic: &Traffic,
    buffers: &Rc<BufferPool>,
    lifetime: &Lifetime,
) -> RelayEnd {
    let end = {
        let (client, server) = (client.tcp(), server.tcp());
        let mut upload = TcpFlow::new(client, server, buffers);
        let mut download = TcpFlow::new(server, client, buffers);
        let client_gone = || client.ready(Interest::ERROR);
        run(&mut upload, &mut download, client_gone, traffic, lifetime).await
    };
    if matches!(end, RelayEnd::Complete) {
        client.end_in_order();
        server.end_in_order();
    }
    end
}

/// Runs the two directions of a connection until its end. `client_gone` makes a future that completes when the client broke
/// the connection: it is needed only while the client's bytes cannot be passed on, as then nothing is read from it, and
/// most connections do without. The flows are borrowed: an async function keeps what it is given twice.
pub(super) async fn run<F: Future>(
    upload: &mut impl Flow,
    download: &mut impl Flow,
    client_gone: impl Fn() -> F,
    traffic: &Traffic,
    lifetime: &Lifetime,
) -> RelayEnd {
    let period = lifetime.idle_timeout / IDLE_CHECKS;
    let mut check = pin!(sleep(period));
    let mut idle = IdleCheck::default();
    let mut last_call = Listener { last_call: &lifetime.last_call, place: None };
    // What had moved in all at the last look for a moment of rest.
    let mut rest: Option<u64> = None;
    let turns = Turns::default();
    let mut watching: Option<Pin<Box<F>>> = None;
    // Set when the client was told that the server has ended.
    let mut dismissed = false;
    // Set when the server takes no more bytes; what it had sent before is still delivered.
    let mut server_broke = None;

    poll_fn(|cx| {
        if upload.is_open() && server_broke.is_none() {
            let asked = |bytes| {
                traffic.add_sent(bytes);
                turns.asked(traffic);
            };
            match upload.poll(cx, asked) {
                Poll::Ready(Ok(())) if download.is_open() && !dismissed => upload.end_writer(),
                Poll::Ready(Ok(())) => return Poll::Ready(RelayEnd::Complete),
                Poll::Ready(Err(Broken::Reader(error))) => return Poll::Ready(RelayEnd::ClientBroke(error)),
                Poll::Ready(Err(Broken::Writer(error))) => server_broke = Some(error),
                Poll::Pending if upload.is_blocked() => {
                    let gone = watching.get_or_insert_with(|| Box::pin(client_gone()));
                    if gone.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(RelayEnd::ClientBroke(io::ErrorKind::ConnectionReset.into()));
                    }
                }
                Poll::Pending => {}
            }
        }
        if download.is_open() && !dismissed {
            let answered = |bytes| {
                traffic.add_received(bytes);
                turns.answered(traffic);
            };
            match download.poll(cx, answered) {
                Poll::Ready(Ok(())) if upload.is_open() && server_broke.is_none() => download.end_writer(),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(Broken::Reader(error))) => return Poll::Ready(RelayEnd::ServerBroke(error)),
                Poll::Ready(Err(Broken::Writer(error))) => return Poll::Ready(RelayEnd::ClientBroke(error)),
                Poll::Pending => {}
            }
        }
        match server_broke.take_if(|_| !download.is_open()) {
            Some(error) => return Poll::Ready(RelayEnd::ServerBroke(error)),
            None if !upload.is_open() && !download.is_open() => return Poll::Ready(RelayEnd::Complete),
            None => {}
        }
        last_call.listen(cx);
        if rest.is_none() && lifetime.last_call.is_over.get() {
            rest = Some(moved(traffic));
            check.as_mut().reset(Instant::now() + REST_CHECK);
        }
        while check.as_mut().poll(cx).is_ready() {
            let next = match &mut rest {
                Some(before) if !dismissed => {
                    let now = moved(traffic);
                    let is_quiet = std::mem::replace(before, now) == now
                        && !upload.is_blocked()
                        && !download.is_blocked();
                    if is_quiet && !turns.is_answer_due(traffic) && upload.is_open() && download.is_open() {
                        download.end_writer();
                        dismissed = true;
                    }
                    REST_CHECK
                }
                _ => {
                    if idle.is_over(traffic) {
                        return Poll::Ready(RelayEnd::Idle);
                    }
                    period
                }
            };
            check.as_mut().reset(Instant::now() + next);
        }
        Poll::Pending
    })
    .await
}

/// Finds out that nothing moved, without touching a clock whenever something does.
#[derive(Default)]
struct IdleCheck {
    bytes: u64,
    quiet_periods: u32,
}

impl IdleCheck {
    /// Called once every period; true when nothing moved in [`IDLE_CHECKS`] of them.
    fn is_over(&mut self, traffic: &Traffic) -> bool {
        let bytes = traffic.sent() + traffic.received();
        if bytes == self.bytes {
            self.quiet_periods += 1;
        } else {
            self.quiet_periods = 0;
            self.bytes = bytes;
        }
        self.quiet_periods >= IDLE_CHECKS
    }
}

/// How long relays may go on.
#[derive(Debug, Clone)]
pub struct Lifetime {
    /// A connection on which nothing moves for this long is ended.
    idle_timeout: Duration,
    last_call: Rc<LastCall>,
}

#[derive(Debug, Default)]
struct LastCall {
    is_over: Cell<bool>,
    waiting: RefCell<Slab<Waker>>,
}

/// Has the task of a connection woken at the last call. It is the same task all the time, and asks once.
struct Listener<'a> {
    last_call: &'a LastCall,
    place: Option<usize>,
}

impl Listener<'_> {
    fn listen(&mut self, cx: &Context<'_>) {
        if self.place.is_none() {
            self.place = Some(self.last_call.waiting.borrow_mut().insert(cx.waker().clone()));
        }
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.last_call.waiting.borrow_mut().try_remove(place);
        }
    }
}

impl Lifetime {
    /// Relays of one worker, which share it.
    pub fn new(idle_timeout: Duration) -> Self {
        Self { idle_timeout, last_call: Rc::default() }
    }

    /// Has all relays end as soon as they are at rest.
    pub fn end_at_rest(&self) {
        self.last_call.is_over.set(true);
        for (_, waker) in self.last_call.waiting.borrow().iter() {
            waker.wake_by_ref();
        }
    }
}

/// Whose turn it is, without knowing what is spoken: a request that waits for its answer is not at rest. Not every flow counts by
/// itself what it moves; one of the two does.
#[derive(Default)]
struct Turns {
    /// What had come from the server when the client last sent something.
    received_when_asked: Cell<Option<u64>>,
    /// What had come from the client when the server last did.
    sent_when_answered: Cell<u64>,
}

impl Turns {
    fn asked(&self, traffic: &Traffic) {
        self.received_when_asked.set(Some(traffic.received()));
    }

    fn answered(&self, traffic: &Traffic) {
        self.sent_when_answered.set(traffic.sent());
    }

    fn is_answer_due(&self, traffic: &Traffic) -> bool {
        match self.received_when_asked.get() {
            Some(received) => traffic.received() == received,
            None => traffic.sent() > self.sent_when_answered.get(),
        }
    }
}

fn moved(traffic: &Traffic) -> u64 {
    traffic.sent().wrapping_add(traffic.received())
}

/// Which side of a flow broke.
pub(super) enum Broken {
    Reader(io::Error),
    Writer(io::Error),
}

/// One direction.
pub(super) trait Flow {
    /// Whether the reader's end has not been reached yet.
    fn is_open(&self) -> bool;

    /// Whether the writer does not take what was read.
    fn is_blocked(&self) -> bool;

    /// Moves bytes as long as both sides allow, and `count`s them. Ready once the reader's end is reached and all
    /// is written.
    fn poll(&mut self, cx: &mut Context<'_>, count: impl Fn(u64)) -> Poll<Result<(), Broken>>;

    /// Passes the reader's end on, while the other direction goes on.
    fn end_writer(&mut self);
}

/// One direction between two sockets.
struct TcpFlow<'a> {
    reader: &'a TcpStream,
    writer: &'a TcpStream,
    buffers: &'a Rc<BufferPool>,
    /// Bytes that were read and not yet written.
    pending: Option<Pending>,
    /// Size of the next buffer.
    size: Size,
    ended: bool,
}

struct Pending {
    buffer: Buffer,
    start: usize,
    end: usize,
}

impl<'a> TcpFlow<'a> {
    fn new(reader: &'a TcpStream, writer: &'a TcpStream, buffers: &'a Rc<BufferPool>) -> Self {
        Self { reader, writer, buffers, pending: None, size: Size::default(), ended: false }
    }
}

impl Flow for TcpFlow<'_> {
    fn is_open(&self) -> bool {
        !self.ended
    }

    fn is_blocked(&self) -> bool {
        self.pending.is_some()
    }

    fn poll(&mut self, cx: &mut Context<'_>, count: impl Fn(u64)) -> Poll<Result<(), Broken>> {
        let mut moved = 0;
        loop {
            if let Some(pending) = &mut self.pending {
                ready!(pending.poll_write(cx, self.writer, &count)).map_err(Broken::Writer)?;
                moved += pending.end;
                self.pending = None;
            }
            if moved >= QUOTA {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(self.reader.poll_read_ready(cx)).map_err(Broken::Reader)?;
            let mut buffer = self.buffers.take(self.size);
            let end = match try_read(self.reader, buffer.bytes_mut()) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Poll::Ready(Err(Broken::Reader(error))),
            };
            if end == 0 {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            self.size = buffer.size().after_read(end);
            self.pending = Some(Pending { buffer, start: 0, end });
        }
    }

    fn end_writer(&mut self) {
        close_write(self.writer);
    }
}

impl Pending {
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        writer: &TcpStream,
        count: &impl Fn(u64),
    ) -> Poll<io::Result<()>> {
        while self.start < self.end {
            let bytes = self.buffer.bytes().get(self.start..self.end).unwrap_or_default();
            let written = match writer.try_write(bytes) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(writer.poll_write_ready(cx))?;
                    continue;
                }
                Err(error) => return Poll::Ready(Err(error)),
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.start += written;
            count(u64::try_from(written).unwrap_or(u64::MAX));
        }
        Poll::Ready(Ok(()))
    }
}
