//! The server's side of a trunk: connections that are asked for.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;

use http::StatusCode;
use rustls::Connection;
use tokio_rustls::server::TlsStream;

use super::super::aligned::Aligned;
use super::super::headers::plain_reason;
use super::super::settings::TunnelSettings;
use super::super::state::TunnelState;
use super::engine::{Engine, Side};
use super::frame::{Kind, Open};
use super::shared::Shared;
use super::stream::TrunkStream;
use crate::proxy::relay::BufferPool;
use crate::proxy::socket::Stream;

impl Engine {
    /// Starts a trunk over TLS that a client has opened.
    ///
    /// # Errors
    /// If the session has no keys for it.
    pub(in super::super) fn serve(
        tls: TlsStream<Aligned<Stream>>,
        state: Rc<TunnelState>,
        settings: &TunnelSettings,
        buffers: &Rc<BufferPool>,
    ) -> io::Result<Self> {
        let (socket, session) = tls.into_inner();
        let shared = Shared::new(buffers, state, settings.stream_window, settings.streams_per_tunnel);
        Self::new(socket.into_inner(), Connection::Server(session), Side::Server, shared)
    }
}

/// A connection that is asked for. Dropped without an answer, its stream is reset.
pub(in super::super) struct OpenRequest {
    pub(in super::super) open: Open,
    pub(super) stream: TrunkStream,
}

impl OpenRequest {
    /// Answers that the connection is open.
    pub(in super::super) fn accept(self) -> io::Result<TrunkStream> {
        if let Some(error) = self.stream.state.broken() {
            return Err(error);
        }
        self.stream.push(Kind::Opened, &[]);
        Ok(self.stream)
    }

    /// Answers that it will not be, and why.
    pub(in super::super) fn reject(self, status: StatusCode, reason: &str) {
        let mut payload = status.as_u16().to_be_bytes().to_vec();
        payload.extend_from_slice(plain_reason(reason).as_bytes());
        self.stream.push(Kind::Refused, &payload);
        self.stream.over();
    }

    /// Waits until the client does not want the connection any more.
    pub(in super::super) async fn client_gone(&self) {
        poll_fn(|cx| self.stream.poll_gone(cx)).await;
    }
}
