//! Moves bytes between a socket and a stream of a tunnel: [`relay`](crate::proxy::relay) with one side changed.

use std::rc::Rc;
use std::sync::Arc;

use super::stream::{StreamKind, TunnelStream};
use super::{hbone, trunk};
use crate::proxy::relay::{BufferPool, Lifetime, RelayEnd};
use crate::proxy::socket::Stream;
use crate::telemetry::Traffic;

/// Relays until the end. Both sides are to be dropped then.
pub async fn relay(
    tcp: &mut Stream,
    tunnel: &mut TunnelStream,
    traffic: &Arc<Traffic>,
    buffers: &Rc<BufferPool>,
    lifetime: &Lifetime,
) -> RelayEnd {
    let far = tunnel.far;
    match &mut tunnel.kind {
        StreamKind::Hbone(stream) => hbone::relay(tcp, stream, far, traffic, buffers, lifetime).await,
        StreamKind::Trunk(stream) => trunk::relay(tcp, stream, far, traffic, lifetime).await,
    }
}
