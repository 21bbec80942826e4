//! Who the pods of this node are, and who vouches for them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::identity::{IdentityState, IdentityStatus};

/// The identities of this node's pods, and what peers are verified with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityReport {
    /// Every identity that a pod here has.
    pub identities: Vec<IdentityStatus>,
    /// Certificates that a peer's must lead to.
    pub roots: Vec<RootInfo>,
    /// Certificates received since the agent started.
    pub issued: u64,
    /// Requests for certificates that failed since the agent started, by the reason.
    pub failures: BTreeMap<String, u64>,
}

/// A certificate that others lead to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootInfo {
    /// Its name.
    pub subject: String,
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
}
