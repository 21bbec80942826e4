//! Tells HTTP from raw TCP by the first bytes of a connection.

use std::io::{self, Cursor};
use std::time::Duration;

use tokio::io::{AsyncReadExt, Chain, Join, join};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

/// What HTTP requests begin with; `PRI` is HTTP/2's.
const METHODS: [&[u8]; 10] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"TRACE ",
    b"CONNECT ",
    b"PRI * HTTP/2.0",
];
/// How long a client that began as HTTP might has to make itself clear.
const PATIENCE: Duration = Duration::from_millis(200);
const FIRST_READ: usize = 4096;

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Raw,
}

/// A connection whose first bytes have been looked at and are read again.
pub(super) type Replayed = Join<Chain<Cursor<Vec<u8>>, OwnedReadHalf>, OwnedWriteHalf>;

/// Reads until the protocol is clear.
pub(super) async fn detect(stream: TcpStream) -> io::Result<(Protocol, Replayed)> {
    let (mut reader, writer) = stream.into_split();
    let mut seen = Vec::with_capacity(FIRST_READ);
    let mut protocol = None;
    while protocol.is_none() {
        let more = if seen.is_empty() {
            reader.read_buf(&mut seen).await?
        } else {
            match timeout(PATIENCE, reader.read_buf(&mut seen)).await {
                Ok(read) => read?,
                Err(_) => 0,
            }
        };
        protocol = if more == 0 { Some(Protocol::Raw) } else { decide(&seen) };
    }
    let stream = join(Cursor::new(seen).chain(reader), writer);
    Ok((protocol.unwrap_or(Protocol::Raw), stream))
}

/// The protocol of a client that began like this; `None` while both are possible.
fn decide(seen: &[u8]) -> Option<Protocol> {
    if METHODS.iter().any(|method| seen.starts_with(method)) {
        return Some(Protocol::Http);
    }
    (!METHODS.iter().any(|method| method.starts_with(seen))).then_some(Protocol::Raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decides_as_soon_as_possible() {
        for (seen, expected) in [
            (&b"GET / HTTP/1.1"[..], Some(Protocol::Http)),
            (b"PRI * HTTP/2.0\r\n", Some(Protocol::Http)),
            (b"P", None),
            (b"POS", None),
            (b"POST", None),
            (b"POSTER", Some(Protocol::Raw)),
            (b"who\n", Some(Protocol::Raw)),
            (b"\x16\x03\x01", Some(Protocol::Raw)),
        ] {
            assert_eq!(decide(seen), expected, "{}", seen.escape_ascii());
        }
    }
}
