//! What the agent says about its connections: live ones, metrics and the access log.

mod record;

pub use record::{
    ConnectionEnd, ConnectionObserver, ConnectionRecord, Direction, Peer, Reporter, ResponseFlag, Traffic,
    Transport,
};
