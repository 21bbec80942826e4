//! From the wire to [`Policy`].
//!
//! What cannot be read is refused, so that the last good version stays. What can be read and is not understood is kept
//! as such: it has a meaning, and the last good version has another ([`super`] says how it is treated).

use ipnet::IpNet;
use mesh_xds::proto::security::{
    self as wire, Authorization, ServiceAccountMatch, StringMatch, string_match::MatchType,
};
use mesh_xds::proto::{Any, Name, UnpackError, mesh::PolicyOrigin};

use super::model::{
    Action, Clause, Field, Match, Origin, Pattern, Policy, Rule, Scope, ServiceAccount, Texts, Values,
};
use super::strings::Strings;
use super::wire::Message;

/// istiod's names for what it makes of PeerAuthentications
/// (istio/istio `pilot/pkg/serviceregistry/kube/controller/ambient/authorization.go`).
const CONVERTED: &str = "converted_peer_authentication_";
const CONVERTED_STRICT: &str = "istio_converted_static_strict";

/// Why a policy cannot be read. The last good version of it stays.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidPolicy {
    /// There are no bytes.
    #[error("it is empty")]
    Empty,
    /// The policy, or one of our own extensions of it, is damaged.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The encoding breaks off within a rule.
    #[error("rules: the encoding is damaged")]
    Damaged,
    /// The resource is called other than what it holds.
    #[error("the resource is named {name:?} but holds {holds:?}")]
    WrongName {
        /// Resource name.
        name: String,
        /// Name by content.
        holds: String,
    },
    /// Not an address range.
    #[error("rules[{rule}]: {field}: an address of {bytes} bytes with a prefix of {length} bits is no range")]
    Range {
        /// Position of the rule, from 0.
        rule: usize,
        /// Name of the field.
        field: &'static str,
        /// Length of the address.
        bytes: usize,
        /// Prefix length.
        length: u32,
    },
    /// Not a port.
    #[error("rules[{rule}]: {field}: {port} is not a port")]
    Port {
        /// Position of the rule, from 0.
        rule: usize,
        /// Name of the field.
        field: &'static str,
        /// Number found.
        port: u32,
    },
}

/// Reads the policy called `name`.
///
/// # Errors
/// Says what cannot be read.
pub fn read(name: &str, body: &Any, strings: &mut Strings) -> Result<Policy, InvalidPolicy> {
    let message = body.unpack::<Authorization>()?;
    let holds = format!("{}/{}", message.namespace, message.name);
    if holds != name {
        return Err(InvalidPolicy::WrongName { name: name.to_owned(), holds });
    }
    let encoded = Message::parse(&body.value).ok_or(InvalidPolicy::Damaged)?;
    let origin = message.origin()?;
    let stated = origin.as_ref().map(|origin| origin.unusable.as_str()).filter(|reason| !reason.is_empty());
    let unusable = stated.map(Into::into).or_else(|| not_understood(&message, &encoded));
    let mut reader = Reader { strings, rule: 0 };
    let mut rules = Vec::with_capacity(message.rules.len());
    for (index, (rule, encoded)) in message.rules.iter().zip(encoded.all(5)).enumerate() {
        reader.rule = index;
        rules.push(reader.rule(rule, encoded)?);
    }
    Ok(Policy {
        origin: origin_of(origin, &message.namespace, &message.name, reader.strings),
        name: reader.strings.share(name),
        namespace: reader.strings.share(&message.namespace),
        scope: scope(message.scope).unwrap_or(Scope::Namespace),
        action: match wire::Action::try_from(message.action) {
            Ok(wire::Action::Allow) if unusable.is_none() => Action::Allow,
            _ => Action::Deny,
        },
        dry_run: message.dry_run,
        rules: rules.into(),
        unusable,
    })
}

/// Stands for a policy that cannot be read and has no last good version: denies its scope as far as that can be read,
/// or else its namespace.
pub(crate) fn unusable(name: &str, body: Option<&Any>, reason: &str, strings: &mut Strings) -> Policy {
    let message = body.and_then(|body| body.unpack::<Authorization>().ok()).unwrap_or_default();
    let readable = !message.name.is_empty();
    // What the resource is called is what workloads name and what takes it away again.
    let (namespace, short) = name.split_once('/').unwrap_or(("", name));
    let origin = message.origin().ok().flatten();
    Policy {
        name: strings.share(name),
        namespace: strings.share(namespace),
        scope: match scope(message.scope) {
            Some(scope) if readable => scope,
            // Not even a namespace is known.
            _ if namespace.is_empty() => Scope::Global,
            _ => Scope::Namespace,
        },
        action: Action::Deny,
        dry_run: message.dry_run,
        origin: origin_of(origin, namespace, short, strings),
        unusable: Some(reason.into()),
        rules: Box::default(),
    }
}

/// Says what of a policy as a whole this agent does not understand.
fn not_understood(message: &Authorization, encoded: &Message<'_>) -> Option<Box<str>> {
    if wire::Action::try_from(message.action).is_err() {
        return Some(format!("action {} is unknown to this agent", message.action).into());
    }
    if scope(message.scope).is_none() {
        return Some(format!("scope {} is unknown to this agent", message.scope).into());
    }
    if let Some(field) = encoded.unknown(1..=7) {
        return Some(format!("field {field} is unknown to this agent").into());
    }
    let types = message.extensions.iter().map(|extension| match &extension.config {
        Some(config) => config.type_url.as_str(),
        None => extension.name.as_str(),
    });
    let unknown = types.into_iter().find(|url| *url != PolicyOrigin::type_url())?;
    Some(format!("extension {unknown:?} is unknown to this agent").into())
}

fn scope(value: i32) -> Option<Scope> {
    Some(match wire::Scope::try_from(value).ok()? {
        wire::Scope::Global => Scope::Global,
        wire::Scope::Namespace => Scope::Namespace,
        wire::Scope::WorkloadSelector => Scope::Workload,
    })
}

fn origin_of(stated: Option<PolicyOrigin>, namespace: &str, name: &str, strings: &mut Strings) -> Origin {
    if let Some(origin) = stated {
        return Origin {
            kind: strings.share(&origin.kind),
            namespace: strings.share(&origin.namespace),
            name: strings.share(&origin.name),
            rules: origin.rules.into(),
        };
    }
    let converted = name.strip_prefix(CONVERTED);
    let kind = match converted {
        None if name != CONVERTED_STRICT => Origin::AUTHORIZATION_POLICY,
        _ => Origin::PEER_AUTHENTICATION,
    };
    Origin {
        kind: strings.share(kind),
        namespace: strings.share(namespace),
        name: strings.share(converted.unwrap_or(name)),
        rules: Box::default(),
    }
}

/// Reads rules; the encoding beside each message shows what the message does not have a field for.
struct Reader<'a> {
    strings: &'a mut Strings,
    /// Position of the rule being read, for errors.
    rule: usize,
}

impl Reader<'_> {
    fn rule(&mut self, message: &wire::Rule, encoded: &[u8]) -> Result<Rule, InvalidPolicy> {
        let encoded = Message::parse(encoded).ok_or(InvalidPolicy::Damaged)?;
        let mut clauses = Vec::with_capacity(message.clauses.len());
        for (clause, encoded) in message.clauses.iter().zip(encoded.all(1)) {
            clauses.push(self.clause(clause, encoded)?);
        }
        if let Some(field) = encoded.unknown(1..=1) {
            clauses.push(Clause { matches: [unknown(format!("field {field} of the rule"))].into() });
        }
        Ok(Rule { clauses: clauses.into() })
    }

    fn clause(&mut self, message: &wire::Clause, encoded: &[u8]) -> Result<Clause, InvalidPolicy> {
        let encoded = Message::parse(encoded).ok_or(InvalidPolicy::Damaged)?;
        if let Some(field) = encoded.unknown(2..=2) {
            // It could be anything: an alternative, or a condition on all of them.
            return Ok(Clause { matches: [unknown(format!("field {field} of the clause"))].into() });
        }
        let each = message.matches.iter().zip(encoded.all(2));
        let matches = each.map(|(one, encoded)| self.one_match(one, encoded)).collect::<Result<_, _>>()?;
        Ok(Clause { matches })
    }

    fn one_match(&mut self, message: &wire::Match, encoded: &[u8]) -> Result<Match, InvalidPolicy> {
        let encoded = Message::parse(encoded).ok_or(InvalidPolicy::Damaged)?;
        for (field, content) in encoded.fields() {
            let known = match field {
                1..=4 => 1..=4,
                5..=8 | 11..=12 => 1..=2,
                _ => continue,
            };
            let content = Message::parse(content).ok_or(InvalidPolicy::Damaged)?;
            if let Some(inner) = content.unknown(known) {
                // Its value is not what it seems to be.
                return Ok(unknown(format!("field {inner} of field {field}")));
            }
        }
        let mut fields = Vec::new();
        let mut add = |negated, set: bool, values| {
            if set {
                fields.push(Field { negated, values });
            }
        };
        let m = message;
        for (negated, texts) in [(false, &m.principals), (true, &m.not_principals)] {
            add(negated, !texts.is_empty(), Values::Principals(self.texts(texts)));
        }
        for (negated, texts) in [(false, &m.namespaces), (true, &m.not_namespaces)] {
            add(negated, !texts.is_empty(), Values::Namespaces(self.texts(texts)));
        }
        for (negated, accounts) in [(false, &m.service_accounts), (true, &m.not_service_accounts)] {
            add(negated, !accounts.is_empty(), Values::ServiceAccounts(self.accounts(accounts)));
        }
        for (negated, name, ranges) in
            [(false, "source_ips", &m.source_ips), (true, "not_source_ips", &m.not_source_ips)]
        {
            add(negated, !ranges.is_empty(), Values::SourceIps(self.ranges(name, ranges)?));
        }
        for (negated, name, ranges) in [
            (false, "destination_ips", &m.destination_ips),
            (true, "not_destination_ips", &m.not_destination_ips),
        ] {
            add(negated, !ranges.is_empty(), Values::DestinationIps(self.ranges(name, ranges)?));
        }
        for (negated, name, ports) in [
            (false, "destination_ports", &m.destination_ports),
            (true, "not_destination_ports", &m.not_destination_ports),
        ] {
            add(negated, !ports.is_empty(), Values::DestinationPorts(self.ports(name, ports)?));
        }
        for extension in &m.extensions {
            let name = extension.config.as_ref().map_or(&extension.name, |config| &config.type_url);
            add(false, true, Values::Unknown(format!("extension {name:?}").into()));
        }
        if let Some(field) = encoded.unknown(1..=13) {
            add(false, true, Values::Unknown(format!("field {field}").into()));
        }
        Ok(Match { fields: fields.into() })
    }

    fn texts(&mut self, messages: &[StringMatch]) -> Texts {
        let (mut exact, mut patterns) = (Vec::new(), Vec::new());
        for message in messages {
            match &message.match_type {
                Some(MatchType::Exact(text)) => exact.push(self.strings.share(text)),
                Some(MatchType::Prefix(text)) => patterns.push(Pattern::Prefix(self.strings.share(text))),
                Some(MatchType::Suffix(text)) => patterns.push(Pattern::Suffix(self.strings.share(text))),
                Some(MatchType::Presence(())) => patterns.push(Pattern::Presence),
                None => patterns.push(Pattern::Unknown),
            }
        }
        exact.sort_unstable();
        exact.dedup();
        Texts { exact: exact.into(), patterns: patterns.into() }
    }

    fn accounts(&mut self, messages: &[ServiceAccountMatch]) -> Box<[ServiceAccount]> {
        let account = |message: &ServiceAccountMatch| ServiceAccount {
            namespace: self.strings.share(&message.namespace),
            name: self.strings.share(&message.service_account),
        };
        messages.iter().map(account).collect()
    }

    fn ranges(&self, field: &'static str, messages: &[wire::Address]) -> Result<Box<[IpNet]>, InvalidPolicy> {
        let range = |message: &wire::Address| {
            range(message).ok_or(InvalidPolicy::Range {
                rule: self.rule,
                field,
                bytes: message.address.len(),
                length: message.length,
            })
        };
        messages.iter().map(range).collect()
    }

    fn ports(&self, field: &'static str, numbers: &[u32]) -> Result<Box<[u16]>, InvalidPolicy> {
        let port = |port: &u32| {
            u16::try_from(*port).map_err(|_| InvalidPolicy::Port { rule: self.rule, field, port: *port })
        };
        let mut ports = numbers.iter().map(port).collect::<Result<Vec<_>, _>>()?;
        ports.sort_unstable();
        ports.dedup();
        Ok(ports.into())
    }
}

fn unknown(what: String) -> Match {
    Match { fields: [Field { negated: false, values: Values::Unknown(what.into()) }].into() }
}

fn range(message: &wire::Address) -> Option<IpNet> {
    let length = u8::try_from(message.length).ok()?;
    let range = if let Ok(octets) = <[u8; 4]>::try_from(&*message.address) {
        IpNet::new(octets.into(), length).ok()?
    } else {
        let octets = <[u8; 16]>::try_from(&*message.address).ok()?;
        IpNet::new(octets.into(), length).ok()?
    };
    Some(range.trunc())
}
