use proptest::prelude::*;

use super::*;

fn frame(kind: Kind, stream: u32, payload: &[u8]) -> Vec<u8> {
    [&header(kind, stream, payload.len())[..], payload].concat()
}

/// A stream, and a control frame of it or bytes.
type Seen = (u32, Option<Frame>, Vec<u8>);

/// What a parser makes of bytes that come in pieces.
fn parse(bytes: &[u8], pieces: &[usize]) -> Result<Vec<Seen>, ProtocolError> {
    let (mut parser, mut seen) = (Parser::default(), Vec::<Seen>::new());
    let mut rest = bytes;
    let mut pieces = pieces.iter().copied().filter(|size| *size > 0).cycle();
    while !rest.is_empty() {
        let size = pieces.next().unwrap_or(rest.len()).min(rest.len());
        let (mut now, later) = rest.split_at(size);
        rest = later;
        while let Some(piece) = parser.next(&mut now)? {
            match piece {
                Piece::Data { stream, bytes } => match seen.last_mut() {
                    // Parts of one frame, or frames of one stream: the same to the receiver.
                    Some((last, None, data)) if *last == stream => data.extend_from_slice(bytes),
                    _ => seen.push((stream, None, bytes.to_vec())),
                },
                Piece::Control { stream, frame } => seen.push((stream, Some(frame), Vec::new())),
            }
        }
        assert!(now.is_empty(), "what is given is used up");
    }
    Ok(seen)
}

#[test]
fn every_frame_survives_the_wire() {
    let texts = [&b"10.1.0.9:80"[..], b"for=10.1.0.1", b"", b"00-ab"];
    let open = Open {
        authority: "10.1.0.9:80".into(),
        forwarded: "for=10.1.0.1".into(),
        baggage: String::new(),
        trace_parent: "00-ab".into(),
    };
    let refused = [&401_u16.to_be_bytes()[..], b"denied by shop/p"].concat();
    let frames = [
        (Kind::Hello, 0, vec![0, 4, 0, 0, 0, 0, 0, 100], Frame::Hello { window: 256 << 10, streams: 100 }),
        (Kind::Open, 1, Open::payload(texts).unwrap(), Frame::Open(open)),
        (Kind::Opened, 1, Vec::new(), Frame::Opened),
        (Kind::Refused, 2, refused, Frame::Refused { status: 401, reason: "denied by shop/p".into() }),
        (Kind::End, 1, Vec::new(), Frame::End),
        (Kind::Reset, 3, Vec::new(), Frame::Reset),
        (Kind::Credit, 1, 70_000_u32.to_be_bytes().to_vec(), Frame::Credit(70_000)),
        (Kind::Ping, 0, 7_u64.to_be_bytes().to_vec(), Frame::Ping(7)),
        (Kind::Pong, 0, 7_u64.to_be_bytes().to_vec(), Frame::Pong(7)),
        (Kind::Closing, 0, Vec::new(), Frame::Closing),
    ];
    let bytes: Vec<u8> =
        frames.iter().flat_map(|(kind, stream, payload, _)| frame(*kind, *stream, payload)).collect();
    let expected: Vec<_> =
        frames.into_iter().map(|(_, stream, _, frame)| (stream, Some(frame), Vec::new())).collect();
    assert_eq!(parse(&bytes, &[]).unwrap(), expected);
    assert_eq!(parse(&bytes, &[1]).unwrap(), expected);
}

#[test]
fn what_is_wrong_is_told() {
    for (bytes, expected) in [
        (vec![11, 0, 0, 0, 0, 0, 0, 1], "kind 11"),
        (frame(Kind::Open, 1, &[0; CONTROL_PAYLOAD + 1]), "8193 bytes"),
        (frame(Kind::Open, 1, &[0, 9, b'x']), "OPEN cannot be read"),
        (frame(Kind::Open, 1, &[0, 1, 0xff, 0, 0, 0, 0, 0, 0]), "OPEN cannot be read"),
        (frame(Kind::Open, 1, &[0, 0, 0, 0, 0, 0, 0, 0, 1]), "OPEN cannot be read"),
        (frame(Kind::Hello, 0, &[0; 7]), "HELLO cannot be read"),
        (frame(Kind::Refused, 1, &[1]), "REFUSED cannot be read"),
        (frame(Kind::Credit, 1, &[1, 2, 3]), "3 bytes where CREDIT allows 4"),
        (frame(Kind::Ping, 0, &[1, 2, 3]), "3 bytes where PING allows 8"),
        (frame(Kind::End, 1, &[1]), "1 bytes where END allows 0"),
    ] {
        let error = parse(&bytes, &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} misses {expected:?}");
    }
}

#[test]
fn what_would_not_fit_into_a_frame_is_not_sent() {
    assert!(Open::payload([&[b'x'; CONTROL_PAYLOAD], b"", b"", b""]).is_none());
    assert!(Open::payload([&vec![b'x'; 70_000], b"", b"", b""]).is_none());
}

proptest! {
    /// However the bytes come, the frames are the same.
    #[test]
    fn pieces_make_no_difference(
        frames in prop::collection::vec((1_u32..4, prop::collection::vec(any::<u8>(), 0..300), any::<bool>()), 1..12),
        pieces in prop::collection::vec(0_usize..40, 1..8),
    ) {
        let bytes: Vec<u8> = frames
            .iter()
            .flat_map(|(stream, payload, data)| match data {
                true => frame(Kind::Data, *stream, payload),
                false => frame(Kind::Credit, *stream, &[0, 0, 1, 0]),
            })
            .collect();
        prop_assert_eq!(parse(&bytes, &pieces), parse(&bytes, &[]));
    }

    /// Nothing that a peer sends does worse than to be refused.
    #[test]
    fn noise_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = parse(&bytes, &[7, 1, 30]);
    }
}
