//! What a check says, and in which words: the access log and `explain` use the same.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::Request;
use super::model::Policy;
use super::rules::RuleRef;
use crate::telemetry::ResponseFlag;

/// The connection may be made.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    by: Option<Matched>,
    would_be_denied: Option<Box<Denied>>,
}

impl Allowed {
    pub(super) fn new(by: Option<Matched>, would_be_denied: Option<Denied>) -> Self {
        Self { by, would_be_denied: would_be_denied.map(Box::new) }
    }

    /// The rule that allows it; `None` where no ALLOW policy applies.
    pub fn by(&self) -> Option<&Matched> {
        self.by.as_ref()
    }

    /// What would deny it if the dry-run policies were enforced.
    pub fn would_be_denied(&self) -> Option<&Denied> {
        self.would_be_denied.as_deref()
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.by {
            Some(matched) => write!(out, "allowed by {matched}"),
            None => out.write_str("allowed: no ALLOW policy applies"),
        }
    }
}

/// A rule that matched.
#[derive(Debug, Clone)]
pub struct Matched {
    rule: RuleRef,
}

impl Matched {
    pub(super) fn new(rule: RuleRef) -> Self {
        Self { rule }
    }

    /// The policy.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.rule.policy
    }

    /// The position of the rule in the resource the policy was made from, from 0.
    pub fn rule(&self) -> u32 {
        self.rule.number()
    }
}

impl fmt::Display for Matched {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} rules[{}]", self.policy().origin, self.rule())
    }
}

/// The connection must not be made. Displayed as the access log has it.
#[derive(Debug, Clone)]
pub struct Denied {
    why: Why,
    principal: Option<Box<str>>,
    source_ip: IpAddr,
    port: u16,
}

#[derive(Debug, Clone)]
pub(super) enum Why {
    /// A rule of a DENY policy matches, or the policy is unusable.
    Rule(Matched),
    /// ALLOW policies apply and none matches: the first of them, and how many more there are.
    NoRule { first: Arc<Policy>, others: usize },
    /// The workload names a policy that is not held.
    Missing(Arc<str>),
}

impl Denied {
    pub(super) fn new(why: Why, request: &Request<'_>) -> Self {
        Self {
            why,
            principal: request.source.map(|identity| identity.principal().into()),
            source_ip: request.source_ip.to_canonical(),
            port: request.destination.port(),
        }
    }

    /// The policy that decided, if it is held.
    pub fn policy(&self) -> Option<&Arc<Policy>> {
        match &self.why {
            Why::Rule(matched) => Some(matched.policy()),
            Why::NoRule { first, .. } => Some(first),
            Why::Missing(_) => None,
        }
    }

    /// The response flag to report it with.
    pub fn flag(&self) -> ResponseFlag {
        if self.is_plain_text() { ResponseFlag::PlaintextRefused } else { ResponseFlag::Denied }
    }

    /// Whether it may pass by itself within [`SETTLING_TIME`](super::SETTLING_TIME), which live connections are
    /// given: a policy is named that has not come yet.
    pub fn may_settle(&self) -> bool {
        matches!(self.why, Why::Missing(_))
    }

    /// Whether it was refused for having no identity where mutual TLS is a must.
    fn is_plain_text(&self) -> bool {
        let of_peers = |policy: &Arc<Policy>| policy.origin.is_peer_authentication();
        self.principal.is_none() && self.policy().is_some_and(of_peers)
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            Why::Missing(name) => write!(
                out,
                "denied: the policy {name}, which selects the workload, is not known to the agent"
            )?,
            Why::NoRule { first, others } => {
                write!(out, "denied by {}", first.origin)?;
                match others {
                    0 => out.write_str(": no rule matches")?,
                    1 => out.write_str(" and 1 more: no rule matches")?,
                    others => write!(out, " and {others} more: no rule matches")?,
                }
            }
            Why::Rule(matched) => match &matched.policy().unusable {
                Some(reason) => {
                    write!(out, "denied by {}, which cannot be used: {reason}", matched.policy().origin)?
                }
                None if self.is_plain_text() => {
                    write!(
                        out,
                        "denied by {}: plain text where mutual TLS is required",
                        matched.policy().origin
                    )?;
                }
                None => write!(out, "denied by {matched}")?,
            },
        }
        out.write_str(" (source ")?;
        match &self.principal {
            Some(principal) => out.write_str(principal)?,
            None => write!(out, "{} without identity", self.source_ip)?,
        }
        write!(out, ", port {})", self.port)
    }
}
