//! What client and server say to each other.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes of a request, and of an answer.
pub(super) const MESSAGE: usize = 1024;
/// Bytes of a write of a stream.
pub(super) const CHUNK: usize = 128 << 10;

/// What a connection is for; the first bytes that go over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    Stream { warm_up: Duration, window: Duration },
    Exchange,
    Greeting,
    Probe,
}

const STREAM: u8 = b's';
const EXCHANGE: u8 = b'e';
pub(super) const GREETING: u8 = b'g';
/// The first byte of a connection whose source address and whose readability are of interest.
pub(crate) const PROBE: u8 = b'p';
/// Follows it.
pub(crate) const PROBE_TEXT: &[u8; 32] = b"is anybody able to read this....";

impl Header {
    pub(super) async fn write(self, stream: &mut TcpStream) -> io::Result<()> {
        match self {
            Self::Stream { warm_up, window } => {
                let mut bytes = [STREAM; 9];
                let (_, durations) = bytes.split_at_mut(1);
                for (bytes, duration) in durations.chunks_exact_mut(4).zip([warm_up, window]) {
                    let milliseconds = u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
                    bytes.copy_from_slice(&milliseconds.to_be_bytes());
                }
                stream.write_all(&bytes).await
            }
            Self::Exchange => stream.write_all(&[EXCHANGE]).await,
            Self::Greeting => stream.write_all(&[GREETING]).await,
            Self::Probe => stream.write_all(&[PROBE]).await,
        }
    }

    pub(super) async fn read(stream: &mut TcpStream) -> io::Result<Self> {
        Ok(match stream.read_u8().await? {
            STREAM => {
                let mut duration = async || stream.read_u32().await.map(u64::from).map(Duration::from_millis);
                Self::Stream { warm_up: duration().await?, window: duration().await? }
            }
            EXCHANGE => Self::Exchange,
            GREETING => Self::Greeting,
            PROBE => Self::Probe,
            other => return Err(io::Error::other(format!("a connection for nothing known: {other:#x}"))),
        })
    }
}

/// What the server has counted of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) bytes: u64,
    pub(super) time: Duration,
}

impl Counted {
    pub(super) async fn write(self, stream: &mut TcpStream) -> io::Result<()> {
        let mut bytes = [0; 16];
        let (count, time) = bytes.split_at_mut(8);
        count.copy_from_slice(&self.bytes.to_be_bytes());
        let nanoseconds = u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX);
        time.copy_from_slice(&nanoseconds.to_be_bytes());
        stream.write_all(&bytes).await
    }

    pub(super) async fn read(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Self> {
        Ok(Self { bytes: stream.read_u64().await?, time: Duration::from_nanos(stream.read_u64().await?) })
    }
}
