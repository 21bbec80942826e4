//! HBONE: HTTP/2 CONNECT inside of mutual TLS, as ztunnel and Envoy speak it. Here are the bytes of its streams; opening
//! and accepting them is in `client` and `server`.

mod relay;
mod stream;

pub(super) use relay::relay;
pub(super) use stream::{Chunk, HboneStream};
