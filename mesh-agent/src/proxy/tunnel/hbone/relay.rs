//! Moves bytes between a socket and a stream of a tunnel: [`relay`](crate::proxy::relay) with one side changed.
//!
//! - A FIN becomes END_STREAM and the other way round.
//! - A reset of the socket becomes RST_STREAM with CONNECT_ERROR (RFC 9113, 8.5), after what was read before it is
//!   written; a reset or the end of the tunnel becomes a reset of the socket; when nothing moves any more, the stream
//!   is CANCELled.
//! - Nothing is read from the socket without room in the stream for it, and the stream's sender gets room for as
//!   much as was written to the socket.

use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::Reason;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::settings::FRAME_PAYLOAD;
use super::stream::{HboneStream, ReceiveHalf, SendHalf};
use crate::proxy::relay::{Broken, BufferPool, Flow, Lifetime, QUOTA, RelayEnd, Size, run};
use crate::proxy::socket::{Stream, close_write, try_read};
use crate::proxy::tunnel::Far;
use crate::telemetry::Traffic;

/// Pieces given to the kernel in one write.
const SLICES: usize = 16;

/// Time for what was read before a reset to be written.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Relays until the end. Both sides are to be dropped then.
pub(in super::super) async fn relay(
    tcp: &mut Stream,
    tunnel: &mut HboneStream,
    far: Far,
    traffic: &Traffic,
    buffers: &Rc<BufferPool>,
    lifetime: &Lifetime,
) -> RelayEnd {
    let client_is_far = far == Far::Client;
    let end = {
        let tcp = tcp.tcp();
        let mut inwards =
            Inwards { from: &mut tunnel.receive, tcp, client_is_far, blocked: false, ended: false };
        let mut outwards = Outwards {
            tcp,
            to: &mut tunnel.send,
            buffers,
            size: Size::default(),
            blocked: false,
            ended: false,
        };
        if client_is_far {
            // A stream is read even while the server takes nothing, which tells if it breaks.
            let client_gone = std::future::pending::<()>;
            run(&mut inwards, &mut outwards, client_gone, traffic, lifetime).await
        } else {
            let client_gone = || tcp.ready(Interest::ERROR);
            run(&mut outwards, &mut inwards, client_gone, traffic, lifetime).await
        }
    };
    match end {
        RelayEnd::Complete => {
            tcp.end_in_order();
            tunnel.send.end();
        }
        RelayEnd::ClientBroke(_) | RelayEnd::ServerBroke(_) => Box::pin(break_off(&mut tunnel.send)).await,
        RelayEnd::Idle => tunnel.send.reset(Reason::CANCEL),
    }
    end
}

/// Passes on that the socket broke. Of no effect where it was the stream that did.
async fn break_off(send: &mut SendHalf) {
    let _ = timeout(LAST_WORDS, send.sent()).await;
    send.reset(Reason::CONNECT_ERROR);
}

/// From the socket to the stream.
struct Outwards<'a> {
    tcp: &'a TcpStream,
    to: &'a mut SendHalf,
    buffers: &'a Rc<BufferPool>,
    size: Size,
    blocked: bool,
    ended: bool,
}

impl Flow for Outwards<'_> {
    fn is_open(&self) -> bool {
        !self.ended
    }

    fn is_blocked(&self) -> bool {
        self.blocked
    }

    fn poll(&mut self, cx: &mut Context<'_>, count: impl Fn(u64)) -> Poll<Result<(), Broken>> {
        let mut moved = 0;
        loop {
            if moved >= QUOTA {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match self.tcp.poll_read_ready(cx) {
                Poll::Ready(ready) => ready.map_err(Broken::Reader)?,
                Poll::Pending => {
                    self.to.release_room();
                    return match self.to.poll_broken(cx) {
                        Poll::Ready(error) => Poll::Ready(Err(Broken::Writer(error))),
                        Poll::Pending => Poll::Pending,
                    };
                }
            }
            let wanted = self.size.bytes().min(FRAME_PAYLOAD);
            let room = self.to.poll_room(cx, wanted);
            self.blocked = room.is_pending();
            let room = ready!(room).map_err(Broken::Writer)?;
            let mut buffer = self.buffers.take(self.size);
            let free = room.min(buffer.size().bytes());
            let free = buffer.bytes_mut().get_mut(..free).unwrap_or_default();
            let end = match try_read(self.tcp, free) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Poll::Ready(Err(Broken::Reader(error))),
            };
            if end == 0 {
                self.to.release_room();
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            self.size = buffer.size().after_read(end);
            self.to.send(buffer, end).map_err(Broken::Writer)?;
            moved += end;
            count(u64::try_from(end).unwrap_or(u64::MAX));
        }
    }

    fn end_writer(&mut self) {
        self.to.end();
    }
}

/// From the stream to the socket.
struct Inwards<'a> {
    from: &'a mut ReceiveHalf,
    tcp: &'a TcpStream,
    client_is_far: bool,
    blocked: bool,
    ended: bool,
}

impl Flow for Inwards<'_> {
    fn is_open(&self) -> bool {
        !self.ended
    }

    fn is_blocked(&self) -> bool {
        self.blocked
    }

    fn poll(&mut self, cx: &mut Context<'_>, count: impl Fn(u64)) -> Poll<Result<(), Broken>> {
        let mut moved = 0;
        loop {
            while !self.from.is_empty() {
                match self.write(cx) {
                    Poll::Ready(written) => {
                        let written = written.map_err(Broken::Writer)?;
                        moved += written;
                        count(u64::try_from(written).unwrap_or(u64::MAX));
                    }
                    Poll::Pending => {
                        self.blocked = true;
                        // A client that is gone takes no answer any more; a server's answer is still delivered.
                        return match self.from.hoard(cx) {
                            Err(error) if self.client_is_far => Poll::Ready(Err(Broken::Reader(error))),
                            Err(_) | Ok(()) => Poll::Pending,
                        };
                    }
                }
            }
            self.blocked = false;
            if moved >= QUOTA {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !ready!(self.from.poll_gather(cx)).map_err(Broken::Reader)? {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn end_writer(&mut self) {
        close_write(self.tcp);
    }
}

impl Inwards<'_> {
    /// Writes what has been received, as far as the socket takes it.
    fn write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = self.from.slices(&mut slices);
            match self.tcp.try_write_vectored(slices.get(..filled).unwrap_or_default()) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(written) => {
                    self.from.take(written);
                    return Poll::Ready(Ok(written));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.tcp.poll_write_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}
