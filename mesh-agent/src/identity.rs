//! Who the pods of this node are, and who their peers are: keys, certificates and their verification.
//!
//! Every service account of an enrolled local pod has one P-256 key and one short-lived certificate with its SPIFFE
//! identity ([`Credentials`]). [`IdentityManager`] has the authority sign them and renews them; the data plane reads
//! them from [`Identities`], without a lock. A key is made here, lives in memory only, and is replaced with its
//! certificate.
//!
//! [`Trust`] is what peers are verified with: the roots and the revocation lists of the moment. The TLS
//! configurations inside [`Credentials`] all look it up anew for each handshake, so that a rotated root or a new
//! revocation list is in force at once; whoever keeps connections open watches [`Trust::revision`] and asks
//! [`Trust::still_trusted`].
//!
//! Both sides verify that the peer's certificate leads to a root. Then the server requires an identity of its own
//! trust domain or an alias of it, while the client requires exactly the identity it expects ([`check_peer_is`]).
//! Every reason to refuse a peer is a [`PeerError`] of its own, which [`PeerError::from_io`] finds again in the error
//! of a failed handshake.

mod authority;
mod clock;
mod credentials;
mod files;
mod identities;
mod manager;
mod peer;
mod request;
mod schedule;
mod summary;
#[cfg(test)]
mod tests;
mod trust;
mod verifier;
mod wanted;

pub use mesh_xds::identity::Identity;

pub use authority::{Authority, AuthorityClient, AuthorityError};
pub use clock::{Clock, SystemClock};
pub use credentials::{Credentials, HTTP2, InvalidCredentials, TRUNK};
pub use identities::{Identities, IdentityState, IdentityStatus, NoCredentials};
pub use manager::{IdentityManager, IdentitySettings};
pub use peer::{PeerError, check_peer_is, peer_identity};
pub use summary::{FailureReason, IdentitySummary};
pub use trust::{PeerSide, Revocation, RootSource, Trust};
pub use wanted::{Wanted, follow, identities_of};
