//! How a node agent asks for the certificate of a workload.

use std::time::Duration;

use prost_types::{Struct, Value, value::Kind};

use super::auth::IstioCertificateRequest;
use crate::identity::Identity;

impl IstioCertificateRequest {
    /// Asks, on behalf of a workload, to sign its request (PEM) for this long.
    pub fn on_behalf_of(identity: &Identity, csr: String, lifetime: Duration) -> Self {
        let identity = Value { kind: Some(Kind::StringValue(identity.to_string())) };
        Self {
            csr,
            validity_duration: i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(Struct { fields: [("ImpersonatedIdentity".to_owned(), identity)].into() }),
        }
    }
}
