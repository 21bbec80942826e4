//! Who asks for a certificate: agents prove who they are, and on which node, with a bearer token.

mod review;
mod tokens;

use std::sync::Arc;
use std::time::SystemTime;

use tonic::metadata::MetadataMap;

use super::clock::rfc3339;
pub(super) use review::TokenReviews;
pub(super) use tokens::{TokenFile, digest};

/// Longer tokens are not looked at; those of Kubernetes have about a thousand bytes.
const MAX_TOKEN_BYTES: usize = 16 << 10;

/// An agent that proved who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Agent {
    /// Its name, for people.
    pub(super) name: Arc<str>,
    /// The node it may speak for.
    pub(super) node: Arc<str>,
}

/// Why somebody is not known to be an agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AgentError {
    #[error("no token: send one in the header \"authorization: Bearer <token>\"")]
    Missing,
    #[error(
        "the header authorization is not of the form \"Bearer <token>\", or longer than {MAX_TOKEN_BYTES} bytes"
    )]
    Malformed,
    #[error("the token is unknown")]
    Unknown,
    #[error("the token of {name} expired at {}: give the agent a new one", rfc3339(*at))]
    Expired { name: Arc<str>, at: SystemTime },
    #[error("Kubernetes does not accept the token: {0}")]
    Refused(String),
    #[error("{0} is not an agent: --agent-service-account names those that are")]
    NotAnAgent(String),
    #[error(
        "the token of {0} does not name a node: it has to be one that the kubelet mounts into a pod, which names the node \
         since Kubernetes 1.30"
    )]
    NoNode(String),
    /// Nothing is wrong with the token, as far as can be told.
    #[error("the token cannot be checked now: {0}")]
    Unavailable(String),
}

/// The ways to prove it; at least one.
#[derive(Debug, Default)]
pub(super) struct Agents {
    pub(super) tokens: Option<TokenFile>,
    pub(super) reviews: Option<TokenReviews>,
}

impl Agents {
    pub(super) async fn authenticate(
        &self,
        metadata: &MetadataMap,
        now: SystemTime,
    ) -> Result<Agent, AgentError> {
        let token = bearer(metadata)?;
        let listed = self.tokens.as_ref().map_or(Err(AgentError::Unknown), |file| file.agent(token, now));
        match (listed, &self.reviews) {
            (Err(AgentError::Unknown), Some(reviews)) => reviews.agent(token).await,
            (listed, _) => listed,
        }
    }
}

fn bearer(metadata: &MetadataMap) -> Result<&str, AgentError> {
    let header = metadata.get("authorization").ok_or(AgentError::Missing)?;
    let text = header.to_str().map_err(|_| AgentError::Malformed)?;
    let (scheme, token) = text.split_once(' ').ok_or(AgentError::Malformed)?;
    let token = token.trim();
    // Names of schemes have no case (RFC 9110).
    let bearer = scheme.eq_ignore_ascii_case("bearer") && (1..=MAX_TOKEN_BYTES).contains(&token.len());
    if bearer { Ok(token) } else { Err(AgentError::Malformed) }
}
