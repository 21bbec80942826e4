//! One stream of an HBONE tunnel: bytes to and from the other side's connection.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::ReadBuf;

use super::super::state::Guard;
use crate::identity::Identity;
use crate::proxy::relay::Buffer;

/// Chunks of a stream that are not written to the tunnel's socket yet. Two: one is written while the other is filled.
/// HTTP/2's windows count bytes, not the buffers they lie in; this keeps a client that sends byte by byte into a
/// tunnel that stands still from taking a buffer for each.
const UNSENT_CHUNKS: u32 = 2;

/// Pieces below this size are copied together while they wait for a slow reader: a small frame keeps alive the whole
/// block that `h2` has read it into.
const SMALL_PIECE: usize = 4 << 10;

/// Bytes gathered for one write.
const GATHERED: usize = 128 << 10;

/// A stream of an HBONE tunnel. Reset when dropped, unless both directions have ended.
pub(in super::super) struct HboneStream {
    pub(in super::super) send: SendHalf,
    pub(in super::super) receive: ReceiveHalf,
}

impl HboneStream {
    pub(in super::super) fn new(send: SendStream<Chunk>, receive: RecvStream, guard: Guard) -> Self {
        let guard = Rc::new(guard);
        Self {
            send: SendHalf {
                stream: send,
                unsent: Rc::default(),
                reserved: false,
                ended: false,
                tunnel: Rc::clone(&guard),
            },
            receive: ReceiveHalf {
                stream: receive,
                pieces: VecDeque::new(),
                small: BytesMut::new(),
                length: 0,
                ended: false,
                tunnel: guard,
            },
        }
    }

    /// Who is at the other end of the tunnel, proven.
    pub(in super::super) fn peer(&self) -> Option<&Arc<Identity>> {
        self.send.tunnel.peer()
    }
}

/// The direction towards the other side.
pub(in super::super) struct SendHalf {
    stream: SendStream<Chunk>,
    unsent: Rc<Unsent>,
    /// Whether capacity may be assigned to the stream that it does not use.
    reserved: bool,
    ended: bool,
    tunnel: Rc<Guard>,
}

impl SendHalf {
    /// Waits until there is room to send, and says how much, up to `wanted` bytes.
    pub(in super::super) fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<io::Result<usize>> {
        if self.unsent.is_full(cx) {
            return Poll::Pending;
        }
        self.stream.reserve_capacity(wanted);
        self.reserved = true;
        // `poll_capacity` tells of growth only: what is there already has to be asked for.
        let room = self.stream.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room.min(wanted)));
        }
        match ready!(self.stream.poll_capacity(cx)) {
            Some(Ok(room)) => Poll::Ready(Ok(room.min(wanted))),
            Some(Err(error)) => Poll::Ready(Err(self.tunnel.broken(error))),
            None => Poll::Ready(Err(ready!(self.poll_broken(cx)))),
        }
    }

    /// Gives back the room that was not used: the other streams of the tunnel have it from then on.
    pub(in super::super) fn release_room(&mut self) {
        if std::mem::take(&mut self.reserved) {
            self.stream.reserve_capacity(0);
        }
    }

    /// Sends bytes for which there is room.
    pub(in super::super) fn send(&mut self, buffer: Buffer, count: usize) -> io::Result<()> {
        let chunk =
            Chunk { _lent: Some(Unsent::enter(&self.unsent)), buffer: Some(buffer), start: 0, end: count };
        self.stream.send_data(chunk, false).map_err(|error| self.tunnel.broken(error))
    }

    /// Says that nothing more will be sent. What goes wrong with it is seen by reading.
    pub(in super::super) fn end(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            let nothing = Chunk { _lent: None, buffer: None, start: 0, end: 0 };
            let _ = self.stream.send_data(nothing, true);
        }
    }

    /// Waits until the other side does not want the rest any more, and says why.
    pub(in super::super) fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let error = match ready!(self.stream.poll_reset(cx)) {
            Ok(reason) => reason.into(),
            Err(error) => error,
        };
        Poll::Ready(self.tunnel.broken(error))
    }

    /// Waits until all is written to the tunnel's socket: a reset would overtake it.
    pub(in super::super) async fn sent(&self) {
        poll_fn(|cx| self.unsent.poll_empty(cx)).await;
    }

    pub(in super::super) fn reset(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }
}

/// The direction from the other side.
pub(in super::super) struct ReceiveHalf {
    stream: RecvStream,
    /// What has been received and not been taken, in order; after it `small`.
    pieces: VecDeque<Bytes>,
    /// The small pieces at the end, copied together.
    small: BytesMut,
    length: usize,
    ended: bool,
    tunnel: Rc<Guard>,
}

impl ReceiveHalf {
    /// Whether nothing is there to be taken.
    pub(in super::super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Receives what there is. Ready with true when there is something to take, with false at the end.
    pub(in super::super) fn poll_gather(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        while self.length < GATHERED && !self.ended {
            match self.poll_receive(cx) {
                Poll::Ready(Ok(())) => {}
                // What came before the error is taken first; the error comes again.
                Poll::Ready(Err(error)) if self.is_empty() => return Poll::Ready(Err(error)),
                Poll::Ready(Err(_)) => break,
                Poll::Pending if self.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(!self.is_empty()))
    }

    /// Receives what there is although nobody takes it: as much as the stream's window allows. Returns an error
    /// when the stream broke.
    pub(in super::super) fn hoard(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while !self.ended {
            match self.poll_receive(cx) {
                Poll::Ready(received) => received?,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(self.stream.poll_data(cx)) {
            Some(Ok(bytes)) => self.push(bytes),
            Some(Err(error)) => return Poll::Ready(Err(self.tunnel.broken(error))),
            None => self.ended = true,
        }
        Poll::Ready(Ok(()))
    }

    fn push(&mut self, bytes: Bytes) {
        let first = self.is_empty();
        self.length += bytes.len();
        if bytes.len() < SMALL_PIECE && !first {
            self.small.extend_from_slice(&bytes);
        } else if !bytes.is_empty() {
            if !self.small.is_empty() {
                self.pieces.push_back(self.small.split().freeze());
            }
            self.pieces.push_back(bytes);
        }
    }

    /// Points `slices` at what can be taken, and says how many it filled.
    pub(in super::super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let pieces = self.pieces.iter().map(|piece| &**piece).chain(std::iter::once(&*self.small));
        let mut filled = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces.filter(|piece| !piece.is_empty())) {
            *slice = IoSlice::new(piece);
            filled += 1;
        }
        filled
    }

    /// Copies what can be taken, as far as there is room for it.
    pub(in super::super) fn peek(&self, to: &mut ReadBuf<'_>) -> usize {
        let before = to.remaining();
        for piece in self.pieces.iter().map(|piece| &**piece).chain(std::iter::once(&*self.small)) {
            let count = piece.len().min(to.remaining());
            to.put_slice(piece.get(..count).unwrap_or_default());
        }
        before - to.remaining()
    }

    /// Takes bytes away, and lets the sender send as many more.
    pub(in super::super) fn take(&mut self, count: usize) {
        self.length -= count;
        let mut left = count;
        while left > 0 {
            let Some(piece) = self.pieces.front_mut() else {
                self.small.advance(left);
                break;
            };
            let taken = left.min(piece.len());
            piece.advance(taken);
            left -= taken;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
        if self.is_empty() {
            // A quiet stream keeps no memory.
            self.pieces = VecDeque::new();
            self.small = BytesMut::new();
        }
        // Fails only if more is released than was received.
        let _ = self.stream.flow_control().release_capacity(count);
    }
}

/// Bytes in a lent buffer, on their way to the tunnel's socket.
pub(in super::super) struct Chunk {
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
    _lent: Option<Lent>,
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.end - self.start
    }

    fn chunk(&self) -> &[u8] {
        self.buffer.as_ref().and_then(|buffer| buffer.bytes().get(self.start..self.end)).unwrap_or_default()
    }

    fn advance(&mut self, count: usize) {
        self.start += count;
    }
}

/// The chunks of a stream that are not written to the tunnel's socket yet.
#[derive(Default)]
struct Unsent {
    chunks: Cell<u32>,
    /// Who waits for one to be written.
    waiting: RefCell<Option<Waker>>,
}

impl Unsent {
    fn enter(unsent: &Rc<Self>) -> Lent {
        unsent.chunks.set(unsent.chunks.get() + 1);
        Lent(Rc::clone(unsent))
    }

    fn is_full(&self, cx: &Context<'_>) -> bool {
        let full = self.chunks.get() >= UNSENT_CHUNKS;
        if full {
            self.wait(cx);
        }
        full
    }

    fn poll_empty(&self, cx: &Context<'_>) -> Poll<()> {
        if self.chunks.get() == 0 {
            return Poll::Ready(());
        }
        self.wait(cx);
        Poll::Pending
    }

    fn wait(&self, cx: &Context<'_>) {
        self.waiting.replace(Some(cx.waker().clone()));
    }
}

/// One unsent chunk; sent, or given up, when dropped.
struct Lent(Rc<Unsent>);

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.chunks.set(self.0.chunks.get() - 1);
        if let Some(waiting) = self.0.waiting.take() {
            waiting.wake();
        }
    }
}
