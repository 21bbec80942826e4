//! One stream of a trunk.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use http::StatusCode;
use tokio::net::TcpStream;

use super::super::state::Guard;
use super::frame::{Kind, ProtocolError};
use super::shared::Shared;
use crate::identity::Identity;
use crate::proxy::relay::Size;
use crate::proxy::tunnel::Far;
use crate::telemetry::Traffic;

/// The answer to OPEN.
#[derive(Debug)]
pub(super) enum Answer {
    Opened,
    /// With a reason, where one was given.
    Refused(StatusCode, Option<String>),
    /// The peer has not looked at it.
    NotProcessed,
}

/// The state of one stream, known to the trunk and to the connection.
pub(super) struct StreamState {
    id: u32,
    pub(super) trunk: Rc<Shared>,
    guard: Guard,
    /// The connection's task.
    waker: RefCell<Option<Waker>>,
    pub(super) waits_for_room: Cell<bool>,
    /// Bytes that we may send.
    credit: Cell<u32>,
    /// Bytes that were taken and that the sender has not got credit for.
    taken: Cell<u32>,
    /// Bytes in `queue`, and not credited: never more than the window.
    received: Cell<u32>,
    /// What the sender may have on the way: grows while the sink takes everything at once.
    window: Cell<u32>,
    answer: RefCell<Option<Answer>>,
    /// Where bytes go at once, while the connection is relayed.
    sink: RefCell<Option<Sink>>,
    /// What the sink has not taken.
    queue: RefCell<Queue>,
    /// The peer's END came.
    ended: Cell<bool>,
    /// The peer's RESET came.
    reset: Cell<bool>,
    /// Nothing has to be said of its end.
    over: Cell<bool>,
    /// Our END was sent.
    end_sent: Cell<bool>,
}

/// The socket behind a stream.
pub(super) struct Sink {
    pub(super) tcp: Rc<TcpStream>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) far: Far,
    /// Why it takes no more.
    pub(super) broken: Option<io::Error>,
}

/// Bytes that wait for the sink.
#[derive(Default)]
struct Queue {
    pieces: VecDeque<Vec<u8>>,
    /// Bytes of the first piece that were taken.
    start: usize,
}

/// Pieces given to the kernel in one write.
const SLICES: usize = 16;

/// The largest window of a stream whose bytes are taken as fast as they come.
const LARGEST_WINDOW: u32 = 4 << 20;

/// Pieces below this size are joined with what comes after them.
const PIECE: usize = 16 << 10;

impl Queue {
    fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    fn push(&mut self, bytes: &[u8]) {
        match self.pieces.back_mut() {
            Some(last) if last.len() + bytes.len() <= PIECE => last.extend_from_slice(bytes),
            _ => self.pieces.push_back(bytes.to_vec()),
        }
    }

    /// Writes once.
    fn write(&mut self, tcp: &TcpStream) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut filled = 0;
        for (position, (slice, piece)) in slices.iter_mut().zip(&self.pieces).enumerate() {
            let start = if position == 0 { self.start } else { 0 };
            *slice = IoSlice::new(piece.get(start..).unwrap_or_default());
            filled += 1;
        }
        let written = tcp.try_write_vectored(slices.get(..filled).unwrap_or_default())?;
        let mut left = written;
        while let Some(first) = self.pieces.front()
            && left > 0
        {
            let rest = first.len() - self.start;
            if left < rest {
                self.start += left;
                break;
            }
            left -= rest;
            self.start = 0;
            self.pieces.pop_front();
        }
        if self.pieces.is_empty() {
            // A quiet stream keeps no memory.
            self.pieces = VecDeque::new();
        }
        if written == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(written) }
    }
}

impl StreamState {
    pub(super) fn new(id: u32, trunk: Rc<Shared>, guard: Guard, credit: u32) -> Self {
        let window = trunk.window;
        Self {
            id,
            trunk,
            guard,
            waker: RefCell::default(),
            waits_for_room: Cell::new(false),
            credit: Cell::new(credit),
            taken: Cell::new(0),
            received: Cell::new(0),
            window: Cell::new(window),
            answer: RefCell::default(),
            sink: RefCell::default(),
            queue: RefCell::default(),
            ended: Cell::new(false),
            reset: Cell::new(false),
            over: Cell::new(false),
            end_sent: Cell::new(false),
        }
    }

    /// Has the connection's task look again.
    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(known) => known.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    pub(super) fn add_credit(&self, bytes: u32) {
        let before = self.credit.get();
        // No more than 4 GiB can be used anyway.
        self.credit.set(before.saturating_add(bytes));
        if before == 0 {
            self.wake();
        }
    }

    /// Bytes came: they go to the sink, and what that does not take is kept.
    pub(super) fn deliver(&self, bytes: &[u8]) -> Result<(), ProtocolError> {
        let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let received = self.received.get().saturating_add(count);
        if received > self.window.get() || self.ended.get() {
            return Err(ProtocolError::Window(self.id));
        }
        self.received.set(received);
        let mut queue = self.queue.borrow_mut();
        let waiting = !queue.is_empty();
        let mut rest = bytes;
        if !waiting && let Some(sink) = &mut *self.sink.borrow_mut() {
            while !rest.is_empty() {
                match sink.tcp.try_write(rest) {
                    Ok(0) => break,
                    Ok(written) => {
                        sink.count(written);
                        self.credit_back(written, true);
                        rest = rest.get(written..).unwrap_or_default();
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        sink.broken = Some(error);
                        self.wake();
                        return Ok(());
                    }
                }
            }
        }
        if !rest.is_empty() {
            queue.push(rest);
            if !waiting {
                self.wake();
            }
        }
        Ok(())
    }

    /// Bytes were taken: the sender gets credit for them, a good part of the window at a time.
    fn credit_back(&self, count: usize, keeps_up: bool) {
        let taken = self.taken.get().saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        let window = self.window.get();
        if taken < window / 2 {
            self.taken.set(taken);
            return;
        }
        self.taken.set(0);
        self.received.set(self.received.get().saturating_sub(taken));
        if self.ended.get() {
            return;
        }
        // Half a window came and was taken at once: the sender is as fast as the window lets it be, or slower.
        let wanted = if keeps_up { window.min(LARGEST_WINDOW.saturating_sub(window)) } else { 0 };
        let grown = self.trunk.lend_growth(wanted);
        self.window.set(window + grown);
        self.trunk.push(Kind::Credit, self.id, &(taken + grown).to_be_bytes());
    }

    pub(super) fn answer(&self, answer: Answer) {
        self.answer.replace(Some(answer));
        self.wake();
    }

    pub(super) fn end(&self) {
        self.ended.set(true);
        self.wake();
    }

    pub(super) fn reset(&self) {
        self.reset.set(true);
        self.wake();
    }

    /// Why nothing more comes.
    pub(super) fn broken(&self) -> Option<io::Error> {
        let reset = || io::Error::new(io::ErrorKind::ConnectionReset, "stream reset by the peer");
        if self.reset.get() { Some(reset()) } else { self.trunk.broken() }
    }
}

impl Sink {
    fn count(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        match self.far {
            Far::Client => self.traffic.add_sent(bytes),
            Far::Server => self.traffic.add_received(bytes),
        }
    }
}

/// A stream of a trunk. Reset when dropped, unless both directions have ended.
pub(in super::super) struct TrunkStream {
    pub(super) state: Rc<StreamState>,
}

impl TrunkStream {
    /// Who is at the other end of the trunk, proven.
    pub(in super::super) fn peer(&self) -> Option<&Arc<Identity>> {
        self.state.guard.peer()
    }

    /// Waits for the answer to OPEN.
    pub(super) fn poll_answer(&self, cx: &Context<'_>) -> Poll<io::Result<Answer>> {
        self.state.register(cx);
        if let Some(answer) = self.state.answer.take() {
            return Poll::Ready(Ok(answer));
        }
        match self.state.broken() {
            Some(error) => Poll::Ready(Err(error)),
            None => Poll::Pending,
        }
    }

    /// Waits until nothing can come of the stream any more.
    pub(super) fn poll_gone(&self, cx: &Context<'_>) -> Poll<()> {
        self.state.register(cx);
        if self.state.broken().is_some() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// The stream ended with its answer.
    pub(super) fn over(&self) {
        self.state.over.set(true);
    }

    pub(super) fn push(&self, kind: Kind, payload: &[u8]) {
        self.state.trunk.push(kind, self.state.id, payload);
    }

    /// Has bytes go straight to the socket from now on, until the result is dropped.
    pub(super) fn attach(&self, tcp: &Rc<TcpStream>, traffic: &Arc<Traffic>, far: Far) -> Attached<'_> {
        let sink = Sink { tcp: Rc::clone(tcp), traffic: Arc::clone(traffic), far, broken: None };
        self.state.sink.replace(Some(sink));
        Attached(&self.state)
    }

    /// Waits until bytes may be sent, and says how many.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<usize> {
        self.state.register(cx);
        let credit = self.state.credit.get();
        if credit == 0 {
            return Poll::Pending;
        }
        if !self.state.trunk.outgoing.borrow().has_room() {
            self.state.trunk.wait_for_room(&self.state);
            return Poll::Pending;
        }
        Poll::Ready(usize::try_from(credit).unwrap_or(usize::MAX))
    }

    /// Sends what there is at the socket. `most` bytes have room. Returns how many there were.
    pub(super) fn send_from(&self, tcp: &TcpStream, size: Size, most: usize) -> io::Result<usize> {
        let count = self.state.trunk.outgoing.borrow_mut().read_from(tcp, self.state.id, size, most)?;
        if count > 0 {
            let used = u32::try_from(count).unwrap_or(u32::MAX);
            self.state.credit.set(self.state.credit.get().saturating_sub(used));
            self.state.trunk.schedule();
        }
        Ok(count)
    }

    /// Says that nothing more will be sent.
    pub(super) fn end(&self) {
        if !self.state.end_sent.replace(true) {
            self.push(Kind::End, &[]);
        }
    }

    /// Writes what waits for the socket. Ready at the end of the stream.
    pub(super) fn poll_drain(&self, cx: &mut Context<'_>, tcp: &TcpStream, patient: bool) -> Poll<Drained> {
        let state = &self.state;
        state.register(cx);
        if let Some(error) = state.sink.borrow_mut().as_mut().and_then(|sink| sink.broken.take()) {
            return Poll::Ready(Drained::SinkBroke(error));
        }
        loop {
            let mut queue = state.queue.borrow_mut();
            if queue.is_empty() {
                break;
            }
            match queue.write(tcp) {
                Ok(written) => {
                    drop(queue);
                    if let Some(sink) = &*state.sink.borrow() {
                        sink.count(written);
                    }
                    state.credit_back(written, false);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match tcp.poll_write_ready(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Drained::SinkBroke(error)),
                    Poll::Pending => {
                        return match state.broken() {
                            Some(error) if !patient => Poll::Ready(Drained::Broke(error)),
                            _ => Poll::Pending,
                        };
                    }
                },
                Err(error) => return Poll::Ready(Drained::SinkBroke(error)),
            }
        }
        if state.ended.get() {
            return Poll::Ready(Drained::Ended);
        }
        match state.broken() {
            Some(error) => Poll::Ready(Drained::Broke(error)),
            None => Poll::Pending,
        }
    }

    /// Whether bytes wait for the socket.
    pub(super) fn is_blocked(&self) -> bool {
        !self.state.queue.borrow().is_empty()
    }
}

/// What became of the direction from the trunk.
pub(super) enum Drained {
    /// All is written, and nothing more comes.
    Ended,
    /// The stream or its trunk broke.
    Broke(io::Error),
    /// The socket broke.
    SinkBroke(io::Error),
}

/// A stream's bytes go to a socket.
pub(super) struct Attached<'a>(&'a StreamState);

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.0.sink.replace(None);
    }
}

impl Drop for TrunkStream {
    fn drop(&mut self) {
        let state = &self.state;
        let over = state.over.get() || state.reset.get() || (state.ended.get() && state.end_sent.get());
        if !over && state.trunk.broken().is_none() {
            self.push(Kind::Reset, &[]);
        }
        state.trunk.return_growth(state.window.replace(state.trunk.window) - state.trunk.window);
        state.trunk.remove(state.id);
        state.waker.replace(None);
    }
}
