//! One stream of a tunnel, whichever protocol the tunnel speaks.

use std::sync::Arc;

use super::hbone::HboneStream;
use super::trunk::TrunkStream;
use crate::identity::Identity;

/// Who opened the connection that a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Far {
    /// The client is at the other end: we accepted the stream.
    Client,
    /// The server is at the other end: we opened the stream.
    Server,
}

/// A stream of a tunnel. Reset when dropped, unless both directions have ended.
pub struct TunnelStream {
    pub(super) kind: StreamKind,
    pub(super) far: Far,
}

/// What a stream's tunnel speaks.
pub(super) enum StreamKind {
    Hbone(HboneStream),
    Trunk(TrunkStream),
}

impl TunnelStream {
    /// Who is at the other end of the tunnel, proven.
    pub fn peer(&self) -> Option<&Arc<Identity>> {
        match &self.kind {
            StreamKind::Hbone(stream) => stream.peer(),
            StreamKind::Trunk(stream) => stream.peer(),
        }
    }
}
