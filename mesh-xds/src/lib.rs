//! The configuration protocol of the mesh, and nothing else: the messages ([`proto`]), a client and a server of
//! delta discovery, the form of identities ([`identity`]), and the names ([`annotation`]) of what the control server
//! and an agent both read from pods.

pub mod annotation;
pub mod client;
pub mod identity;
pub mod proto;
pub mod server;

mod text;
mod time;
