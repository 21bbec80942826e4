//! What the agent says about its connections: live ones, metrics and the access log.

mod record;

pub use record::{
    ConnectFailure, ConnectionEnd, ConnectionObserver, ConnectionRecord, Direction, Incident, Peer, Reporter,
    ResponseFlag, Traffic, Transport,
};
