//! A tunnel within a tunnel: through the gateway of another network to the agent of a workload there.
//!
//! The outer tunnel ends at the gateway, which sees who asks for which service and nothing else; the inner one ends at
//! the agent of the endpoint that the gateway chose. The inner one is used for one connection only: the gateway chooses
//! an endpoint for each stream of the outer tunnel, and connections that shared an inner tunnel would all go to the
//! endpoint that was chosen for the first.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::spawn_local;

use super::client::{Ends, establish_over};
use super::error::TunnelFailure;
use super::hbone::HboneStream;
use super::request::TunnelRoute;
use super::settings::{FRAME_PAYLOAD, TunnelSettings};
use super::stream::{StreamKind, TunnelStream};
use crate::identity::PeerError;
use crate::proxy::relay::{BufferPool, Size};

/// Opens a connection through a tunnel within `outer`.
pub(super) async fn open(
    outer: TunnelStream,
    buffers: &Rc<BufferPool>,
    ends: &Ends,
    route: &TunnelRoute,
    settings: &TunnelSettings,
) -> Result<TunnelStream, TunnelFailure> {
    let StreamKind::Hbone(stream) = outer.kind else {
        // Gateways are asked for HBONE.
        return Err(PeerError::Handshake("a gateway has to speak HTTP/2".into()).into());
    };
    let io = TunnelIo { stream, buffers: Rc::clone(buffers) };
    let (tunnel, driver) = establish_over(io, ends, 1, settings).await?;
    let tunnel = Rc::new(tunnel);
    let (handle, settings) = (Rc::downgrade(&tunnel), settings.clone());
    spawn_local(async move { driver.drive(&handle, &settings, || {}).await });
    let guard = tunnel.state.enter();
    // When this handle is dropped, the tunnel stays open for as long as the one stream it has.
    tunnel.connect(route, guard).await.map_err(TunnelFailure::from)
}

/// A stream as a connection.
struct TunnelIo {
    stream: HboneStream,
    buffers: Rc<BufferPool>,
}

impl AsyncRead for TunnelIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let receive = &mut self.get_mut().stream.receive;
        if ready!(receive.poll_gather(cx))? {
            let count = receive.peek(buffer);
            receive.take(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let send = &mut this.stream.send;
        let room = ready!(send.poll_room(cx, bytes.len().min(FRAME_PAYLOAD)))?;
        let mut buffer = this.buffers.take(Size::for_bytes(room));
        let count = room.min(buffer.size().bytes());
        if let (Some(to), Some(from)) = (buffer.bytes_mut().get_mut(..count), bytes.get(..count)) {
            to.copy_from_slice(from);
        }
        send.send(buffer, count)?;
        send.release_room();
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream.send.end();
        Poll::Ready(Ok(()))
    }
}
