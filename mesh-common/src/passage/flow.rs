//! The state of one passed connection, as its packets tell it.
//!
//! Two CPUs may handle packets of one flow at the same time. Nothing is locked: each end's state is written by its own
//! packets only, and all of it but the packet count is *positions* in the sequence space, of which the furthest
//! counts. Should one CPU undo the step of another, the next packet, at the latest the FIN, takes it again. A
//! segment that is sent twice counts once, as in a proxy.

use crate::address::Address;

/// Names a connection, whichever way a packet of it goes: the lower end first, by an order that means nothing else.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(PartialOrd, Ord))]
pub struct FlowKey {
    /// Addresses of the ends.
    pub addresses: [Address; 2],
    /// Their ports in host order.
    pub ports: [u16; 2],
}

const _: () = assert!(size_of::<FlowKey>() == 36);

/// One of the ends of a [`FlowKey`].
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The first.
    Low = 0,
    /// The second.
    High = 1,
}

impl End {
    /// The other one.
    #[inline(always)]
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Low => Self::High,
            Self::High => Self::Low,
        }
    }
}

impl FlowKey {
    /// The key of a packet's connection, and the end that sent it.
    #[inline(always)]
    pub const fn of(source: (Address, u16), destination: (Address, u16)) -> (Self, End) {
        if precedes(&source, &destination) {
            (Self { addresses: [source.0, destination.0], ports: [source.1, destination.1] }, End::Low)
        } else {
            (Self { addresses: [destination.0, source.0], ports: [destination.1, source.1] }, End::High)
        }
    }

    /// Address and port of an end.
    pub const fn end(&self, end: End) -> (Address, u16) {
        let ([low, high], [low_port, high_port]) = (self.addresses, self.ports);
        match end {
            End::Low => (low, low_port),
            End::High => (high, high_port),
        }
    }
}

/// Any total order will do. The last words differ most often, so they are compared first.
#[inline(always)]
const fn precedes(one: &(Address, u16), other: &(Address, u16)) -> bool {
    let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (one.0.words, other.0.words);
    if a3 != b3 {
        a3 < b3
    } else if a2 != b2 {
        a2 < b2
    } else if a1 != b1 {
        a1 < b1
    } else if a0 != b0 {
        a0 < b0
    } else {
        one.1 <= other.1
    }
}

/// The flags of a TCP header.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// The sender is finished.
    pub const FIN: Self = Self(0x01);
    /// The sender opens its direction.
    pub const SYN: Self = Self(0x02);
    /// The connection is broken off.
    pub const RST: Self = Self(0x04);
    /// The acknowledgement number means something.
    pub const ACK: Self = Self(0x10);

    /// Whether all bits of `other` are set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and those.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What a packet says of its connection.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// Number of its first byte.
    pub sequence: u32,
    /// Number of the byte its sender expects next.
    pub acknowledgement: u32,
    /// Bytes of data.
    pub payload: u32,
    /// Flags.
    pub flags: TcpFlags,
}

impl Segment {
    /// Number of the byte after it; SYN and FIN count as one.
    #[inline(always)]
    pub const fn end(&self) -> u32 {
        let marks = self.flags.has(TcpFlags::SYN) as u32 + self.flags.has(TcpFlags::FIN) as u32;
        self.sequence.wrapping_add(self.payload).wrapping_add(marks)
    }
}

/// What one end of a flow has sent.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Side {
    /// Packets as they are on a wire: a large one counts for all it would be cut into.
    pub packets: u64,
    /// Bytes of data, each once.
    pub bytes: u64,
    /// Sequence number of its SYN.
    pub initial: u32,
    /// Furthest acknowledgement.
    pub acknowledged: u32,
    /// Sequence number after its FIN.
    pub finished: u32,
    /// Interface index of the device its packets come in on: the pod's, when the flow was opened. 0 for an end that is
    /// elsewhere, whose packets may come in anywhere.
    pub device: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// How far it is.
    pub flags: SideFlags,
}

const _: () = assert!(size_of::<Side>() == 40);

/// Bits of [`Side::flags`].
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SideFlags(pub u16);

impl SideFlags {
    /// Its SYN was seen.
    pub const OPEN: Self = Self(1);
    /// Its FIN was seen.
    pub const FINISHED: Self = Self(1 << 1);
    /// It broke the connection off.
    pub const RESET: Self = Self(1 << 2);

    /// Whether all bits of `other` are set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    #[inline(always)]
    const fn set(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl Side {
    /// A side that has sent nothing but its SYN.
    #[inline(always)]
    pub const fn opened(syn: &Segment, device: u32, mac: [u8; 6]) -> Self {
        Self {
            packets: 1,
            bytes: syn.payload as u64,
            initial: syn.sequence,
            acknowledged: 0,
            finished: 0,
            device,
            mac,
            flags: SideFlags::OPEN,
        }
    }

    /// The sequence number the other end expects next, if it has received all that was sent.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "sequence numbers wrap")]
    pub const fn next(&self) -> u32 {
        if self.flags.has(SideFlags::FINISHED) {
            return self.finished;
        }
        self.initial.wrapping_add(self.flags.has(SideFlags::OPEN) as u32).wrapping_add(self.bytes as u32)
    }

    /// Counts the data of a segment as far as it is new.
    #[inline(always)]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        reason = "positions in the sequence space wrap, and half of it lies ahead"
    )]
    const fn count(&mut self, segment: &Segment) {
        let first = if segment.flags.has(TcpFlags::SYN) {
            segment.sequence.wrapping_add(1)
        } else {
            segment.sequence
        };
        let end = first.wrapping_add(segment.payload).wrapping_sub(self.initial).wrapping_sub(1);
        let new = end.wrapping_sub(self.bytes as u32);
        if new as i32 > 0 {
            self.bytes += new as u64;
        }
    }
}

/// What a segment means for its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It goes on.
    None,
    /// Both ends have opened it.
    Opened,
    /// One end broke it off, though the other may have missed that.
    Broken,
    /// It is over, and no packet of either end can bring it back.
    Ended,
}

/// A connection that passes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowState {
    /// When it was opened, on the monotonic clock. Tells connections apart that have the same key one after another.
    pub opened: u64,
    /// When its ends were first told that it may not go on, on the same clock; 0 while they were not.
    pub cut: u64,
    /// Slot of its verdict.
    pub slot: u32,
    /// The verdict's generation when it was opened; 0 for a flow that is to be cut whatever its verdict.
    pub generation: u32,
    /// The [`End`] that opened it, as number.
    pub client: u32,
    /// 1 if its packets are put straight into the other pod, 0 if they go through the node's IP stack. A SYN always does,
    /// and the answer to it, so that what the node enforces for new connections is.
    pub shortcut: u32,
    /// What each end has sent, in the order of the key.
    pub sides: [Side; 2],
}

const _: () = assert!(size_of::<FlowState>() == 112);

/// How long after its ends were told a connection may still have packets: an end that was told inexactly asks back at
/// once, and is told again. In nanoseconds; a hundred times what that takes on one node. Clients whose connections are reset
/// use the same port again within 20 ms.
const TOLD: u64 = 10_000_000;

impl FlowState {
    /// Whether its ends were told long enough ago, by `now`, that its addresses and ports may be used for another.
    #[inline(always)]
    pub const fn is_over(&self, now: u64) -> bool {
        self.cut != 0 && now.wrapping_sub(self.cut) > TOLD
    }

    /// The end that opened it.
    pub const fn client(&self) -> End {
        if self.client == End::Low as u32 { End::Low } else { End::High }
    }

    /// What an end has sent.
    pub const fn side(&self, end: End) -> &Side {
        let [low, high] = &self.sides;
        match end {
            End::Low => low,
            End::High => high,
        }
    }

    /// What an end has sent, and what the other has.
    #[inline(always)]
    pub const fn both(&mut self, end: End) -> (&mut Side, &mut Side) {
        let [low, high] = &mut self.sides;
        match end {
            End::Low => (low, high),
            End::High => (high, low),
        }
    }

    /// Whether both ends have opened it.
    #[inline(always)]
    pub const fn is_open(&self) -> bool {
        let [low, high] = &self.sides;
        low.flags.has(SideFlags::OPEN) && high.flags.has(SideFlags::OPEN)
    }

    /// Whether one end broke it off.
    #[inline(always)]
    pub const fn is_broken(&self) -> bool {
        let [low, high] = &self.sides;
        low.flags.has(SideFlags::RESET) || high.flags.has(SideFlags::RESET)
    }

    /// Whether both ends are finished, and know it of each other. An end's acknowledgement cannot be forged by the
    /// other, so a connection that still carries data is never taken for finished.
    #[inline(always)]
    pub const fn is_finished(&self) -> bool {
        let [low, high] = &self.sides;
        low.flags.has(SideFlags::FINISHED)
            && high.flags.has(SideFlags::FINISHED)
            && low.acknowledged == high.finished
            && high.acknowledged == low.finished
    }

    /// Takes a segment into account that `sender` sent and that goes on its way.
    #[inline(always)]
    pub const fn advance(&mut self, sender: End, segment: &Segment) -> Progress {
        let was_broken = self.is_broken();
        let (own, other) = self.both(sender);
        if segment.flags.has(TcpFlags::RST) {
            own.flags.set(SideFlags::RESET);
            return if ends(own, other, segment) {
                Progress::Ended
            } else if was_broken {
                Progress::None
            } else {
                Progress::Broken
            };
        }
        if segment.flags.has(TcpFlags::ACK) {
            own.acknowledge(segment.acknowledgement);
        }
        if segment.flags.has(TcpFlags::SYN)
            && !(own.flags.has(SideFlags::OPEN) && other.flags.has(SideFlags::OPEN))
        {
            // Until it is answered, a client may begin anew from another number.
            let answers = !own.flags.has(SideFlags::OPEN) && other.flags.has(SideFlags::OPEN);
            own.flags.set(SideFlags::OPEN);
            own.initial = segment.sequence;
            own.bytes = segment.payload as u64;
            return if answers { Progress::Opened } else { Progress::None };
        }
        if !own.flags.has(SideFlags::OPEN) {
            return Progress::None;
        }
        // What follows a FIN has the number after it, which is no byte's.
        if segment.payload > 0 || !own.flags.has(SideFlags::FINISHED) {
            own.count(segment);
        }
        if segment.flags.has(TcpFlags::FIN) {
            own.finished = segment.end();
            own.flags.set(SideFlags::FINISHED);
        }
        if self.is_finished() { Progress::Ended } else { Progress::None }
    }
}

impl Side {
    /// Acknowledgements may overtake each other; the furthest counts.
    #[inline(always)]
    #[allow(clippy::cast_possible_wrap, reason = "half of the sequence space lies ahead")]
    const fn acknowledge(&mut self, acknowledgement: u32) {
        let first = self.acknowledged == 0;
        if first || acknowledgement.wrapping_sub(self.acknowledged) as i32 > 0 {
            self.acknowledged = acknowledgement;
        }
    }
}

/// Whether a reset certainly ends the connection at `other`: it takes only the very number it expects (RFC 5961), which
/// is certain when it has acknowledged all that was sent. Or `other` was never answered and takes no for an answer.
#[inline(always)]
const fn ends(own: &Side, other: &Side, reset: &Segment) -> bool {
    if own.flags.has(SideFlags::OPEN) {
        let next = own.next();
        other.flags.has(SideFlags::OPEN) && reset.sequence == next && other.acknowledged == next
    } else {
        reset.flags.has(TcpFlags::ACK) && reset.acknowledgement == other.next()
    }
}

/// What the kernel tells of a flow through the ring.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowEvent {
    /// Which flow.
    pub key: FlowKey,
    /// A [`FlowEventKind`] as number.
    pub kind: u32,
    /// Its state at that moment.
    pub flow: FlowState,
}

const _: () = assert!(size_of::<FlowEvent>() == 152);

/// What happened to a flow.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowEventKind {
    /// Both ends have opened it.
    Opened = 0,
    /// It was broken off. The kernel keeps it until the agent removes it, or its tuple is used again.
    Broken = 1,
    /// It is over, and forgotten in the kernel.
    Ended = 2,
}

impl FlowEvent {
    /// What happened; `None` for a number that no version of the programs sends.
    pub const fn kind(&self) -> Option<FlowEventKind> {
        match self.kind {
            0 => Some(FlowEventKind::Opened),
            1 => Some(FlowEventKind::Broken),
            2 => Some(FlowEventKind::Ended),
            _ => None,
        }
    }
}
