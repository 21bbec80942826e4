//! Whether a rule matches a connection. What the rules of matching are is told in [`super`].

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_xds::identity::Identity;

use super::Request;
use super::model::{Action, Clause, Field, Match, Pattern, Policy, Rule, Texts, Values};

/// What policies are compared with, worked out once per check.
pub(super) struct Facts<'a> {
    pub(super) source: Option<Source<'a>>,
    pub(super) source_ip: IpAddr,
    pub(super) destination_ip: IpAddr,
    pub(super) destination_port: u16,
}

/// A client that has proven who it is.
pub(super) struct Source<'a> {
    pub(super) identity: &'a Identity,
    pub(super) principal: String,
}

impl<'a> Facts<'a> {
    pub(super) fn new(request: &Request<'a>) -> Self {
        let source = request.source.map(|identity| Source { identity, principal: identity.principal() });
        Self {
            source,
            // A mapped address is an IPv4 address, whatever kind of socket it came through.
            source_ip: request.source_ip.to_canonical(),
            destination_ip: request.destination.ip().to_canonical(),
            destination_port: request.destination.port(),
        }
    }
}

impl Policy {
    /// Whether the rule at `index` matches.
    pub(super) fn rule_matches(&self, index: usize, facts: &Facts<'_>) -> bool {
        // An unusable policy acts as one rule that always matches.
        self.unusable.is_some() || self.rules.get(index).is_some_and(|rule| rule.matches(facts, self.action))
    }
}

impl Rule {
    pub(super) fn matches(&self, facts: &Facts<'_>, action: Action) -> bool {
        self.clauses.iter().all(|clause| clause.matches(facts, action))
    }
}

impl Clause {
    pub(super) fn matches(&self, facts: &Facts<'_>, action: Action) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|alternative| alternative.matches(facts, action))
    }
}

impl Match {
    pub(super) fn matches(&self, facts: &Facts<'_>, action: Action) -> bool {
        !self.fields.is_empty() && self.fields.iter().all(|field| field.holds(facts, action))
    }
}

impl Field {
    /// Whether the field holds, with what is unknown taken against the connection.
    pub(super) fn holds(&self, facts: &Facts<'_>, action: Action) -> bool {
        let deny = action == Action::Deny;
        // For the field as a whole to hold in a DENY, an unknown value has to match, or not to if it is negated.
        let unknown = deny != self.negated;
        let identity = facts.source.as_ref().map(|source| source.identity);
        let matched = match &self.values {
            Values::Unknown(_) => return deny,
            Values::Namespaces(texts) => {
                texts.match_text(identity.map(|identity| &**identity.namespace()), unknown)
            }
            Values::Principals(texts) => {
                texts.match_text(facts.source.as_ref().map(|source| source.principal.as_str()), unknown)
            }
            Values::ServiceAccounts(accounts) => identity.is_some_and(|identity| {
                accounts.iter().any(|account| {
                    account.namespace == *identity.namespace() && account.name == *identity.service_account()
                })
            }),
            Values::SourceIps(ranges) => contain(ranges, facts.source_ip),
            Values::DestinationIps(ranges) => contain(ranges, facts.destination_ip),
            Values::DestinationPorts(ports) => ports.binary_search(&facts.destination_port).is_ok(),
        };
        matched != self.negated
    }
}

impl Texts {
    fn match_text(&self, text: Option<&str>, unknown: bool) -> bool {
        let exactly = |text: &str| self.exact.binary_search_by(|exact| (**exact).cmp(text)).is_ok();
        text.is_some_and(exactly)
            || self.patterns.iter().any(|pattern| match pattern {
                Pattern::Prefix(prefix) => text.is_some_and(|text| text.starts_with(&**prefix)),
                Pattern::Suffix(suffix) => text.is_some_and(|text| text.ends_with(&**suffix)),
                Pattern::Presence => text.is_some(),
                Pattern::Unknown => unknown,
            })
    }
}

fn contain(ranges: &[IpNet], address: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(&address))
}
