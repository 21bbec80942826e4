//! Frames on their way out: what is sealed and written when the trunk has its turn.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use tokio::net::TcpStream;

use super::frame::{DATA_PAYLOAD, HEADER, Kind, header};
use crate::proxy::relay::{Buffer, BufferPool, Size};
use crate::proxy::socket::try_read;

/// Streams wait for room once this many bytes have not been sealed. Control frames never wait; each of them answers
/// something that is bounded itself.
const LIMIT: usize = 512 << 10;

/// Frames in the order in which they leave.
pub(super) struct Outgoing {
    buffers: Rc<BufferPool>,
    full: VecDeque<Chunk>,
    /// The last one, which is being filled.
    tail: Option<Chunk>,
    bytes: usize,
}

/// A buffer, filled from the front.
struct Chunk {
    buffer: Buffer,
    filled: usize,
}

impl Chunk {
    fn free(&self) -> usize {
        self.buffer.size().bytes() - self.filled
    }

    fn push(&mut self, bytes: &[u8]) {
        if let Some(to) = self.buffer.bytes_mut().get_mut(self.filled..self.filled + bytes.len()) {
            to.copy_from_slice(bytes);
            self.filled += bytes.len();
        }
    }
}

impl Outgoing {
    pub(super) fn new(buffers: &Rc<BufferPool>) -> Self {
        Self { buffers: Rc::clone(buffers), full: VecDeque::new(), tail: None, bytes: 0 }
    }

    /// Whether a stream may add bytes.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < LIMIT
    }

    /// Whether those that wait for room should be told: late, so that they come back to a good piece of it.
    pub(super) fn has_much_room(&self) -> bool {
        self.bytes <= LIMIT / 2
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Adds a frame.
    pub(super) fn push(&mut self, kind: Kind, stream: u32, payload: &[u8]) {
        self.push_bytes(&header(kind, stream, payload.len()));
        self.push_bytes(payload);
    }

    /// Reads what there is at the socket, `most` bytes of it, into a frame of DATA. Returns how many bytes there were.
    pub(super) fn read_from(
        &mut self,
        tcp: &TcpStream,
        stream: u32,
        size: Size,
        most: usize,
    ) -> io::Result<usize> {
        let most = most.min(size.bytes() - HEADER).min(DATA_PAYLOAD);
        let chunk = self.chunk_with(most + HEADER, size);
        let start = chunk.filled + HEADER;
        let most = most.min(chunk.free() - HEADER);
        let room = chunk.buffer.bytes_mut().get_mut(start..start + most).unwrap_or_default();
        let count = match try_read(tcp, room) {
            Ok(count @ 1..) => count,
            nothing => {
                self.drop_empty();
                return nothing;
            }
        };
        chunk.push(&header(Kind::Data, stream, count));
        chunk.filled += count;
        self.bytes += HEADER + count;
        Ok(count)
    }

    /// Takes the next bytes to be sealed.
    pub(super) fn pop(&mut self) -> Option<Sealable> {
        let chunk = self.full.pop_front().or_else(|| self.tail.take())?;
        self.bytes -= chunk.filled;
        Some(Sealable(chunk))
    }

    /// The last buffer, or a new one where that has no room for `wanted` bytes.
    fn chunk_with(&mut self, wanted: usize, size: Size) -> &mut Chunk {
        self.full.extend(self.tail.take_if(|chunk| chunk.free() < wanted));
        // What comes after the first buffer of a turn is part of a burst.
        let size = if self.full.is_empty() { size.max(Size::Medium) } else { Size::Large };
        self.tail.get_or_insert_with(|| Chunk { buffer: self.buffers.take(size), filled: 0 })
    }

    fn push_bytes(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len();
        while !bytes.is_empty() {
            let chunk = self.chunk_with(1, Size::Small);
            let (now, rest) = bytes.split_at(chunk.free().min(bytes.len()));
            chunk.push(now);
            bytes = rest;
        }
    }

    fn drop_empty(&mut self) {
        self.tail.take_if(|chunk| chunk.filled == 0);
    }
}

/// Bytes to be sealed.
pub(super) struct Sealable(Chunk);

impl Sealable {
    pub(super) fn bytes(&self) -> &[u8] {
        self.0.buffer.bytes().get(..self.0.filled).unwrap_or_default()
    }
}
