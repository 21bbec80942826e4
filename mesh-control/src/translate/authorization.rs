//! Authorization policies as agents get them.

use ipnet::IpNet;
use mesh_xds::proto::mesh::PolicyOrigin;
use mesh_xds::proto::security::string_match::MatchType;
use mesh_xds::proto::security::{
    self as wire, Authorization, Clause, Rule, Scope, ServiceAccountMatch, StringMatch,
};

use super::{CLUSTER_LOCAL, Mesh, octets};
use crate::model::{self, AuthorizationPolicy, Kind, Match, PolicyBody, ServiceAccount};

/// The policy of an AuthorizationPolicy. One that cannot be used denies everything it is for.
pub(super) fn of_policy(mesh: &Mesh, policy: &AuthorizationPolicy) -> Authorization {
    let scope = match &policy.selector {
        Some(_) => Scope::WorkloadSelector,
        None if *policy.name.namespace == *mesh.root_namespace => Scope::Global,
        None => Scope::Namespace,
    };
    let mut origin = PolicyOrigin {
        kind: Kind::AuthorizationPolicy.name().to_owned(),
        namespace: policy.name.namespace.to_string(),
        name: policy.name.name.to_string(),
        ..PolicyOrigin::default()
    };
    let (action, rules) = match &policy.body {
        PolicyBody::Rules { action, rules, written } => {
            if rules.len() < *written {
                let positions = rules.iter().map(|rule| u32::try_from(rule.position).unwrap_or(u32::MAX));
                origin.rules = positions.collect();
            }
            let action = match action {
                model::Action::Allow => wire::Action::Allow,
                model::Action::Deny => wire::Action::Deny,
            };
            (action, rules.iter().map(|rule| translate(mesh, rule)).collect())
        }
        PolicyBody::Unusable(reason) => {
            origin.unusable.clone_from(reason);
            (wire::Action::Deny, vec![Rule::default()])
        }
    };
    let mut authorization = Authorization {
        name: policy.name.name.to_string(),
        namespace: policy.name.namespace.to_string(),
        scope: scope.into(),
        action: action.into(),
        rules,
        dry_run: policy.dry_run,
        ..Authorization::default()
    };
    authorization.set_origin(&origin);
    authorization
}

fn translate(mesh: &Mesh, rule: &model::Rule) -> Rule {
    let clauses = rule
        .clauses
        .iter()
        .map(|clause| Clause { matches: clause.iter().map(|part| translate_match(mesh, part)).collect() });
    Rule { clauses: clauses.collect() }
}

fn translate_match(mesh: &Mesh, part: &Match) -> wire::Match {
    let principals = |texts: &[String]| {
        let named = texts.iter().flat_map(|text| in_every_trust_domain(mesh, text));
        named.map(|text| string_match(&text)).collect()
    };
    let texts = |texts: &[String]| texts.iter().map(|text| string_match(text)).collect();
    let accounts = |accounts: &[ServiceAccount]| accounts.iter().map(service_account).collect();
    let ranges = |ranges: &[IpNet]| ranges.iter().map(address).collect();
    let ports = |ports: &[u16]| ports.iter().copied().map(u32::from).collect();
    wire::Match {
        principals: principals(&part.principals.any_of),
        not_principals: principals(&part.principals.none_of),
        namespaces: texts(&part.namespaces.any_of),
        not_namespaces: texts(&part.namespaces.none_of),
        service_accounts: accounts(&part.service_accounts.any_of),
        not_service_accounts: accounts(&part.service_accounts.none_of),
        source_ips: ranges(&part.source_ips.any_of),
        not_source_ips: ranges(&part.source_ips.none_of),
        destination_ips: ranges(&part.destination_ips.any_of),
        not_destination_ips: ranges(&part.destination_ips.none_of),
        destination_ports: ports(&part.destination_ports.any_of),
        not_destination_ports: ports(&part.destination_ports.none_of),
        extensions: Vec::new(),
    }
}

/// `*` alone stands for any text but none, at the start or the end for any text, none included.
fn string_match(text: &str) -> StringMatch {
    let match_type = if text == "*" {
        MatchType::Presence(())
    } else if let Some(suffix) = text.strip_prefix('*') {
        MatchType::Suffix(suffix.to_owned())
    } else if let Some(prefix) = text.strip_suffix('*') {
        MatchType::Prefix(prefix.to_owned())
    } else {
        MatchType::Exact(text.to_owned())
    };
    StringMatch { match_type: Some(match_type) }
}

fn service_account(account: &ServiceAccount) -> ServiceAccountMatch {
    ServiceAccountMatch { namespace: account.namespace.clone(), service_account: account.name.clone() }
}

fn address(range: &IpNet) -> wire::Address {
    wire::Address { address: octets(range.addr()), length: range.prefix_len().into() }
}

/// A principal in the mesh's trust domain is meant in all of its aliases, too, so that identities can move from one
/// to the other. `cluster.local` is a name for the mesh's own, whatever that is.
fn in_every_trust_domain(mesh: &Mesh, principal: &str) -> Vec<String> {
    let as_it_is = || vec![principal.to_owned()];
    let Some((written, path)) = principal.split_once('/') else {
        return as_it_is();
    };
    // Anything but <trust domain>/ns/<namespace>/sa/<service account> says nothing of a trust domain.
    if written == "*" || path.split('/').count() != 4 {
        return as_it_is();
    }
    let ends_with = |domain: &str| written.strip_prefix('*').is_some_and(|suffix| domain.ends_with(suffix));
    let begins_with =
        |domain: &str| written.strip_suffix('*').is_some_and(|prefix| domain.starts_with(prefix));
    let meant = |domain: &str| written == domain || ends_with(domain) || begins_with(domain);
    let own = || std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases);
    if written != CLUSTER_LOCAL && !own().any(|domain| meant(domain)) {
        return as_it_is();
    }
    let mut principals: Vec<String> = Vec::new();
    for domain in own() {
        let named = if ends_with(domain) { principal.to_owned() } else { format!("{domain}/{path}") };
        if !principals.contains(&named) {
            principals.push(named);
        }
    }
    principals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_principal_is_meant_in_every_trust_domain_of_the_mesh() {
        let mesh = Mesh {
            trust_domain: "new-td".to_owned(),
            trust_domain_aliases: vec!["old-td".to_owned(), "other".to_owned()],
            ..Mesh::default()
        };
        let all = |principal: &str| in_every_trust_domain(&mesh, principal);
        let everywhere = ["new-td/ns/a/sa/b", "old-td/ns/a/sa/b", "other/ns/a/sa/b"];
        assert_eq!(all("old-td/ns/a/sa/b"), everywhere);
        assert_eq!(all("cluster.local/ns/a/sa/b"), everywhere);
        assert_eq!(all("new-td/ns/a/sa/*").len(), 3);
        // One that is written with a star stands for those it matches already.
        assert_eq!(all("*-td/ns/a/sa/b"), ["*-td/ns/a/sa/b", "other/ns/a/sa/b"]);
        for elsewhere in ["*", "foreign/ns/a/sa/b", "*/ns/a/sa/b", "old-td/ns/a/*", "new-td*", "sa/b"] {
            assert_eq!(all(elsewhere), [elsewhere]);
        }
    }
}
