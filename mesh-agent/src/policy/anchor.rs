//! What of a connection a rule can be found by.

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::LazyLock;

use ipnet::IpNet;

use super::matching::Facts;
use super::model::{Action, Field, Pattern, ServiceAccount, Texts, Values};

/// Random, so that nobody can write policies that fall into one list.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// A kind of value, those first that usually tell most connections apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Shape {
    Principal,
    ServiceAccount,
    SourceIp(Prefix),
    Namespace,
    DestinationPort,
    DestinationIp(Prefix),
    /// Texts that begin, or end, with so many bytes.
    PrincipalPrefix(usize),
    PrincipalSuffix(usize),
    NamespacePrefix(usize),
    NamespaceSuffix(usize),
    /// Any client with an identity.
    Identity,
    /// Any client without.
    NoIdentity,
    /// Any connection.
    Always,
}

/// A prefix length of one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Prefix {
    v6: bool,
    length: u8,
}

/// A value that a connection may have. Two values with one hash share a list, which costs a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Value {
    pub(super) shape: Shape,
    pub(super) hash: u64,
}

impl Value {
    /// What every connection has.
    pub(super) const ALWAYS: Self = Self { shape: Shape::Always, hash: 0 };

    fn new(shape: Shape, content: impl Hash) -> Self {
        Self { shape, hash: shape.hash(content) }
    }

    fn range(shape: fn(Prefix) -> Shape, range: &IpNet) -> Self {
        let prefix = Prefix { v6: range.addr().is_ipv6(), length: range.prefix_len() };
        Self::new(shape(prefix), range.network())
    }
}

impl Shape {
    fn hash(self, content: impl Hash) -> u64 {
        HASHER.hash_one((self, content))
    }

    /// The hash of the value of this kind that a connection has, if it has one.
    pub(super) fn of(self, facts: &Facts<'_>) -> Option<u64> {
        let source = facts.source.as_ref();
        let principal = || source.map(|source| source.principal.as_bytes());
        let namespace = || source.map(|source| source.identity.namespace().as_bytes());
        Some(match self {
            Self::Principal => self.hash(principal()?),
            Self::PrincipalPrefix(length) => self.hash(beginning(principal()?, length)?),
            Self::PrincipalSuffix(length) => self.hash(end(principal()?, length)?),
            Self::Namespace => self.hash(namespace()?),
            Self::NamespacePrefix(length) => self.hash(beginning(namespace()?, length)?),
            Self::NamespaceSuffix(length) => self.hash(end(namespace()?, length)?),
            Self::ServiceAccount => {
                let identity = source?.identity;
                self.hash((identity.namespace(), identity.service_account()))
            }
            Self::SourceIp(prefix) => self.hash(prefix.of(facts.source_ip)?),
            Self::DestinationIp(prefix) => self.hash(prefix.of(facts.destination_ip)?),
            Self::DestinationPort => self.hash(facts.destination_port),
            Self::Identity => source.map(|_| self.hash(()))?,
            Self::NoIdentity if source.is_some() => return None,
            Self::NoIdentity => self.hash(()),
            Self::Always => Value::ALWAYS.hash,
        })
    }
}

impl Prefix {
    /// The network of this size that an address is in.
    fn of(self, address: IpAddr) -> Option<IpAddr> {
        let range = IpNet::new(address, self.length).ok()?;
        (address.is_ipv6() == self.v6).then(|| range.network())
    }
}

fn beginning(text: &[u8], length: usize) -> Option<&[u8]> {
    text.get(..length)
}

fn end(text: &[u8], length: usize) -> Option<&[u8]> {
    text.get(text.len().checked_sub(length)?..)
}

/// Which kinds of values the texts of a field are.
struct TextShapes {
    exact: Shape,
    prefix: fn(usize) -> Shape,
    suffix: fn(usize) -> Shape,
}

const PRINCIPAL: TextShapes =
    TextShapes { exact: Shape::Principal, prefix: Shape::PrincipalPrefix, suffix: Shape::PrincipalSuffix };
const NAMESPACE: TextShapes =
    TextShapes { exact: Shape::Namespace, prefix: Shape::NamespacePrefix, suffix: Shape::NamespaceSuffix };

impl Field {
    /// Values of which a connection has to have one for the field to hold; `None` if it can hold without.
    pub(super) fn anchors(&self, action: Action) -> Option<Vec<Value>> {
        if self.negated {
            return self.negated_anchors();
        }
        Some(match &self.values {
            Values::Principals(texts) => texts.anchors(&PRINCIPAL, action)?,
            Values::Namespaces(texts) => texts.anchors(&NAMESPACE, action)?,
            Values::ServiceAccounts(accounts) => accounts.iter().map(ServiceAccount::value).collect(),
            Values::SourceIps(ranges) => {
                ranges.iter().map(|range| Value::range(Shape::SourceIp, range)).collect()
            }
            Values::DestinationIps(ranges) => {
                ranges.iter().map(|range| Value::range(Shape::DestinationIp, range)).collect()
            }
            Values::DestinationPorts(ports) => {
                ports.iter().map(|port| Value::new(Shape::DestinationPort, port)).collect()
            }
            Values::Unknown(_) if action == Action::Deny => return None,
            // It never holds.
            Values::Unknown(_) => Vec::new(),
        })
    }

    /// Of what must not be, only identity is an anchor: to have none is what STRICT denies.
    fn negated_anchors(&self) -> Option<Vec<Value>> {
        match &self.values {
            Values::Principals(texts) | Values::Namespaces(texts)
                if texts.patterns.contains(&Pattern::Presence) =>
            {
                Some(vec![Value::new(Shape::NoIdentity, ())])
            }
            _ => None,
        }
    }
}

impl ServiceAccount {
    fn value(&self) -> Value {
        Value::new(Shape::ServiceAccount, (&self.namespace, &self.name))
    }
}

impl Texts {
    fn anchors(&self, shapes: &TextShapes, action: Action) -> Option<Vec<Value>> {
        let exact = self.exact.iter().map(|text| Value::new(shapes.exact, text.as_bytes()));
        let mut values: Vec<Value> = exact.collect();
        for pattern in &self.patterns {
            values.push(match pattern {
                Pattern::Prefix(text) => Value::new((shapes.prefix)(text.len()), text.as_bytes()),
                Pattern::Suffix(text) => Value::new((shapes.suffix)(text.len()), text.as_bytes()),
                Pattern::Presence => Value::new(Shape::Identity, ()),
                Pattern::Unknown if action == Action::Deny => return None,
                Pattern::Unknown => continue,
            });
        }
        Some(values)
    }
}
