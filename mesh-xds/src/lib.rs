//! The configuration protocol of the mesh, and nothing else: the messages ([`proto`]), a client and a server of
//! delta discovery, the way to a control server ([`transport`]), the form of identities ([`identity`]), and the names
//! ([`annotation`]) of what the control server and an agent both read from pods.

pub mod annotation;
pub mod backoff;
pub mod client;
pub mod identity;
pub mod proto;
pub mod server;
pub mod transport;

mod text;
mod time;

/// The TCP port of tunnels (HBONE): HTTP/2 CONNECT over mutual TLS, at the address of the pod they lead to.
pub const HBONE_PORT: u16 = 15008;
