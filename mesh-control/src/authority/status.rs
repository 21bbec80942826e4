//! How the authority is, for people.

use std::sync::Arc;

use serde::Serialize;

use super::clock::rfc3339;
use super::generations::Phase;
use super::pem::CertificateFacts;
use super::{Authority, Problems};

/// The authority as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuthorityStatus {
    /// The certificate that signs.
    pub issuer: Option<CertificateFacts>,
    /// The roots that agents are told to trust.
    pub roots: Vec<CertificateFacts>,
    /// Where the rotation of a generated root is.
    pub rotation: Option<Phase>,
    /// When the rotation that is under way will be over.
    pub rotation_ends: Option<String>,
    /// Tokens in the file of agents' tokens.
    pub agent_tokens: Option<usize>,
    /// What cannot be used; what was good before is used instead.
    pub problems: Vec<String>,
}

impl Authority {
    pub(crate) fn status(&self) -> AuthorityStatus {
        let current = self.current.load();
        let current = current.as_ref();
        let generations = current.and_then(|current| current.found.generations.as_ref());
        let Problems { material, tokens, root_file, serving } = Problems::clone(&self.problems.load());
        AuthorityStatus {
            issuer: current.map(|current| current.signer.certificate().facts()),
            roots: current
                .into_iter()
                .flat_map(|current| current.signer.roots())
                .map(|root| root.facts())
                .collect(),
            rotation: generations.map(|state| state.phase()),
            rotation_ends: generations.and_then(|state| state.until(&self.plan.lifetimes)).map(rfc3339),
            agent_tokens: self.agents.tokens.as_ref().map(|tokens| tokens.len()),
            problems: [material, tokens, root_file, serving].into_iter().flatten().collect(),
        }
    }

    /// Why nothing can be signed, if so.
    pub(super) fn nothing_signs(&self) -> String {
        let problems = Arc::clone(&self.problems.load());
        problems.material.clone().unwrap_or_else(|| "keys and certificates are being read".to_owned())
    }
}
