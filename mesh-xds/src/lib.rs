//! The configuration protocol of the mesh, and nothing else: the messages ([`proto`]), a client and a server of
//! delta discovery.

pub mod client;
pub mod proto;
pub mod server;

mod text;
mod time;
