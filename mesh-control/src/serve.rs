//! How the outside sees the control server: discovery over gRPC for agents, health, metrics and status over HTTP
//! for everybody else.

pub(crate) mod grpc;
pub(crate) mod http;
pub(crate) mod https;
mod incoming;
mod tls;
