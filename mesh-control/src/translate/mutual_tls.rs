//! Which ports of a workload take mutual TLS, as the PeerAuthentications for it say together.
//!
//! The narrowest policy that says something counts: port, workload, namespace, mesh; of several of the same width the
//! oldest. Agents are told twice: as settings of the workload, and, where plain text is refused, as an authorization
//! policy that denies clients without an identity, which is what ztunnel understands.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_xds::proto::mesh::mutual_tls::{Mode, PortMode};
use mesh_xds::proto::mesh::{MutualTls, PolicyOrigin};
use mesh_xds::proto::security::string_match::MatchType;
use mesh_xds::proto::security::{Action, Authorization, Clause, Match, Rule, Scope, StringMatch};
use mesh_xds::proto::workload::Workload;

use super::policies::Policies;
use crate::model::{Kind, Labels, MutualTlsMode, ObjectName, PeerAuthentication};

/// Begins the name of the authorization policy of a PeerAuthentication, as istiod has it. No name in Kubernetes has
/// a '_', so no AuthorizationPolicy can be called the same.
const CONVERTED: &str = "converted_peer_authentication_";

/// What the ports of a workload take.
#[derive(Debug)]
struct Effective<'a> {
    mode: MutualTlsMode,
    /// Ports that differ.
    ports: BTreeMap<u16, MutualTlsMode>,
    /// The policy that says so.
    by: Option<&'a PeerAuthentication>,
}

impl<'a> Effective<'a> {
    /// What the policies for the whole mesh and the whole namespace say.
    fn inherited(policies: &'a Policies, namespace: &Arc<str>) -> Self {
        let mesh = policies.mesh_peer();
        let own = policies.wide_peer(namespace).filter(|policy| policy.mode.is_some());
        let by = own.or(mesh);
        let mode = by.and_then(|policy| policy.mode).unwrap_or(MutualTlsMode::Permissive);
        Self { mode, ports: BTreeMap::new(), by }
    }

    /// What a policy for some workloads makes of it.
    fn with(self, policy: &'a PeerAuthentication) -> Self {
        let mode = policy.mode.unwrap_or(self.mode);
        let ports: BTreeMap<_, _> =
            policy.ports.iter().map(|(port, of)| (*port, *of)).filter(|(_, of)| *of != mode).collect();
        let says_nothing = policy.mode.is_none() && ports.is_empty();
        Self { mode, ports, by: if says_nothing { self.by } else { Some(policy) } }
    }

    fn of(policies: &'a Policies, namespace: &Arc<str>, labels: &Labels) -> Self {
        let inherited = Self::inherited(policies, namespace);
        match policies.selecting_peer(namespace, labels) {
            Some(policy) => inherited.with(policy),
            None => inherited,
        }
    }

    /// The condition under which a client is refused, if there is one: it has no identity and asks for a port that
    /// is STRICT.
    fn refusal(&self) -> Option<Match> {
        let ports = |which: &dyn Fn(MutualTlsMode) -> bool| -> Vec<u32> {
            self.ports.iter().filter(|(_, mode)| which(**mode)).map(|(port, _)| (*port).into()).collect()
        };
        let anybody = StringMatch { match_type: Some(MatchType::Presence(())) };
        let nobody = Match { not_principals: vec![anybody], ..Match::default() };
        if self.mode == MutualTlsMode::Strict {
            let open = ports(&|mode| mode != MutualTlsMode::Strict);
            return Some(Match { not_destination_ports: open, ..nobody });
        }
        let strict = ports(&|mode| mode == MutualTlsMode::Strict);
        (!strict.is_empty()).then_some(Match { destination_ports: strict, ..nobody })
    }
}

/// Tells a workload what its ports take, and names the policies that are for it by their selector.
pub(super) fn attach(policies: &Policies, namespace: &Arc<str>, labels: &Labels, workload: &mut Workload) {
    let effective = Effective::of(policies, namespace, labels);
    let mut named: Vec<String> =
        policies.selecting(namespace, labels).into_iter().map(ObjectName::to_string).collect();
    if let Some(policy) = effective.by.filter(|_| effective.refusal().is_some()) {
        named.push(format!("{}/{CONVERTED}{}", policy.name.namespace, policy.name.name));
    }
    named.sort_unstable();
    workload.authorization_policies = named;
    if effective.mode != MutualTlsMode::Permissive || !effective.ports.is_empty() {
        workload.set_mutual_tls(&MutualTls {
            mode: wire(effective.mode).into(),
            ports: effective
                .ports
                .iter()
                .map(|(port, mode)| PortMode { port: (*port).into(), mode: wire(*mode).into() })
                .collect(),
            policy: effective.by.map(|policy| policy.name.to_string()).unwrap_or_default(),
        });
    }
}

/// The authorization policy of a PeerAuthentication; `None` if it refuses no plain text.
pub(super) fn authorization(policies: &Policies, policy: &PeerAuthentication) -> Option<Authorization> {
    let name = &policy.name;
    let effective = match &policy.selector {
        Some(_) if policies.is_root(&name.namespace) => return None,
        Some(_) => Effective::inherited(policies, &name.namespace).with(policy),
        None => Effective { mode: policy.mode?, ports: BTreeMap::new(), by: Some(policy) },
    };
    if effective.by.is_none_or(|by| by.name != *name) {
        return None;
    }
    let clause = Clause { matches: vec![effective.refusal()?] };
    let mut authorization = Authorization {
        name: format!("{CONVERTED}{}", name.name),
        namespace: name.namespace.to_string(),
        scope: Scope::WorkloadSelector.into(),
        action: Action::Deny.into(),
        rules: vec![Rule { clauses: vec![clause] }],
        ..Authorization::default()
    };
    authorization.set_origin(&PolicyOrigin {
        kind: Kind::PeerAuthentication.name().to_owned(),
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        ..PolicyOrigin::default()
    });
    Some(authorization)
}

fn wire(mode: MutualTlsMode) -> Mode {
    match mode {
        MutualTlsMode::Permissive => Mode::Permissive,
        MutualTlsMode::Strict => Mode::Strict,
        MutualTlsMode::Disable => Mode::Disable,
    }
}
