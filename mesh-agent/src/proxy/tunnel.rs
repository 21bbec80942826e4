//! Tunnels: connections inside of mutual TLS.
//!
//! A tunnel is a TLS 1.3 connection to port 15008 of a workload, waypoint or gateway; a connection in it is a stream, open
//! once the other side is connected to the destination. Both sides prove by their certificates which service account they
//! speak for. What is spoken inside is HBONE (HTTP/2 CONNECT, as ztunnel and Envoy speak it; `hbone`) or, between two of our
//! own agents, something leaner ([`trunk`]); the handshake agrees on it.
//!
//! - the client's side: [`Tunnels`], a pool that opens tunnels and keeps them for the next connection (`pool`,
//!   `client`, `double`);
//! - the server's side: [`TunnelServer`], which hands every connection that is asked for to its caller (`server`);
//! - between: [`relay()`] moves bytes between a socket and a stream.
//!
//! Everything of a tunnel lives on one worker, its connections' sockets too.

#[macro_use]
mod write_through;

mod aligned;
mod authority;
mod client;
mod connection;
mod double;
mod error;
mod hbone;
mod headers;
mod pool;
mod relay;
mod request;
mod server;
mod settings;
mod state;
mod stream;
mod tls;
pub(crate) mod trunk;

pub use authority::{Authority, InvalidAuthority};
pub use error::{Step, TunnelError, TunnelFailure};
pub use headers::{Claims, baggage};
pub use pool::Tunnels;
pub use relay::relay;
pub use request::TunnelRoute;
pub use server::{ConnectRequest, ServerError, TunnelServer};
pub use settings::TunnelSettings;
pub use state::TunnelEnd;
use stream::Far;
pub use stream::TunnelStream;
