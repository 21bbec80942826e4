//! Policies in the words of the API.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_xds::identity::Identity;

use super::api::{AuthorizationInfo, PodPolicies, PolicyCheck, PolicyInfo, RuleCheck};
use super::state::AdminState;
use crate::config::{MutualTls, MutualTlsMode, Snapshot, Workload};
use crate::pods::LocalPod;
use crate::policy::{Condition, PolicySummary, Request, RuleOutcome, Scope};

impl AdminState {
    /// The policies of every enrolled pod, or of those of a name (`name` or `namespace/name`).
    pub(super) fn pod_policies(&self, name: Option<&str>) -> Vec<PodPolicies> {
        let mesh = self.mesh.load();
        let pods = self.pods.load();
        let mut enrolled: Vec<_> = pods.iter().filter(|pod| pod.enrolled && is_named(pod, name)).collect();
        enrolled.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
        enrolled.into_iter().filter_map(|pod| Some(of_pod(&mesh, mesh.workload(&pod.uid)?))).collect()
    }
}

fn is_named(pod: &LocalPod, name: Option<&str>) -> bool {
    match name.map(|name| name.split_once('/').unwrap_or(("", name))) {
        None => true,
        Some((namespace, name)) => {
            *pod.name == *name && (namespace.is_empty() || *pod.namespace == *namespace)
        }
    }
}

fn of_pod(mesh: &Snapshot, workload: &Workload) -> PodPolicies {
    PodPolicies {
        namespace: workload.namespace.to_string(),
        name: workload.name().to_owned(),
        mutual_tls: mutual_tls(&workload.mutual_tls),
        policies: mesh.policies().listing(workload).iter().map(describe).collect(),
    }
}

fn mutual_tls(settings: &MutualTls) -> String {
    let word = |mode| match mode {
        MutualTlsMode::Permissive => "PERMISSIVE",
        MutualTlsMode::Strict => "STRICT",
        MutualTlsMode::Disable => "DISABLE",
    };
    let mut text = word(settings.mode).to_owned();
    for (port, mode) in &settings.ports {
        text.push_str(&format!(", {port} {}", word(*mode)));
    }
    if !settings.policy.is_empty() {
        text.push_str(&format!(" (PeerAuthentication {})", settings.policy));
    }
    text
}

fn describe(summary: &PolicySummary) -> PolicyInfo {
    PolicyInfo {
        policy: match &summary.origin {
            Some(origin) => origin.to_string(),
            None => format!("{} (named, but not known here)", summary.policy),
        },
        scope: match summary.scope {
            Scope::Global => "mesh".into(),
            Scope::Namespace => "namespace".into(),
            Scope::Workload => "workload".into(),
        },
        action: match summary.action {
            crate::policy::Action::Allow => "ALLOW".into(),
            crate::policy::Action::Deny => "DENY".into(),
        },
        rules: summary.rules,
        dry_run: summary.dry_run,
        unusable: summary.unusable.clone(),
    }
}

/// What policy says of a connection to a pod of this node.
pub(super) fn authorize(
    mesh: &Snapshot,
    client: Option<&Identity>,
    client_ip: IpAddr,
    pod: &Arc<LocalPod>,
    address: SocketAddr,
) -> Option<AuthorizationInfo> {
    let workload = mesh.workload(&pod.uid).or_else(|| mesh.workload_by_address(address.ip()))?;
    let request = Request { source: client, source_ip: client_ip, destination: address, workload };
    let explanation = mesh.policies().explain(&request);
    let policies = explanation.policies.iter().map(|outcome| PolicyCheck {
        policy: describe(&outcome.policy),
        matches: outcome.matches,
        outcomes: outcome.outcomes.iter().map(rule).collect(),
    });
    Some(AuthorizationInfo {
        server: format!("{}/{}", pod.namespace, pod.name),
        address: address.to_string(),
        client: client.map(Identity::to_string),
        allowed: explanation.allowed,
        verdict: explanation.verdict,
        dry_run_verdict: explanation.dry_run_verdict,
        policies: policies.collect(),
    })
}

fn rule(outcome: &RuleOutcome) -> RuleCheck {
    let condition = |known: &Condition| {
        let Condition { field, values, holds, .. } = known;
        let holds = if *holds { "holds" } else { "does not hold" };
        if values.is_empty() { format!("{field} {holds}") } else { format!("{field} {values} {holds}") }
    };
    RuleCheck {
        rule: outcome.rule,
        matches: outcome.matches,
        because: outcome.because.iter().map(condition).collect(),
    }
}
