//! What policies mean, field by field; beside it the index against a plain evaluator, and damaged encodings.

use std::sync::Arc;

use bytes::Bytes;
use mesh_xds::proto::Any;
use mesh_xds::proto::mesh::PolicyOrigin;
use mesh_xds::proto::security::{
    self as wire, Authorization, Clause, Match, Rule, ServiceAccountMatch, StringMatch,
    string_match::MatchType,
};
use mesh_xds::proto::workload::Extension;

use super::*;
use crate::config::TunnelProtocol;
use crate::telemetry::ResponseFlag;

mod encoding;
mod fields;
mod generated;
mod reference;
mod updates;

fn exact(text: &str) -> StringMatch {
    StringMatch { match_type: Some(MatchType::Exact(text.to_owned())) }
}

fn prefix(text: &str) -> StringMatch {
    StringMatch { match_type: Some(MatchType::Prefix(text.to_owned())) }
}

fn suffix(text: &str) -> StringMatch {
    StringMatch { match_type: Some(MatchType::Suffix(text.to_owned())) }
}

fn presence() -> StringMatch {
    StringMatch { match_type: Some(MatchType::Presence(())) }
}

fn account(namespace: &str, name: &str) -> ServiceAccountMatch {
    ServiceAccountMatch { namespace: namespace.to_owned(), service_account: name.to_owned() }
}

fn range(text: &str) -> wire::Address {
    let net: ipnet::IpNet = text.parse().unwrap();
    let address = match net.addr() {
        IpAddr::V4(address) => Bytes::copy_from_slice(&address.octets()),
        IpAddr::V6(address) => Bytes::copy_from_slice(&address.octets()),
    };
    wire::Address { address, length: net.prefix_len().into() }
}

/// A rule of one clause of one match.
fn rule(one: Match) -> Rule {
    Rule { clauses: vec![Clause { matches: vec![one] }] }
}

/// A policy of namespace `shop`.
fn authorization(name: &str, action: wire::Action, rules: Vec<Rule>) -> Authorization {
    Authorization {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        scope: wire::Scope::Namespace.into(),
        action: action.into(),
        rules,
        ..Default::default()
    }
}

fn compiled(message: &Authorization) -> Arc<Policy> {
    let name = format!("{}/{}", message.namespace, message.name);
    Arc::new(read(&name, &Any::pack(message), &mut Strings::default()).unwrap())
}

fn store(messages: &[Authorization]) -> PolicyStore {
    let mut store = PolicyStore::default();
    messages.iter().for_each(|message| store.insert(compiled(message)));
    store
}

fn workload(namespace: &str, policies: &[&str]) -> Workload {
    Workload {
        uid: "c//Pod/shop/web".into(),
        addresses: vec![[10, 0, 0, 1].into()].into(),
        node: "n1".into(),
        healthy: true,
        terminating: false,
        locality: Default::default(),
        own_name: None,
        load: Default::default(),
        template: Arc::new(crate::config::Template {
            namespace: namespace.into(),
            service_account: "default".into(),
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
            authorization_policies: policies.iter().map(|name| (*name).into()).collect(),
            mutual_tls: Default::default(),
            redirection: Default::default(),
            failure_mode: None,
        }),
    }
}

/// A connection to a workload of namespace `shop` at `10.0.0.1:80`.
fn request<'a>(source: Option<&'a Identity>, source_ip: &str, workload: &'a Workload) -> Request<'a> {
    Request {
        source,
        source_ip: source_ip.parse().unwrap(),
        destination: "10.0.0.1:80".parse().unwrap(),
        workload,
    }
}

fn client() -> Identity {
    Identity::new("cluster.local", "web", "shopper")
}
