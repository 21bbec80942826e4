//! Service account tokens, which the Kubernetes API server judges (TokenReview).

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::tokens::Digest;
use super::{Agent, AgentError, digest};

/// What a token tells besides the account: the node its pod runs on.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// What the name of a service account begins with.
const ACCOUNT: &str = "system:serviceaccount:";
/// A token that was good is taken as good for so long: an agent asks for all its pods one after another.
const REMEMBERED: Duration = Duration::from_secs(60);
/// More agents than that are asked about again.
const CACHE_PLACES: usize = 10_000;
/// Questions at the same time; others wait.
const AT_A_TIME: usize = 16;
/// Waiting and answer together.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the API server.
pub(in crate::authority) struct TokenReviews {
    api: Api<TokenReview>,
    audience: String,
    /// Service accounts of agents, as `namespace/name`.
    accounts: BTreeSet<String>,
    places: Semaphore,
    /// Tokens that were good, and until when nobody asks about them.
    known: Mutex<HashMap<Digest, (Agent, Instant)>>,
}

impl std::fmt::Debug for TokenReviews {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("TokenReviews").field("accounts", &self.accounts).finish_non_exhaustive()
    }
}

impl TokenReviews {
    pub(in crate::authority) fn new(client: Client, audience: &str, accounts: BTreeSet<String>) -> Self {
        Self {
            api: Api::all(client),
            audience: audience.to_owned(),
            accounts,
            places: Semaphore::new(AT_A_TIME),
            known: Mutex::default(),
        }
    }

    pub(super) async fn agent(&self, token: &str) -> Result<Agent, AgentError> {
        let digest = digest(token);
        if let Some(agent) = self.remembered(&digest) {
            return Ok(agent);
        }
        let asked = timeout(PATIENCE, self.ask(token)).await;
        let user = asked.map_err(|_| {
            AgentError::Unavailable(format!("the API server did not answer in {PATIENCE:?}"))
        })??;
        let agent = self.judge(&user)?;
        self.remember(digest, &agent);
        Ok(agent)
    }

    async fn ask(&self, token: &str) -> Result<UserInfo, AgentError> {
        let unavailable = |error: &dyn std::fmt::Display| AgentError::Unavailable(error.to_string());
        let _place = self.places.acquire().await.map_err(|error| unavailable(&error))?;
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![self.audience.clone()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let answer = self.api.create(&PostParams::default(), &review).await;
        let status = answer.map_err(|error| unavailable(&error))?.status.unwrap_or_default();
        let refused = |reason: &str| AgentError::Refused(reason.to_owned());
        if let Some(error) = status.error.filter(|error| !error.is_empty()) {
            return Err(refused(&error));
        }
        if status.authenticated != Some(true) {
            return Err(refused("it is not authentic, or not valid any more"));
        }
        // A server that does not know audiences accepts tokens that were meant for somebody else.
        if !status.audiences.is_some_and(|audiences| audiences.contains(&self.audience)) {
            return Err(AgentError::Refused(format!("its audience is not {}", self.audience)));
        }
        Ok(status.user.unwrap_or_default())
    }

    fn judge(&self, user: &UserInfo) -> Result<Agent, AgentError> {
        let name = user.username.clone().unwrap_or_default();
        let account = name.strip_prefix(ACCOUNT).map(|account| account.replacen(':', "/", 1));
        if !account.is_some_and(|account| self.accounts.contains(&account)) {
            return Err(AgentError::NotAnAgent(name));
        }
        let node = user.extra.as_ref().and_then(|extra| extra.get(NODE_NAME)?.first());
        match node.filter(|node| !node.is_empty()) {
            Some(node) => Ok(Agent { name: name.into(), node: node.as_str().into() }),
            None => Err(AgentError::NoNode(name)),
        }
    }

    fn remembered(&self, digest: &Digest) -> Option<Agent> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(digest).filter(|(_, until)| Instant::now() < *until).map(|(agent, _)| agent.clone())
    }

    fn remember(&self, digest: Digest, agent: &Agent) {
        let now = Instant::now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CACHE_PLACES {
            known.retain(|_, (_, until)| now < *until);
        }
        if known.len() < CACHE_PLACES {
            known.insert(digest, (agent.clone(), now + REMEMBERED));
        }
    }
}

#[cfg(test)]
mod tests;
