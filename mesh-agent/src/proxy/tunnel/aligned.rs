//! Reads TLS records one by one, so that a TLS library that is handed over after the handshake has nothing of what comes next.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// Bytes in front of a record: kind, version and length (RFC 8446, 5.1).
const HEADER: usize = 5;

/// A stream of which no read goes beyond the end of a record, until it is told that it may.
#[derive(Debug)]
pub(super) struct Aligned<IO> {
    io: IO,
    /// Of the record that is being read, as far as it is there.
    header: [u8; HEADER],
    have: usize,
    /// Bytes behind its header that are still to come.
    left: usize,
    aligns: bool,
}

impl<IO> Aligned<IO> {
    pub(super) fn new(io: IO) -> Self {
        Self { io, header: [0; HEADER], have: 0, left: 0, aligns: true }
    }

    /// Reads go on as far as there is something from here on.
    pub(super) fn stop(&mut self) {
        self.aligns = false;
    }

    /// The stream; what it says next is the beginning of a record, if a whole one was read.
    pub(super) fn into_inner(self) -> IO {
        self.io
    }

    fn note(&mut self, bytes: &[u8]) {
        if self.left > 0 {
            self.left -= bytes.len();
            return;
        }
        if let Some(to) = self.header.get_mut(self.have..self.have + bytes.len()) {
            to.copy_from_slice(bytes);
            self.have += bytes.len();
        }
        if self.have == HEADER {
            let [.., high, low] = self.header;
            self.left = usize::from(u16::from_be_bytes([high, low]));
            self.have = 0;
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Aligned<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.aligns {
            return Pin::new(&mut this.io).poll_read(cx, buffer);
        }
        let most = if this.left > 0 { this.left } else { HEADER - this.have };
        let mut limited = ReadBuf::new(buffer.initialize_unfilled_to(most.min(buffer.remaining())));
        ready!(Pin::new(&mut this.io).poll_read(cx, &mut limited))?;
        this.note(limited.filled());
        let count = limited.filled().len();
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

write_through!(Aligned, io);

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn no_read_goes_beyond_a_record() {
        let records =
            [&[22, 3, 3, 0, 4, 1, 2, 3, 4][..], &[20, 3, 3, 0, 0], &[23, 3, 3, 1, 0], &[9; 256]].concat();
        let mut aligned = Aligned::new(&records[..]);
        let mut buffer = [0; 1000];
        for expected in [5, 4, 5, 5] {
            assert_eq!(aligned.read(&mut buffer).await.unwrap(), expected);
        }
        // Less than there is, and the rest.
        assert_eq!(aligned.read(&mut buffer[..100]).await.unwrap(), 100);
        aligned.stop();
        assert_eq!(aligned.read(&mut buffer).await.unwrap(), 156);
        assert_eq!(aligned.read(&mut buffer).await.unwrap(), 0);
    }
}
