//! The TLS connection under a tunnel that this side has opened.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

use super::state::{TunnelEnd, TunnelState};
use crate::identity::PeerError;

/// Notes when the peer refuses our certificate. In TLS 1.3 it does so after our handshake is done, and `h2` keeps
/// nothing of the error but its text.
pub(super) struct Noting<IO> {
    pub(super) tls: TlsStream<IO>,
    pub(super) state: Rc<TunnelState>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Noting<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.tls).poll_read(cx, buffer);
        if let Poll::Ready(Err(error)) = &read
            && let refusal @ PeerError::RefusedOurs(_) = PeerError::from_io(error)
        {
            this.state.end(TunnelEnd::Refused(refusal));
        }
        read
    }
}

write_through!(Noting, tls);
