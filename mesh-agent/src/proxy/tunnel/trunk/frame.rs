//! Frames: reading and writing them.

use thiserror::Error;

use super::records;

/// Bytes in front of every payload.
pub(super) const HEADER: usize = 8;

/// The longest payload of DATA: with its header and that of its record, what the largest buffer holds.
pub(super) const DATA_PAYLOAD: usize = (64 << 10) - HEADER - records::HEADER - records::TAG;

/// The longest payload of any other frame. Ours take a few hundred bytes.
pub(super) const CONTROL_PAYLOAD: usize = 8 << 10;

/// The kinds of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Hello = 0,
    Open = 1,
    Opened = 2,
    Refused = 3,
    Data = 4,
    End = 5,
    Reset = 6,
    Credit = 7,
    Ping = 8,
    Pong = 9,
    Closing = 10,
}

impl Kind {
    fn from_wire(kind: u8) -> Option<Self> {
        Some(match kind {
            0 => Self::Hello,
            1 => Self::Open,
            2 => Self::Opened,
            3 => Self::Refused,
            4 => Self::Data,
            5 => Self::End,
            6 => Self::Reset,
            7 => Self::Credit,
            8 => Self::Ping,
            9 => Self::Pong,
            10 => Self::Closing,
            _ => return None,
        })
    }
}

/// What a peer did that the protocol does not allow. The trunk ends.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(in super::super) enum ProtocolError {
    #[error("the peer sent a frame of kind {0}, which there is not")]
    UnknownKind(u8),
    #[error("the peer sent a frame of {length} bytes where {kind} allows {allowed}")]
    Length { kind: &'static str, length: usize, allowed: usize },
    #[error("the peer's {0} cannot be read")]
    Malformed(&'static str),
    #[error("the peer sent {0} before HELLO")]
    BeforeHello(&'static str),
    #[error("the peer sent {0}, which only the other side may")]
    WrongSide(&'static str),
    #[error("the peer sent {kind} for stream {stream}, which was never opened")]
    UnknownStream { kind: &'static str, stream: u32 },
    #[error("the peer opened stream {0} out of order")]
    StreamOrder(u32),
    #[error("the peer sent more than the window of stream {0} allows")]
    Window(u32),
}

/// A control frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    Hello { window: u32, streams: u32 },
    Open(Open),
    Opened,
    Refused { status: u16, reason: String },
    End,
    Reset,
    Credit(u32),
    Ping(u64),
    Pong(u64),
    Closing,
}

impl Frame {
    /// Its name, for errors.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "HELLO",
            Self::Open(_) => "OPEN",
            Self::Opened => "OPENED",
            Self::Refused { .. } => "REFUSED",
            Self::End => "END",
            Self::Reset => "RESET",
            Self::Credit(_) => "CREDIT",
            Self::Ping(_) => "PING",
            Self::Pong(_) => "PONG",
            Self::Closing => "CLOSING",
        }
    }
}

/// What a connection is asked for with. Empty texts are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in super::super) struct Open {
    pub(in super::super) authority: String,
    pub(in super::super) forwarded: String,
    pub(in super::super) baggage: String,
    pub(in super::super) trace_parent: String,
}

impl Open {
    fn read(mut payload: &[u8]) -> Option<Self> {
        let mut text = || {
            let (length, rest) = payload.split_first_chunk::<2>()?;
            let (text, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
            payload = rest;
            String::from_utf8(text.to_vec()).ok()
        };
        let open = Self { authority: text()?, forwarded: text()?, baggage: text()?, trace_parent: text()? };
        payload.is_empty().then_some(open)
    }

    /// The payload of an OPEN of these four texts. Nothing where it would be too long.
    pub(super) fn payload(texts: [&[u8]; 4]) -> Option<Vec<u8>> {
        let mut payload = Vec::with_capacity(texts.iter().map(|text| text.len() + 2).sum());
        for text in texts {
            payload.extend_from_slice(&u16::try_from(text.len()).ok()?.to_be_bytes());
            payload.extend_from_slice(text);
        }
        (payload.len() <= CONTROL_PAYLOAD).then_some(payload)
    }
}

/// A header. `length` has to fit, which [`DATA_PAYLOAD`] and [`CONTROL_PAYLOAD`] see to.
pub(super) fn header(kind: Kind, stream: u32, length: usize) -> [u8; HEADER] {
    let [high, low] = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    let [a, b, c, d] = stream.to_be_bytes();
    #[allow(clippy::as_conversions, reason = "the discriminant, as it is on the wire")]
    let kind = kind as u8;
    [kind, 0, high, low, a, b, c, d]
}

/// What there is in the bytes of a trunk.
pub(super) enum Piece<'a> {
    /// Bytes of a stream: of one frame, or of a part of it.
    Data { stream: u32, bytes: &'a [u8] },
    /// A whole frame.
    Control { stream: u32, frame: Frame },
}

/// Reads frames from bytes that come in pieces of any length.
#[derive(Default)]
pub(super) struct Parser {
    header: [u8; HEADER],
    /// Bytes of the header that are there.
    have: usize,
    /// Of the frame that is being read, once its header is there.
    kind: Option<Kind>,
    stream: u32,
    /// Bytes of its payload that are still to come.
    left: usize,
    /// The payload of a control frame, as far as it is there.
    payload: Vec<u8>,
}

impl Parser {
    /// Takes the next piece from the front of `bytes`; nothing once all are used up.
    pub(super) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Piece<'a>>, ProtocolError> {
        loop {
            let Some(kind) = self.kind else {
                if !self.read_header(bytes)? {
                    return Ok(None);
                }
                continue;
            };
            let (now, rest) = bytes.split_at(self.left.min(bytes.len()));
            if kind == Kind::Data {
                if now.is_empty() && self.left > 0 {
                    return Ok(None);
                }
                *bytes = rest;
                self.left -= now.len();
                if self.left == 0 {
                    self.finish();
                }
                return Ok(Some(Piece::Data { stream: self.stream, bytes: now }));
            }
            self.payload.extend_from_slice(now);
            *bytes = rest;
            self.left -= now.len();
            if self.left > 0 {
                return Ok(None);
            }
            let frame = read(kind, &self.payload)?;
            self.finish();
            return Ok(Some(Piece::Control { stream: self.stream, frame }));
        }
    }

    fn read_header(&mut self, bytes: &mut &[u8]) -> Result<bool, ProtocolError> {
        let missing = HEADER - self.have;
        let (now, rest) = bytes.split_at(missing.min(bytes.len()));
        if let Some(to) = self.header.get_mut(self.have..self.have + now.len()) {
            to.copy_from_slice(now);
        }
        *bytes = rest;
        self.have += now.len();
        if self.have < HEADER {
            return Ok(false);
        }
        let [kind, _, high, low, a, b, c, d] = self.header;
        let known = Kind::from_wire(kind).ok_or(ProtocolError::UnknownKind(kind))?;
        self.stream = u32::from_be_bytes([a, b, c, d]);
        self.left = usize::from(u16::from_be_bytes([high, low]));
        if known != Kind::Data && self.left > CONTROL_PAYLOAD {
            let (kind, length) = ("a control frame", self.left);
            return Err(ProtocolError::Length { kind, length, allowed: CONTROL_PAYLOAD });
        }
        self.kind = Some(known);
        Ok(true)
    }

    fn finish(&mut self) {
        self.kind = None;
        self.have = 0;
        // A quiet trunk keeps no memory.
        self.payload = Vec::new();
    }
}

/// Reads a control frame.
fn read(kind: Kind, payload: &[u8]) -> Result<Frame, ProtocolError> {
    let none = |frame: Frame| {
        let (kind, length) = (frame.name(), payload.len());
        if length == 0 { Ok(frame) } else { Err(ProtocolError::Length { kind, length, allowed: 0 }) }
    };
    match kind {
        Kind::Hello => {
            let (window, streams) = payload.split_first_chunk().ok_or(ProtocolError::Malformed("HELLO"))?;
            // What a later version may add is not ours to read.
            let streams = streams.first_chunk().ok_or(ProtocolError::Malformed("HELLO"))?;
            Ok(Frame::Hello { window: u32::from_be_bytes(*window), streams: u32::from_be_bytes(*streams) })
        }
        Kind::Open => Open::read(payload).map(Frame::Open).ok_or(ProtocolError::Malformed("OPEN")),
        Kind::Opened => none(Frame::Opened),
        Kind::Refused => {
            let (status, reason) = payload.split_first_chunk().ok_or(ProtocolError::Malformed("REFUSED"))?;
            let reason = String::from_utf8_lossy(reason).into_owned();
            Ok(Frame::Refused { status: u16::from_be_bytes(*status), reason })
        }
        // Read as it comes.
        Kind::Data => Err(ProtocolError::Malformed("DATA")),
        Kind::End => none(Frame::End),
        Kind::Reset => none(Frame::Reset),
        Kind::Credit => exact(payload, "CREDIT").map(|bytes| Frame::Credit(u32::from_be_bytes(bytes))),
        Kind::Ping => exact(payload, "PING").map(|bytes| Frame::Ping(u64::from_be_bytes(bytes))),
        Kind::Pong => exact(payload, "PONG").map(|bytes| Frame::Pong(u64::from_be_bytes(bytes))),
        Kind::Closing => none(Frame::Closing),
    }
}

fn exact<const N: usize>(payload: &[u8], kind: &'static str) -> Result<[u8; N], ProtocolError> {
    payload.try_into().map_err(|_| ProtocolError::Length { kind, length: payload.len(), allowed: N })
}

#[cfg(test)]
mod tests;
