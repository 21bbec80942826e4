//! TCP streams put together from segments, however they were cut, repeated or reordered.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use super::packet::Segment;
use super::{find, tls};

/// What one end of a TCP connection sent to the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    from: SocketAddr,
    to: SocketAddr,
    from_the_beginning: bool,
    /// What was seen without a hole: one run for a stream that was seen whole.
    runs: Vec<Vec<u8>>,
}

impl Stream {
    /// Who sent it.
    #[must_use]
    pub fn from(&self) -> SocketAddr {
        self.from
    }

    /// To whom.
    #[must_use]
    pub fn to(&self) -> SocketAddr {
        self.to
    }

    /// How many bytes were seen.
    #[must_use]
    pub fn len(&self) -> usize {
        self.runs.iter().map(Vec::len).sum()
    }

    /// Whether nothing was sent but the opening and the end.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The first bytes that were seen, at most so many.
    #[must_use]
    pub fn first(&self, bytes: usize) -> &[u8] {
        let run = self.runs.first().map_or(&[][..], Vec::as_slice);
        run.get(..bytes).unwrap_or(run)
    }

    /// Whether these bytes were sent, in however many segments.
    #[must_use]
    pub fn contains(&self, bytes: &[u8]) -> bool {
        self.runs.iter().any(|run| find(run, bytes))
    }

    /// Whether this is nothing but TLS 1.3, from its first byte on. A stream that was open before the capture began is not: nobody knows.
    #[must_use]
    pub fn is_tls13(&self) -> bool {
        match self.runs.as_slice() {
            [whole] if self.from_the_beginning => tls::is_tls13(whole),
            _ => false,
        }
    }
}

/// The streams of these segments, in the order they began.
pub(super) fn reassemble<'a>(segments: impl Iterator<Item = Segment<'a>>) -> Vec<Stream> {
    let mut open: HashMap<(SocketAddr, SocketAddr), usize> = HashMap::new();
    let mut all: Vec<Assembly<'a>> = Vec::new();
    for segment in segments {
        let key = (segment.from, segment.to);
        let known = open.get(&key).and_then(|index| all.get_mut(*index));
        match known.filter(|assembly| assembly.continues_with(&segment)) {
            Some(assembly) => assembly.add(&segment),
            None => {
                open.insert(key, all.len());
                all.push(Assembly::begin(&segment));
            }
        }
    }
    all.into_iter().map(Assembly::finish).collect()
}

struct Assembly<'a> {
    from: SocketAddr,
    to: SocketAddr,
    /// Whether its SYN was seen.
    from_the_beginning: bool,
    /// Sequence number of the first byte, or of the first that was seen.
    first: u32,
    /// Where the latest segment was, from `first`: sequence numbers wrap, positions do not.
    latest: i64,
    /// The longest payload that was seen at each position.
    parts: BTreeMap<i64, &'a [u8]>,
}

impl<'a> Assembly<'a> {
    fn begin(segment: &Segment<'a>) -> Self {
        let mut assembly = Self {
            from: segment.from,
            to: segment.to,
            from_the_beginning: segment.syn,
            first: payload_sequence(segment),
            latest: 0,
            parts: BTreeMap::new(),
        };
        assembly.add(segment);
        assembly
    }

    /// Whether the segment belongs to this connection and not to a later one between the same ports.
    fn continues_with(&self, segment: &Segment<'_>) -> bool {
        !segment.syn || (self.from_the_beginning && payload_sequence(segment) == self.first)
    }

    fn add(&mut self, segment: &Segment<'a>) {
        // The position nearest to the latest one that has this sequence number.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sequence numbers wrap")]
        let latest = self.first.wrapping_add(self.latest as u32);
        #[allow(clippy::cast_possible_wrap, reason = "a distance of sequence numbers has a sign")]
        let distance = payload_sequence(segment).wrapping_sub(latest) as i32;
        self.latest += i64::from(distance);
        if segment.payload.is_empty() {
            return;
        }
        let part = self.parts.entry(self.latest).or_default();
        if part.len() < segment.payload.len() {
            *part = segment.payload;
        }
    }

    fn finish(self) -> Stream {
        let mut runs: Vec<Vec<u8>> = Vec::new();
        let mut end = i64::MIN;
        for (position, part) in &self.parts {
            let run = match runs.last_mut() {
                Some(run) if *position <= end => run,
                _ => {
                    end = *position;
                    runs.push(Vec::new());
                    let Some(run) = runs.last_mut() else { continue };
                    run
                }
            };
            let known = usize::try_from(end - position).unwrap_or(usize::MAX);
            let new = part.get(known..).unwrap_or_default();
            run.extend_from_slice(new);
            end += i64::try_from(new.len()).unwrap_or(0);
        }
        let starts_at_zero = self.parts.keys().next().is_none_or(|position| *position == 0);
        Stream {
            from: self.from,
            to: self.to,
            from_the_beginning: self.from_the_beginning && starts_at_zero,
            runs,
        }
    }
}

/// Where the payload begins: a SYN takes a sequence number of its own.
fn payload_sequence(segment: &Segment<'_>) -> u32 {
    segment.sequence.wrapping_add(u32::from(segment.syn))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(sequence: u32, syn: bool, payload: &'static [u8]) -> Segment<'static> {
        let [from, to] = ["10.0.0.1:40000", "10.0.0.2:80"].map(|address| address.parse().unwrap());
        Segment { from, to, sequence, syn, payload }
    }

    fn assembled(segments: &[Segment<'static>]) -> Vec<Stream> {
        reassemble(segments.iter().copied())
    }

    #[test]
    fn segments_are_put_in_order_and_repetitions_are_taken_once() {
        let streams = assembled(&[
            segment(u32::MAX - 3, true, b""),
            segment(u32::MAX - 2, false, b"the "),
            segment(7, false, b" word"),
            segment(1, false, b"secret"),
            segment(u32::MAX - 2, false, b"the s"),
            segment(5, false, b"et wo"),
        ]);
        assert_eq!(streams.len(), 1);
        assert_eq!(streams[0].runs, [b"the secret word"]);
        assert!(streams[0].from_the_beginning);
        assert!(streams[0].contains(b"secret word"));
        assert!(!streams[0].contains(b"other"));
        assert_eq!((streams[0].len(), streams[0].first(3)), (15, b"the".as_slice()));
    }

    #[test]
    fn nothing_is_found_across_a_hole() {
        let streams =
            assembled(&[segment(9, true, b""), segment(10, false, b"sec"), segment(14, false, b"ret")]);
        assert_eq!(streams[0].runs, [b"sec", b"ret"]);
        assert!(!streams[0].contains(b"secret"));
    }

    #[test]
    fn a_new_connection_between_the_same_ports_is_another_stream() {
        let streams = assembled(&[
            segment(9, true, b""),
            segment(10, false, b"one"),
            segment(9, true, b""),
            segment(5_000_000, true, b""),
            segment(5_000_001, false, b"two"),
        ]);
        let texts: Vec<_> = streams.iter().map(|stream| stream.first(10)).collect();
        assert_eq!(texts, [b"one", b"two"]);
    }

    #[test]
    fn a_stream_that_was_open_before_is_read_but_proves_no_tls() {
        let streams = assembled(&[segment(100, false, b"middle"), segment(94, false, b"before")]);
        assert!(streams[0].contains(b"beforemiddle"));
        assert!(!streams[0].from_the_beginning);
        assert!(!streams[0].is_tls13());
    }
}
