//! Tells TLS 1.3 from everything else by its records (RFC 8446, section 5.1).
//!
//! After the hello of either side, nothing is in the clear but an empty gesture towards old middleboxes
//! (`change_cipher_spec`); in older versions certificates would be.

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const SUPPORTED_VERSIONS: u16 = 43;
const TLS13: u16 = 0x0304;

/// Whether a stream is, from its first byte to its last, what one side of a TLS 1.3 connection sends. A record that is
/// not complete is taken for what it begins as.
pub(super) fn is_tls13(stream: &[u8]) -> bool {
    let Some((kind, hello, mut rest)) = record(stream) else { return false };
    if kind != HANDSHAKE || !offers_tls13(hello) {
        return false;
    }
    while !rest.is_empty() {
        let Some((kind, content, next)) = record(rest) else { return false };
        let fine = match kind {
            // An alert in the clear says that the handshake failed; no secret was sent.
            APPLICATION_DATA | ALERT => true,
            CHANGE_CIPHER_SPEC => content == [1],
            // The other hello after a hello retry request.
            HANDSHAKE => offers_tls13(content),
            _ => false,
        };
        if !fine {
            return false;
        }
        rest = next;
    }
    true
}

/// Kind and content of the first record, and what follows it.
fn record(stream: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let ([kind, 3, 1 | 3, high, low], body) = stream.split_first_chunk()? else { return None };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let (content, rest) = body.split_at_checked(length).unwrap_or((body, &[]));
    Some((*kind, content, rest))
}

/// Whether this is one hello, of the client or the server, that speaks of TLS 1.3.
fn offers_tls13(hello: &[u8]) -> bool {
    read_hello(hello).unwrap_or(false)
}

fn read_hello(hello: &[u8]) -> Option<bool> {
    let mut reader = Reader(hello);
    let kind = reader.u8()?;
    let length = usize::from(reader.u8()?) << 16 | usize::from(reader.u16()?);
    if length != reader.0.len() {
        return Some(false);
    }
    // Version and random.
    reader.take(34)?;
    let session = usize::from(reader.u8()?);
    reader.take(session)?;
    match kind {
        CLIENT_HELLO => {
            let suites = usize::from(reader.u16()?);
            reader.take(suites)?;
            let compressions = usize::from(reader.u8()?);
            reader.take(compressions)?;
        }
        SERVER_HELLO => {
            reader.take(3)?;
        }
        _ => return Some(false),
    }
    let _extensions_length = reader.u16()?;
    while !reader.0.is_empty() {
        let extension = reader.u16()?;
        let length = usize::from(reader.u16()?);
        let content = reader.take(length)?;
        if extension == SUPPORTED_VERSIONS {
            // A client's list has a length before it, and may say more than a server's answer.
            let versions = if kind == CLIENT_HELLO { content.get(1..)? } else { content };
            return Some(
                !versions.is_empty() && versions.chunks(2).all(|version| version == TLS13.to_be_bytes()),
            );
        }
    }
    Some(false)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.first_chunk().copied().map(u16::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(kind: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[kind, 3, 3], length.as_slice(), content].concat()
    }

    fn hello(kind: u8, versions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0);
        match kind {
            CLIENT_HELLO => body.extend([0, 2, 0x13, 0x01, 1, 0]),
            _ => body.extend([0x13, 0x01, 0]),
        }
        let mut extensions = vec![0, 10, 0, 2, 0, 0];
        if !versions.is_empty() {
            extensions.extend([0, 43, 0, u8::try_from(versions.len()).unwrap()]);
            extensions.extend(versions);
        }
        body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend(extensions);
        let length = u8::try_from(body.len()).unwrap();
        framed(HANDSHAKE, &[&[kind, 0, 0, length], body.as_slice()].concat())
    }

    #[test]
    fn both_sides_of_tls13_are_recognised() {
        let secret = framed(APPLICATION_DATA, &[9; 40]);
        let gesture = framed(CHANGE_CIPHER_SPEC, &[1]);
        for hello in [hello(CLIENT_HELLO, &[2, 3, 4]), hello(SERVER_HELLO, &[3, 4])] {
            assert!(is_tls13(&[&hello, &gesture, &secret, &secret].map(Vec::as_slice).concat()));
            // Cut off within a record.
            assert!(is_tls13(&[&hello, &secret[..20]].concat()));
        }
    }

    #[test]
    fn anything_in_the_clear_is_noticed() {
        let client = hello(CLIENT_HELLO, &[2, 3, 4]);
        let certificate = framed(HANDSHAKE, &[11, 0, 0, 1, 0]);
        for stream in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            Vec::new(),
            [client.as_slice(), b"GET / HTTP/1.1\r\n\r\n"].concat(),
            [client.as_slice(), &certificate].concat(),
            // The older version is offered, agreed on, or nothing else is known.
            hello(CLIENT_HELLO, &[4, 3, 4, 3, 3]),
            hello(SERVER_HELLO, &[3, 3]),
            hello(SERVER_HELLO, &[]),
            framed(APPLICATION_DATA, &[9; 40]),
        ] {
            assert!(!is_tls13(&stream), "{stream:?}");
        }
    }
}
