//! What a trunk and its streams know of each other. All of it is on one worker.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::task::{Context, Waker};

use tokio::sync::Notify;

use super::super::state::{Guard, TunnelState};
use super::frame::{Kind, header};
use super::outgoing::Outgoing;
use super::stream::StreamState;
use crate::proxy::relay::BufferPool;

/// The state of one trunk.
pub(in super::super) struct Shared {
    pub(super) outgoing: RefCell<Outgoing>,
    streams: RefCell<HashMap<u32, Rc<StreamState>>>,
    /// Streams that wait for room in `outgoing`.
    waiting: RefCell<Vec<Rc<StreamState>>>,
    /// Who drives the trunk.
    driver: RefCell<Option<Waker>>,
    /// Set while the driver is told already.
    scheduled: Cell<bool>,
    pub(super) tunnel: Rc<TunnelState>,
    /// What we let a stream's sender have on the way at first.
    pub(super) window: u32,
    /// Bytes by which the windows of fast streams may still grow, of all streams together.
    growth: Cell<u32>,
    /// The peer's HELLO, once it came: its window, and how many streams it takes.
    pub(super) peer: Cell<Option<(u32, u32)>>,
    /// Streams that we take at a time.
    pub(super) streams_allowed: usize,
    /// The last stream that we opened.
    pub(super) opened: Cell<u32>,
    /// Set once the peer takes no more streams.
    pub(super) closing: Cell<bool>,
    broken: RefCell<Option<Breakage>>,
    /// A PING that was not answered yet.
    asked: Cell<Option<u64>>,
    /// Our last PING and the peer's last PONG.
    ping: Cell<u64>,
    pong: Cell<u64>,
    ponged: Notify,
}

/// Bytes by which the windows of a trunk's fast streams may grow, together: 4 MiB on their way are 32 Gbit/s at a
/// millisecond's round trip, and more than a few streams of a trunk are never that fast at a time.
const GROWTH: u32 = 16 << 20;

/// Why a trunk broke.
#[derive(Debug, Clone)]
pub(super) enum Breakage {
    Io(io::ErrorKind, String),
    Closed,
}

impl Breakage {
    fn error(&self) -> io::Error {
        match self {
            Self::Io(kind, text) => io::Error::new(*kind, text.clone()),
            Self::Closed => io::Error::new(io::ErrorKind::BrokenPipe, "tunnel closed by the peer"),
        }
    }
}

impl From<&io::Error> for Breakage {
    fn from(error: &io::Error) -> Self {
        Self::Io(error.kind(), error.to_string())
    }
}

impl Shared {
    pub(super) fn new(
        buffers: &Rc<BufferPool>,
        tunnel: Rc<TunnelState>,
        window: u32,
        streams: u32,
    ) -> Rc<Self> {
        Rc::new(Self {
            outgoing: RefCell::new(Outgoing::new(buffers)),
            streams: RefCell::default(),
            waiting: RefCell::default(),
            driver: RefCell::default(),
            scheduled: Cell::new(false),
            tunnel,
            window,
            growth: Cell::new(GROWTH),
            peer: Cell::new(None),
            streams_allowed: usize::try_from(streams).unwrap_or(usize::MAX),
            opened: Cell::new(0),
            closing: Cell::new(false),
            broken: RefCell::default(),
            asked: Cell::new(None),
            ping: Cell::new(0),
            pong: Cell::new(0),
            ponged: Notify::new(),
        })
    }

    /// Our HELLO.
    pub(super) fn hello(&self) -> Vec<u8> {
        let streams = u32::try_from(self.streams_allowed).unwrap_or(u32::MAX);
        let payload = [self.window.to_be_bytes(), streams.to_be_bytes()].concat();
        [&header(Kind::Hello, 0, payload.len()), &payload[..]].concat()
    }

    /// Adds a frame, to leave in the trunk's next turn.
    pub(super) fn push(&self, kind: Kind, stream: u32, payload: &[u8]) {
        self.outgoing.borrow_mut().push(kind, stream, payload);
        self.schedule();
    }

    /// Has the trunk take a turn.
    pub(super) fn schedule(&self) {
        if !self.scheduled.replace(true)
            && let Some(driver) = &*self.driver.borrow()
        {
            driver.wake_by_ref();
        }
    }

    /// Called by the driver at the start of its turn.
    pub(super) fn take_turn(&self, cx: &Context<'_>) {
        self.scheduled.set(false);
        let mut driver = self.driver.borrow_mut();
        match &mut *driver {
            Some(known) => known.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    pub(super) fn stream(&self, id: u32) -> Option<Rc<StreamState>> {
        self.streams.borrow().get(&id).cloned()
    }

    /// Takes a stream in.
    pub(super) fn add(self: &Rc<Self>, id: u32, guard: Guard) -> Rc<StreamState> {
        let credit = self.peer.get().map_or(0, |(window, _)| window);
        let stream = Rc::new(StreamState::new(id, Rc::clone(self), guard, credit));
        self.streams.borrow_mut().insert(id, Rc::clone(&stream));
        stream
    }

    /// Forgets a stream. What still comes for it is ignored.
    pub(super) fn remove(&self, id: u32) {
        // Dropped only after the map is free again.
        let _removed = self.streams.borrow_mut().remove(&id);
    }

    /// Streams get the peer's window once it is known.
    pub(super) fn greeted(&self, window: u32, streams: u32) {
        self.peer.set(Some((window, streams)));
        for stream in self.all() {
            stream.add_credit(window);
        }
    }

    fn all(&self) -> Vec<Rc<StreamState>> {
        self.streams.borrow().values().cloned().collect()
    }

    /// Lends a fast stream up to `wanted` bytes more of window, as far as there are any left.
    pub(super) fn lend_growth(&self, wanted: u32) -> u32 {
        let lent = wanted.min(self.growth.get());
        self.growth.set(self.growth.get() - lent);
        lent
    }

    pub(super) fn return_growth(&self, lent: u32) {
        self.growth.set(self.growth.get() + lent);
    }

    /// Has a stream told when there is room.
    pub(super) fn wait_for_room(&self, stream: &Rc<StreamState>) {
        if !stream.waits_for_room.replace(true) {
            self.waiting.borrow_mut().push(Rc::clone(stream));
        }
    }

    /// Tells those that wait for room.
    pub(super) fn tell_of_room(&self) {
        if self.waiting.borrow().is_empty() || !self.outgoing.borrow().has_much_room() {
            return;
        }
        for stream in self.waiting.take() {
            stream.waits_for_room.set(false);
            stream.wake();
        }
    }

    /// The trunk is over: for its streams as well.
    pub(super) fn end(&self, why: Breakage) {
        self.broken.borrow_mut().get_or_insert(why);
        self.waiting.take();
        for stream in self.all() {
            stream.wake();
        }
        self.ponged.notify_waiters();
    }

    /// Why it is over, if it is.
    pub(super) fn broken(&self) -> Option<io::Error> {
        let broken = self.broken.borrow();
        let why = broken.as_ref()?;
        Some(self.tunnel.end_error().unwrap_or_else(|| why.error()))
    }

    /// Asks whether the peer is there, and waits for its answer. An error when the trunk is over.
    pub(in super::super) async fn ping(&self) -> Result<(), ()> {
        let number = self.ping.get() + 1;
        self.ping.set(number);
        self.push(Kind::Ping, 0, &number.to_be_bytes());
        loop {
            let told = self.ponged.notified();
            if self.broken.borrow().is_some() {
                return Err(());
            }
            if self.pong.get() >= number {
                return Ok(());
            }
            told.await;
        }
    }

    /// Answers a PING, the last one only: whoever asks faster than we write gets fewer answers.
    pub(super) fn answer_ping(&self, number: u64) {
        self.asked.set(Some(number));
        self.schedule();
    }

    pub(super) fn push_pong(&self) {
        if let Some(number) = self.asked.take() {
            self.outgoing.borrow_mut().push(Kind::Pong, 0, &number.to_be_bytes());
        }
    }

    pub(super) fn ponged(&self, number: u64) {
        self.pong.set(number);
        self.ponged.notify_waiters();
    }
}
