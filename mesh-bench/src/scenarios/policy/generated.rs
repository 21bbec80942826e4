//! The policies that are checked, and whom they are for.

use std::sync::Arc;

use anyhow::{Context, Result};
use mesh_agent::config::{TunnelProtocol, Workload};
use mesh_agent::policy::{Policy, Strings, read};
use mesh_xds::identity::Identity;
use mesh_xds::proto::Any;
use mesh_xds::proto::security::{
    Action, Address, Authorization, Clause, Match, Rule, Scope, StringMatch, string_match::MatchType,
};

/// Rules of a policy.
pub(super) const RULES: usize = 10;

/// The port of a policy's first rule; each has its own.
pub(super) const fn first_port() -> u16 {
    1_000
}

/// Whom a rule of a policy is for.
pub(super) fn client(policy: usize, rule: usize) -> Identity {
    Identity::new("cluster.local", format!("team{policy}"), format!("client{rule}"))
}

/// Rules of four kinds, so that no single lookup finds them all.
pub(super) fn policy(number: usize, action: Action, strings: &mut Strings) -> Result<Arc<Policy>> {
    let mut rules = Vec::with_capacity(RULES);
    for index in 0..RULES {
        let to = Match {
            destination_ports: vec![u32::from(first_port()) + u32::try_from(index)?],
            ..Match::default()
        };
        let matches = [from(number, index)?, to];
        rules.push(Rule { clauses: matches.map(|one| Clause { matches: vec![one] }).into() });
    }
    let message = Authorization {
        name: format!("p{number}"),
        namespace: "shop".to_owned(),
        scope: Scope::Namespace.into(),
        action: action.into(),
        rules,
        ..Authorization::default()
    };
    let read = read(&format!("shop/p{number}"), &Any::pack(&message), strings);
    Ok(Arc::new(read.context("a generated policy")?))
}

/// The condition on the client of a rule.
fn from(policy: usize, rule: usize) -> Result<Match> {
    let text = |match_type| vec![StringMatch { match_type: Some(match_type) }];
    let client = client(policy, rule);
    Ok(match rule % 5 {
        1 => Match {
            principals: text(MatchType::Prefix(format!("{}-", client.principal()))),
            ..Match::default()
        },
        2 => {
            let [high, low] = u16::try_from(policy)?.to_be_bytes();
            let address = vec![172, high, low, u8::try_from(rule)?].into();
            Match { source_ips: vec![Address { address, length: 32 }], ..Match::default() }
        }
        3 => Match {
            namespaces: text(MatchType::Exact(client.namespace().to_string())),
            not_principals: text(MatchType::Suffix("/sa/admin".to_owned())),
            ..Match::default()
        },
        _ => Match { principals: text(MatchType::Exact(client.principal())), ..Match::default() },
    })
}

/// The pod that the policies are for.
pub(super) fn workload() -> Workload {
    Workload {
        uid: "c//Pod/shop/web".into(),
        addresses: vec![[10, 0, 0, 1].into()].into(),
        node: "n1".into(),
        healthy: true,
        terminating: false,
        locality: Default::default(),
        own_name: None,
        load: Default::default(),
        template: Arc::new(mesh_agent::config::Template {
            namespace: "shop".into(),
            service_account: "web".into(),
            trust_domain: "cluster.local".into(),
            hostname: "".into(),
            network: "".into(),
            cluster: "c".into(),
            host_network: false,
            canonical_name: "web".into(),
            canonical_revision: "latest".into(),
            workload_name: "web".into(),
            tunnel: TunnelProtocol::Hbone,
            waypoint: None,
            network_gateway: None,
            weight: 1,
            services: vec![],
            authorization_policies: vec![],
            mutual_tls: Default::default(),
            redirection: Default::default(),
            failure_mode: None,
        }),
    }
}
