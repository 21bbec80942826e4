//! Moves bytes between a socket and a stream of a tunnel: [`relay`](crate::proxy::relay) with one side changed.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::stream::{StreamKind, TunnelStream};
use super::{hbone, trunk};
use crate::proxy::relay::{BufferPool, RelayEnd};
use crate::proxy::socket::Stream;
use crate::telemetry::Traffic;

/// Relays until the end. Both sides are to be dropped then.
pub async fn relay(
    tcp: &mut Stream,
    tunnel: &mut TunnelStream,
    traffic: &Arc<Traffic>,
    buffers: &Rc<BufferPool>,
    idle_timeout: Duration,
) -> RelayEnd {
    let far = tunnel.far;
    match &mut tunnel.kind {
        StreamKind::Hbone(stream) => hbone::relay(tcp, stream, far, traffic, buffers, idle_timeout).await,
        StreamKind::Trunk(stream) => trunk::relay(tcp, stream, far, traffic, idle_timeout).await,
    }
}
