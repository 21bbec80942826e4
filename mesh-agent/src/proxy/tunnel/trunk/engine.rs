//! Drives a trunk: one turn reads what there is, delivers it, and writes out what its streams have to say.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::rc::Rc;
use std::task::{Context, Poll};

use http::StatusCode;
use rustls::Connection;
use tokio::net::TcpStream;

use super::super::headers::plain_reason;
use super::frame::{Frame, Kind, Parser, Piece, ProtocolError};
use super::outgoing::Unwritten;
use super::records::{self, Keys, RecordError};
use super::server::OpenRequest;
use super::shared::{Breakage, Shared};
use super::stream::{Answer, TrunkStream};
use crate::identity::PeerError;
use crate::proxy::socket::{Stream, try_read};
use crate::proxy::tunnel::state::TunnelEnd;

/// Bytes one trunk moves before others get their turn.
const QUOTA: usize = 1 << 20;

/// Bytes that are sealed before they are written.
const BATCH: usize = 256 << 10;

/// Bytes that are read at once, and opened where they are.
const READ: usize = 256 << 10;

thread_local! {
    /// A turn's bytes. They are the worker's, not the trunk's: nothing is left in them when the turn is over.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// Which side of a trunk this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// A trunk, to be driven to its end.
pub(in super::super) struct Engine {
    socket: Stream,
    /// Until both HELLOs are over it.
    session: Option<Box<Connection>>,
    keys: Keys,
    /// The beginning of a record whose rest has not come yet.
    partial: Vec<u8>,
    unwritten: Unwritten,
    side: Side,
    parser: Parser,
    shared: Rc<Shared>,
    /// Connections that were asked for, until the caller takes them.
    asked: VecDeque<OpenRequest>,
    /// The last stream that was opened by the peer.
    last: u32,
    /// Set once no more streams are taken.
    closing: bool,
    /// Set once nothing more comes.
    ended: bool,
}

/// How a turn of reading went.
enum Turn {
    Pending,
    Ended,
}

impl Engine {
    /// Over a socket from which nothing was read beyond the handshake.
    pub(super) fn new(
        socket: Stream,
        mut session: Connection,
        side: Side,
        shared: Rc<Shared>,
    ) -> io::Result<Self> {
        let keys = Keys::of(&mut session, side).map_err(unusable)?;
        session.writer().write_all(&shared.hello())?;
        Ok(Self {
            socket,
            session: Some(Box::new(session)),
            keys,
            partial: Vec::new(),
            unwritten: Unwritten::default(),
            side,
            parser: Parser::default(),
            shared,
            asked: VecDeque::new(),
            last: 0,
            closing: false,
            ended: false,
        })
    }

    /// The state that its streams share.
    pub(in super::super) fn shared(&self) -> &Rc<Shared> {
        &self.shared
    }

    /// Takes no more streams, and tells the peer so.
    pub(in super::super) fn close_gracefully(&mut self) {
        if !std::mem::replace(&mut self.closing, true) {
            self.shared.push(Kind::Closing, 0, &[]);
        }
    }

    /// Drives the trunk until a connection is asked for. Nothing at the end: when the peer closed it, or when it was to be
    /// closed and its last stream ended.
    pub(in super::super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<OpenRequest>>> {
        if let Some(open) = self.asked.pop_front() {
            return Poll::Ready(Some(Ok(open)));
        }
        self.shared.take_turn(cx);
        match self.turn(cx) {
            Ok(()) => {}
            Err(error) => {
                self.ended = true;
                self.shared.end(Breakage::from(&error));
                return Poll::Ready(Some(Err(self.shared.broken().unwrap_or(error))));
            }
        }
        if let Some(open) = self.asked.pop_front() {
            return Poll::Ready(Some(Ok(open)));
        }
        if self.ended {
            self.shared.end(Breakage::Closed);
            return Poll::Ready(None);
        }
        if self.closing && self.shared.tunnel.streams() == 0 && self.is_written() {
            self.close();
            return Poll::Ready(None);
        }
        Poll::Pending
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let turn = self.read(cx)?;
        self.write(cx)?;
        if matches!(turn, Turn::Ended) {
            self.ended = true;
        }
        Ok(())
    }

    fn is_written(&self) -> bool {
        let in_tls = self.session.as_ref().is_some_and(|session| session.wants_write());
        self.shared.outgoing.borrow().is_empty() && self.unwritten.is_empty() && !in_tls
    }

    /// Ends the trunk in good order.
    fn close(&mut self) {
        self.socket.end_in_order();
        self.shared.end(Breakage::Closed);
        self.ended = true;
    }

    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<Turn> {
        // The handshake may have read it already, and reads nothing beyond it.
        if self.shared.peer.get().is_none() && self.hear_greeting()? {
            return Ok(Turn::Ended);
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let mut have = self.partial.len();
            if let Some(to) = scratch.get_mut(..have) {
                to.copy_from_slice(&self.partial);
            }
            self.partial = Vec::new();
            let turn = self.read_into(cx, scratch, &mut have);
            self.partial = scratch.get(..have).unwrap_or_default().to_vec();
            turn
        })
    }

    /// Reads and takes in whole records. `have` bytes of the next one are at the beginning of `scratch`, before and after.
    fn read_into(&mut self, cx: &mut Context<'_>, scratch: &mut [u8], have: &mut usize) -> io::Result<Turn> {
        let mut moved = 0;
        loop {
            if moved >= QUOTA {
                cx.waker().wake_by_ref();
                return Ok(Turn::Pending);
            }
            match self.socket.tcp().poll_read_ready(cx) {
                Poll::Pending => return Ok(Turn::Pending),
                Poll::Ready(ready) => ready?,
            }
            let room = scratch.get_mut(*have..).unwrap_or_default();
            let count = match try_read(self.socket.tcp(), room) {
                Ok(0) => return Ok(Turn::Ended),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            moved += count;
            let all = *have + count;
            let (taken, closed) = self.take_records(scratch.get_mut(..all).unwrap_or_default())?;
            scratch.copy_within(taken..all, 0);
            *have = all - taken;
            if closed {
                return Ok(Turn::Ended);
            }
        }
    }

    /// Takes in the whole records at the beginning of what was read. Says how many bytes those are, and whether the peer has
    /// closed the session.
    fn take_records(&mut self, bytes: &mut [u8]) -> io::Result<(usize, bool)> {
        let mut taken = 0;
        let mut rest = bytes;
        while let Some(header) = rest.first_chunk::<{ records::HEADER }>() {
            let length = records::HEADER + records::length(*header).map_err(unusable)?;
            let Some((record, behind)) = rest.split_at_mut_checked(length) else { break };
            taken += length;
            let closed = match &self.session {
                Some(_) if self.shared.peer.get().is_none() => self.greet(record)?,
                _ => {
                    let plaintext = self.keys.opening.open(record).map_err(unusable)?;
                    self.deliver(plaintext)?;
                    false
                }
            };
            if closed {
                return Ok((taken, true));
            }
            rest = behind;
        }
        Ok((taken, false))
    }

    /// Takes in a record of TLS, of which HELLO is the last. True when the peer has closed the session.
    fn greet(&mut self, record: &[u8]) -> io::Result<bool> {
        let mut rest = record;
        while !rest.is_empty() {
            let Some(session) = &mut self.session else { return Ok(false) };
            // It takes nothing once the peer has closed it.
            if session.read_tls(&mut rest)? == 0 {
                return Ok(true);
            }
            if let Err(error) = session.process_new_packets() {
                return Err(self.refused(error));
            }
        }
        self.hear_greeting()
    }

    /// Takes in what TLS has opened. True when the peer has closed the session.
    fn hear_greeting(&mut self) -> io::Result<bool> {
        /// More than a HELLO takes.
        const PIECE: usize = 64;

        loop {
            let Some(session) = &mut self.session else { return Ok(false) };
            let mut piece = [0; PIECE];
            match session.reader().read(&mut piece) {
                Ok(0) => return Ok(true),
                Ok(count) => self.deliver(piece.get(..count).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Notes when the peer refuses our certificate: in TLS 1.3 it does so after our handshake is done.
    fn refused(&self, error: rustls::Error) -> io::Error {
        let error = io::Error::new(io::ErrorKind::InvalidData, error);
        if let refusal @ PeerError::RefusedOurs(_) = PeerError::from_io(&error) {
            self.shared.tunnel.end(TunnelEnd::Refused(refusal));
        }
        error
    }

    fn deliver(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some(piece) = self.parser.next(&mut bytes).map_err(wrong)? {
            match piece {
                Piece::Data { stream, bytes } => {
                    if let Some(stream) = self.stream(stream, "DATA")? {
                        stream.deliver(bytes).map_err(wrong)?;
                    }
                }
                Piece::Control { stream, frame } => self.take(stream, frame)?,
            }
        }
        Ok(())
    }

    /// A stream that a frame is for; nothing where it has ended on our side.
    fn stream(&self, id: u32, kind: &'static str) -> io::Result<Option<Rc<super::stream::StreamState>>> {
        let stream = self.shared.stream(id);
        let opened = match self.side {
            Side::Client => self.shared.opened.get(),
            Side::Server => self.last,
        };
        if stream.is_none() && (id == 0 || id > opened) {
            return Err(wrong(ProtocolError::UnknownStream { kind, stream: id }));
        }
        Ok(stream)
    }

    fn take(&mut self, id: u32, frame: Frame) -> io::Result<()> {
        let name = frame.name();
        if self.shared.peer.get().is_none() && !matches!(frame, Frame::Hello { .. }) {
            return Err(wrong(ProtocolError::BeforeHello(name)));
        }
        let only = |side: Side| {
            if self.side == side { Ok(()) } else { Err(wrong(ProtocolError::WrongSide(name))) }
        };
        match frame {
            Frame::Hello { window, streams } => {
                if self.shared.peer.get().is_some() {
                    return Err(wrong(ProtocolError::Malformed("second HELLO")));
                }
                self.shared.greeted(window, streams);
            }
            Frame::Open(open) => {
                only(Side::Server)?;
                if id != self.last + 1 {
                    return Err(wrong(ProtocolError::StreamOrder(id)));
                }
                self.last = id;
                if self.closing || self.shared.tunnel.streams() >= self.shared.streams_allowed {
                    self.shared.push(Kind::Refused, id, &[0, 0]);
                } else {
                    let state = self.shared.add(id, self.shared.tunnel.enter());
                    self.asked.push_back(OpenRequest { open, stream: TrunkStream { state } });
                }
            }
            Frame::Opened => {
                only(Side::Client)?;
                if let Some(stream) = self.stream(id, name)? {
                    stream.answer(Answer::Opened);
                }
            }
            Frame::Refused { status, reason } => {
                only(Side::Client)?;
                if let Some(stream) = self.stream(id, name)? {
                    let reason = Some(plain_reason(&reason)).filter(|reason| !reason.is_empty());
                    stream.answer(match StatusCode::from_u16(status) {
                        Ok(status) => Answer::Refused(status, reason),
                        Err(_) => Answer::NotProcessed,
                    });
                }
            }
            Frame::End => {
                if let Some(stream) = self.stream(id, name)? {
                    stream.end();
                }
            }
            Frame::Reset => {
                if let Some(stream) = self.stream(id, name)? {
                    stream.reset();
                }
            }
            Frame::Credit(bytes) => {
                if let Some(stream) = self.stream(id, name)? {
                    stream.add_credit(bytes);
                }
            }
            Frame::Ping(number) => self.shared.answer_ping(number),
            Frame::Pong(number) => self.shared.ponged(number),
            Frame::Closing => self.shared.closing.set(true),
        }
        Ok(())
    }

    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            match self.write_now() {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match self.socket.tcp().poll_write_ready(cx) {
                        Poll::Pending => return Ok(()),
                        Poll::Ready(ready) => ready?,
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes all there is, or as much as the socket takes.
    fn write_now(&mut self) -> io::Result<()> {
        if let Some(session) = &mut self.session {
            while session.wants_write() {
                session.write_tls(&mut Socket(self.socket.tcp()))?;
            }
            if self.shared.peer.get().is_some() {
                self.session = None;
            }
        }
        loop {
            self.unwritten.write_to(self.socket.tcp())?;
            if !self.seal()? {
                return Ok(());
            }
        }
    }

    /// Seals a batch of what its streams have to say. False when there is nothing.
    fn seal(&mut self) -> io::Result<bool> {
        self.shared.push_pong();
        let mut sealed = 0;
        while sealed < BATCH {
            let next = self.shared.outgoing.borrow_mut().pop();
            let Some(next) = next else { break };
            let record = next.seal(&mut self.keys.sealing).map_err(unusable)?;
            sealed += record.len();
            self.unwritten.push(record);
        }
        self.shared.tell_of_room();
        Ok(sealed > 0)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Breaks what streams there are.
        self.shared.end(Breakage::Closed);
    }
}

fn wrong(error: ProtocolError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn unusable(error: RecordError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The socket, as TLS writes to it.
struct Socket<'a>(&'a TcpStream);

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
