//! The client's side of a trunk: opening streams.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;

use rustls::Connection;
use tokio_rustls::client::TlsStream;

use super::super::aligned::Aligned;
use super::super::settings::TunnelSettings;
use super::super::state::{Guard, TunnelState};
use super::engine::{Engine, Side};
use super::frame::{Kind, Open};
use super::shared::Shared;
use super::stream::{Answer, TrunkStream};
use crate::proxy::relay::BufferPool;
use crate::proxy::socket::Stream;
use crate::proxy::tunnel::error::TunnelFailure;
use crate::proxy::tunnel::request::TunnelRoute;

/// Opens streams of a trunk.
#[derive(Clone)]
pub(in super::super) struct Opener {
    shared: Rc<Shared>,
    /// Streams that the peer is believed to take, until it has said so.
    expected: usize,
}

/// What became of an OPEN.
pub(in super::super) enum Opening {
    Opened(TrunkStream),
    Refused(TunnelFailure),
    /// It may be asked for in another trunk.
    NotProcessed(io::Error),
    Broken(io::Error),
}

impl Opener {
    /// Starts a trunk over TLS.
    ///
    /// # Errors
    /// If the session has no keys for it.
    pub(in super::super) fn start(
        tls: TlsStream<Aligned<Stream>>,
        state: Rc<TunnelState>,
        expected: usize,
        settings: &TunnelSettings,
        buffers: &Rc<BufferPool>,
    ) -> io::Result<(Self, Engine)> {
        let (socket, session) = tls.into_inner();
        // The server opens none.
        let shared = Shared::new(buffers, state, settings.stream_window, 0);
        let session = Connection::Client(session);
        let engine = Engine::new(socket.into_inner(), session, Side::Client, Rc::clone(&shared))?;
        Ok((Self { shared, expected }, engine))
    }

    /// Whether streams may be opened.
    pub(in super::super) fn is_open(&self) -> bool {
        !self.shared.closing.get() && self.shared.broken().is_none()
    }

    /// Streams that the peer takes.
    pub(in super::super) fn peer_streams(&self) -> usize {
        let told = self.shared.peer.get();
        told.map_or(self.expected, |(_, streams)| usize::try_from(streams).unwrap_or(usize::MAX))
    }

    /// Asks for a connection and waits for the answer.
    pub(in super::super) async fn open(&self, route: &TunnelRoute, guard: Guard) -> Opening {
        let forwarded = route.forwarded();
        let texts = [
            route.path.authority.as_bytes(),
            forwarded.as_bytes(),
            route.baggage.as_ref().map_or(&b""[..], |value| value.as_bytes()),
            route.trace_parent.as_ref().map_or(&b""[..], |value| value.as_bytes()),
        ];
        let Some(payload) = Open::payload(texts) else {
            return Opening::Refused(TunnelFailure::Authority((&*route.path.authority).into()));
        };
        let Some(id) = self.shared.opened.get().checked_add(1).filter(|_| !self.shared.closing.get()) else {
            return Opening::NotProcessed(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the peer closes the tunnel",
            ));
        };
        self.shared.opened.set(id);
        let stream = TrunkStream { state: self.shared.add(id, guard) };
        stream.push(Kind::Open, &payload);
        match poll_fn(|cx| stream.poll_answer(cx)).await {
            Ok(Answer::Opened) => Opening::Opened(stream),
            Ok(Answer::Refused(status, reason)) => {
                stream.over();
                Opening::Refused(TunnelFailure::from_answer(status, reason))
            }
            Ok(Answer::NotProcessed) => {
                stream.over();
                Opening::NotProcessed(io::Error::new(
                    io::ErrorKind::BrokenPipe,
                    "the peer takes no more streams",
                ))
            }
            Err(error) => Opening::Broken(error),
        }
    }
}
