//! Steering of the pods' traffic: kernel programs and what the node needs around them.

pub mod host;
