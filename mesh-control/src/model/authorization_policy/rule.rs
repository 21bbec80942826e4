//! The rules of an authorization policy.
//!
//! A rule that looks at what only HTTP has cannot be decided by an agent. In an ALLOW it can never be satisfied and
//! is left out; in a DENY that part of it counts as satisfied. Both ways refuse more than what is written, never less.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use super::Action;
use crate::model::findings::{FieldPath, Findings, field};
use crate::model::metadata::is_subdomain;

/// A rule: all of its clauses have to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its position in the policy, from 0.
    pub position: usize,
    /// The clauses; without any it always matches.
    pub clauses: Vec<Clause>,
}

/// One of a rule's `from`, `to` and `when` parts: one of its matches has to hold. None of them is empty.
pub type Clause = Vec<Match>;

/// Conditions on a connection, all of which have to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Match {
    /// Identities of the client without `spiffe://`; `*` at the start or the end stands for anything, alone for
    /// something.
    pub principals: Values<String>,
    /// Namespaces of the client, with `*` as above.
    pub namespaces: Values<String>,
    /// Service accounts of the client.
    pub service_accounts: Values<ServiceAccount>,
    /// Addresses of the client.
    pub source_ips: Values<IpNet>,
    /// Addresses of the server.
    pub destination_ips: Values<IpNet>,
    /// Ports of the server.
    pub destination_ports: Values<u16>,
}

/// Values that an attribute may have; no condition if both are empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Values<T> {
    /// It has to have one of these, if there are any.
    pub any_of: Vec<T>,
    /// It must have none of these.
    pub none_of: Vec<T>,
}

impl<T> Default for Values<T> {
    fn default() -> Self {
        Self { any_of: Vec::new(), none_of: Vec::new() }
    }
}

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A rule as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct RuleSpec {
    from: Option<Vec<FromSpec>>,
    to: Option<Vec<ToSpec>>,
    when: Vec<ConditionSpec>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct FromSpec {
    source: SourceSpec,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SourceSpec {
    principals: Vec<String>,
    not_principals: Vec<String>,
    request_principals: Vec<String>,
    not_request_principals: Vec<String>,
    namespaces: Vec<String>,
    not_namespaces: Vec<String>,
    ip_blocks: Vec<String>,
    not_ip_blocks: Vec<String>,
    remote_ip_blocks: Vec<String>,
    not_remote_ip_blocks: Vec<String>,
    service_accounts: Vec<String>,
    not_service_accounts: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ToSpec {
    operation: OperationSpec,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct OperationSpec {
    ports: Vec<String>,
    not_ports: Vec<String>,
    hosts: Vec<String>,
    not_hosts: Vec<String>,
    methods: Vec<String>,
    not_methods: Vec<String>,
    paths: Vec<String>,
    not_paths: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ConditionSpec {
    key: String,
    values: Vec<String>,
    not_values: Vec<String>,
}

/// Reads the rules of one policy.
pub(super) struct RuleReader<'a> {
    /// Namespace of the policy, and of service accounts that name none.
    pub(super) namespace: &'a str,
    pub(super) action: Action,
    pub(super) findings: &'a mut Findings,
}

impl RuleReader<'_> {
    /// Reads the rule at `position`; `None` if it can never match.
    pub(super) fn read(&mut self, position: usize, spec: RuleSpec) -> Option<Rule> {
        let place = field!["spec", "rules", position];
        let mut needs_http = false;
        let mut clauses = Vec::new();
        if let Some(from) = spec.from {
            let place = place.clone().then("from");
            self.not_empty(from.len(), &place);
            let read = from.into_iter().enumerate().map(|(index, from)| {
                let place = place.clone().then(index).then("source");
                needs_http |= self.source_needs_http(&from.source, &place);
                self.source(from.source, &place)
            });
            clauses.push(read.collect());
        }
        if let Some(to) = spec.to {
            let place = place.clone().then("to");
            self.not_empty(to.len(), &place);
            let read = to.into_iter().enumerate().map(|(index, to)| {
                let place = place.clone().then(index).then("operation");
                needs_http |= self.operation_needs_http(&to.operation, &place);
                self.operation(to.operation, &place)
            });
            clauses.push(read.collect());
        }
        for (index, condition) in spec.when.into_iter().enumerate() {
            let place = place.clone().then("when").then(index);
            let Some(read) = self.condition(condition, &place) else {
                needs_http = true;
                continue;
            };
            clauses.push(vec![read]);
        }
        // What is left empty held a part that counts as satisfied: the clause always holds.
        clauses.retain(|clause: &Clause| clause.iter().all(|part| *part != Match::default()));
        (self.action == Action::Deny || !needs_http).then_some(Rule { position, clauses })
    }

    fn source(&mut self, spec: SourceSpec, place: &FieldPath) -> Match {
        if spec == SourceSpec::default() {
            self.findings.refuse(place.clone(), "a source needs at least one condition");
        }
        let named = !spec.service_accounts.is_empty() || !spec.not_service_accounts.is_empty();
        let otherwise = [&spec.principals, &spec.not_principals, &spec.namespaces, &spec.not_namespaces];
        if named && otherwise.iter().any(|values| !values.is_empty()) {
            let reason = "serviceAccounts cannot stand beside principals or namespaces: use one or the other";
            self.findings.refuse(place.clone(), reason);
        }
        let at = |field: &str| place.clone().then(field);
        Match {
            principals: Values {
                any_of: self.principals(spec.principals, &at("principals")),
                none_of: self.principals(spec.not_principals, &at("notPrincipals")),
            },
            namespaces: Values {
                any_of: self.texts(spec.namespaces, &at("namespaces")),
                none_of: self.texts(spec.not_namespaces, &at("notNamespaces")),
            },
            service_accounts: Values {
                any_of: self.service_accounts(&spec.service_accounts, &at("serviceAccounts")),
                none_of: self.service_accounts(&spec.not_service_accounts, &at("notServiceAccounts")),
            },
            source_ips: Values {
                any_of: self.ranges(&spec.ip_blocks, &at("ipBlocks")),
                none_of: self.ranges(&spec.not_ip_blocks, &at("notIpBlocks")),
            },
            ..Match::default()
        }
    }

    fn source_needs_http(&mut self, spec: &SourceSpec, place: &FieldPath) -> bool {
        let fields = [
            ("requestPrincipals", &spec.request_principals),
            ("notRequestPrincipals", &spec.not_request_principals),
            ("remoteIpBlocks", &spec.remote_ip_blocks),
            ("notRemoteIpBlocks", &spec.not_remote_ip_blocks),
        ];
        self.any_needs_http(&fields, place)
    }

    fn operation(&mut self, spec: OperationSpec, place: &FieldPath) -> Match {
        if spec == OperationSpec::default() {
            self.findings.refuse(place.clone(), "an operation needs at least one condition");
        }
        Match {
            destination_ports: Values {
                any_of: self.ports(&spec.ports, &place.clone().then("ports")),
                none_of: self.ports(&spec.not_ports, &place.clone().then("notPorts")),
            },
            ..Match::default()
        }
    }

    fn operation_needs_http(&mut self, spec: &OperationSpec, place: &FieldPath) -> bool {
        let fields = [
            ("hosts", &spec.hosts),
            ("notHosts", &spec.not_hosts),
            ("methods", &spec.methods),
            ("notMethods", &spec.not_methods),
            ("paths", &spec.paths),
            ("notPaths", &spec.not_paths),
        ];
        self.any_needs_http(&fields, place)
    }

    /// `None` if it looks at an attribute that only HTTP has, or that nobody knows.
    fn condition(&mut self, spec: ConditionSpec, place: &FieldPath) -> Option<Match> {
        if spec.key.is_empty() {
            self.findings.refuse(place.clone().then("key"), "a condition needs the name of an attribute");
        }
        if spec.values.is_empty() && spec.not_values.is_empty() {
            self.findings.refuse(place.clone(), "a condition needs values or notValues");
        }
        let (values, none) = (place.clone().then("values"), place.clone().then("notValues"));
        let mut part = Match::default();
        match spec.key.as_str() {
            "source.principal" => {
                part.principals.any_of = self.principals(spec.values, &values);
                part.principals.none_of = self.principals(spec.not_values, &none);
            }
            "source.namespace" => {
                part.namespaces.any_of = self.texts(spec.values, &values);
                part.namespaces.none_of = self.texts(spec.not_values, &none);
            }
            "source.serviceAccount" => {
                part.service_accounts.any_of = self.service_accounts(&spec.values, &values);
                part.service_accounts.none_of = self.service_accounts(&spec.not_values, &none);
            }
            "source.ip" => {
                part.source_ips.any_of = self.ranges(&spec.values, &values);
                part.source_ips.none_of = self.ranges(&spec.not_values, &none);
            }
            "destination.ip" => {
                part.destination_ips.any_of = self.ranges(&spec.values, &values);
                part.destination_ips.none_of = self.ranges(&spec.not_values, &none);
            }
            "destination.port" => {
                part.destination_ports.any_of = self.ports(&spec.values, &values);
                part.destination_ports.none_of = self.ports(&spec.not_values, &none);
            }
            key => {
                self.needs_http(place.clone().then("key"), key);
                return None;
            }
        }
        Some(part)
    }

    fn any_needs_http(&mut self, fields: &[(&str, &Vec<String>)], place: &FieldPath) -> bool {
        let set = fields.iter().filter(|(_, values)| !values.is_empty());
        set.map(|(field, _)| self.needs_http(place.clone().then(*field), field)).count() > 0
    }

    fn needs_http(&mut self, place: FieldPath, attribute: &str) {
        let effect = match self.action {
            Action::Allow => "can never match and is left out",
            Action::Deny => "denies as if this part of it matched, which is more than is written",
        };
        self.findings
            .warn(place, format!("{attribute} cannot be told without reading HTTP: the rule {effect}"));
    }

    fn not_empty(&mut self, length: usize, place: &FieldPath) {
        if length == 0 {
            self.findings.refuse(place.clone(), "must not be an empty list: leave it out");
        }
    }

    fn principals(&mut self, values: Vec<String>, place: &FieldPath) -> Vec<String> {
        for (index, text) in values.iter().enumerate() {
            if let Some(principal) = text.strip_prefix("spiffe://") {
                let reason = format!("matches nobody: write it without spiffe://, {principal:?}");
                self.findings.warn(place.clone().then(index), reason);
            }
        }
        self.texts(values, place)
    }

    fn texts(&mut self, values: Vec<String>, place: &FieldPath) -> Vec<String> {
        for (index, text) in values.iter().enumerate() {
            let inner = text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(text);
            if text.is_empty() {
                self.findings.refuse(place.clone().then(index), "must not be empty");
            } else if inner.contains('*') {
                let reason =
                    "matches nobody: '*' stands for anything at the start or at the end only, not both";
                self.findings.warn(place.clone().then(index), reason);
            }
        }
        values
    }

    fn service_accounts(&mut self, values: &[String], place: &FieldPath) -> Vec<ServiceAccount> {
        self.each(values, place, "[namespace/]service-account without '*'", |text, own| {
            let (namespace, name) = text.split_once('/').unwrap_or((own, text));
            (is_subdomain(namespace) && is_subdomain(name))
                .then(|| ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() })
        })
    }

    fn ranges(&mut self, values: &[String], place: &FieldPath) -> Vec<IpNet> {
        self.each(values, place, "an address or a range such as 10.0.0.0/8 or fd00::/8", |text, _| {
            let range = text.parse::<IpNet>().map(|range| range.trunc());
            range.or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()
        })
    }

    fn ports(&mut self, values: &[String], place: &FieldPath) -> Vec<u16> {
        self.each(values, place, "a port between 1 and 65535", |text, _| {
            text.parse().ok().filter(|port| *port != 0)
        })
    }

    /// Reads each value; one that cannot be read is refused, since without it the rule would say something else.
    fn each<T>(
        &mut self,
        values: &[String],
        place: &FieldPath,
        expected: &str,
        read: impl Fn(&str, &str) -> Option<T>,
    ) -> Vec<T> {
        let mut items = Vec::with_capacity(values.len());
        for (index, text) in values.iter().enumerate() {
            match read(text, self.namespace) {
                Some(item) => items.push(item),
                None => self
                    .findings
                    .refuse(place.clone().then(index), format!("expected {expected}, found {text:?}")),
            }
        }
        items
    }
}
