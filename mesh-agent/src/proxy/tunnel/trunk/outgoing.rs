//! Frames on their way out: what is sealed, where it is, and written when the trunk has its turn.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;

use tokio::net::TcpStream;

use super::frame::{DATA_PAYLOAD, HEADER, Kind, header};
use super::records::{self, Direction, RecordError};
use crate::proxy::relay::{Buffer, BufferPool, Size};
use crate::proxy::socket::try_read;

/// Streams wait for room once this many bytes have not been sealed. Control frames never wait; each of them answers
/// something that is bounded itself.
const LIMIT: usize = 512 << 10;

/// Records that are given to the socket in one system call.
const WRITTEN_AT_ONCE: usize = 16;

/// Frames in the order in which they leave.
pub(super) struct Outgoing {
    buffers: Rc<BufferPool>,
    full: VecDeque<Chunk>,
    /// The last one, which is being filled.
    tail: Option<Chunk>,
    bytes: usize,
}

/// A buffer, filled from the front, with the room that makes a record of it.
struct Chunk {
    buffer: Buffer,
    /// Where the next byte goes.
    filled: usize,
}

impl Chunk {
    fn new(buffer: Buffer) -> Self {
        Self { buffer, filled: records::HEADER }
    }

    fn free(&self) -> usize {
        self.buffer.size().bytes() - self.filled - records::TAG
    }

    /// Bytes of frames in it.
    fn bytes(&self) -> usize {
        self.filled - records::HEADER
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
        let most = most.min(size.bytes() - HEADER - records::HEADER - records::TAG).min(DATA_PAYLOAD);
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
        self.bytes -= chunk.bytes();
        Some(Sealable(chunk))
    }

    /// The last buffer, or a new one where that has no room for `wanted` bytes.
    fn chunk_with(&mut self, wanted: usize, size: Size) -> &mut Chunk {
        self.full.extend(self.tail.take_if(|chunk| chunk.free() < wanted));
        // What comes after the first buffer of a turn is part of a burst.
        let size = if self.full.is_empty() { size.max(Size::Medium) } else { Size::Large };
        self.tail.get_or_insert_with(|| Chunk::new(self.buffers.take(size)))
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
        self.tail.take_if(|chunk| chunk.bytes() == 0);
    }
}

/// Bytes to be sealed.
pub(super) struct Sealable(Chunk);

impl Sealable {
    /// Makes a record of them.
    pub(super) fn seal(self, keys: &mut Direction) -> Result<Sealed, RecordError> {
        let Self(Chunk { mut buffer, filled }) = self;
        let end = filled + records::TAG;
        keys.seal(buffer.bytes_mut().get_mut(..end).unwrap_or_default())?;
        Ok(Sealed { buffer, end, written: 0 })
    }
}

/// A record that is being written.
pub(super) struct Sealed {
    buffer: Buffer,
    end: usize,
    written: usize,
}

impl Sealed {
    pub(super) fn len(&self) -> usize {
        self.end - self.written
    }
}

/// Records that are being written, in their order.
#[derive(Default)]
pub(super) struct Unwritten(VecDeque<Sealed>);

impl Unwritten {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn push(&mut self, record: Sealed) {
        self.0.push_back(record);
    }

    /// Writes what the socket takes at once. Says `WouldBlock` where that is not everything.
    pub(super) fn write_to(&mut self, tcp: &TcpStream) -> io::Result<()> {
        while !self.0.is_empty() {
            let mut slices = [IoSlice::new(&[]); WRITTEN_AT_ONCE];
            for (slice, record) in slices.iter_mut().zip(&self.0) {
                *slice =
                    IoSlice::new(record.buffer.bytes().get(record.written..record.end).unwrap_or_default());
            }
            let slices = slices.get(..self.0.len().min(WRITTEN_AT_ONCE)).unwrap_or_default();
            let mut count = tcp.try_write_vectored(slices)?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            while let Some(first) = self.0.front_mut() {
                let now = count.min(first.len());
                first.written += now;
                count -= now;
                if first.len() > 0 {
                    break;
                }
                self.0.pop_front();
            }
        }
        Ok(())
    }
}
