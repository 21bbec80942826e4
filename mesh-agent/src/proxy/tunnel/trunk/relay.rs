//! Moves bytes between a socket and a stream of a trunk. What comes from the trunk is written by the trunk itself; here is
//! what is left to do: the other direction, what the socket would not take, and the ends.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::net::TcpStream;

use super::stream::{Drained, TrunkStream};
use crate::proxy::relay::{Broken, Flow, Lifetime, QUOTA, RelayEnd, Size, run};
use crate::proxy::socket::{Stream, close_write};
use crate::proxy::tunnel::Far;
use crate::telemetry::Traffic;

/// Relays until the end. Both sides are to be dropped then.
pub(in super::super) async fn relay(
    tcp: &mut Stream,
    stream: &TrunkStream,
    far: Far,
    traffic: &Arc<Traffic>,
    lifetime: &Lifetime,
) -> RelayEnd {
    let end = {
        let socket = tcp.shared();
        let _attached = stream.attach(socket, traffic, far);
        let mut inwards = Inwards { stream, tcp: socket, far, ended: false };
        let mut outwards =
            Outwards { tcp: socket, stream, size: Size::default(), blocked: false, ended: false };
        match far {
            Far::Client => {
                // A stream is heard of even while the server takes nothing.
                let client_gone = std::future::pending::<()>;
                run(&mut inwards, &mut outwards, client_gone, traffic, lifetime).await
            }
            Far::Server => {
                let client_gone = || socket.ready(Interest::ERROR);
                run(&mut outwards, &mut inwards, client_gone, traffic, lifetime).await
            }
        }
    };
    if matches!(end, RelayEnd::Complete) {
        tcp.end_in_order();
        stream.end();
    }
    end
}

/// From the socket to the stream.
struct Outwards<'a> {
    tcp: &'a Rc<TcpStream>,
    stream: &'a TrunkStream,
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
            let room = self.stream.poll_room(cx);
            self.blocked = room.is_pending();
            let room = ready!(room);
            ready!(self.tcp.poll_read_ready(cx)).map_err(Broken::Reader)?;
            let end = match self.stream.send_from(self.tcp, self.size, room) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Poll::Ready(Err(Broken::Reader(error))),
            };
            if end == 0 {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            // A frame has a little less room than its buffer.
            self.size = self.size.after_read(end + Size::Small.bytes() / 8);
            moved += end;
            count(u64::try_from(end).unwrap_or(u64::MAX));
        }
    }

    fn end_writer(&mut self) {
        self.stream.end();
    }
}

/// From the stream to the socket.
struct Inwards<'a> {
    stream: &'a TrunkStream,
    tcp: &'a TcpStream,
    far: Far,
    ended: bool,
}

impl Flow for Inwards<'_> {
    fn is_open(&self) -> bool {
        !self.ended
    }

    fn is_blocked(&self) -> bool {
        self.stream.is_blocked()
    }

    fn poll(&mut self, cx: &mut Context<'_>, _: impl Fn(u64)) -> Poll<Result<(), Broken>> {
        // A client that is gone takes no answer any more; a server's answer is still delivered.
        let patient = self.far == Far::Server;
        match ready!(self.stream.poll_drain(cx, self.tcp, patient)) {
            Drained::Ended => {
                self.ended = true;
                Poll::Ready(Ok(()))
            }
            Drained::Broke(error) => Poll::Ready(Err(Broken::Reader(error))),
            Drained::SinkBroke(error) => Poll::Ready(Err(Broken::Writer(error))),
        }
    }

    fn end_writer(&mut self) {
        close_write(self.tcp);
    }
}
