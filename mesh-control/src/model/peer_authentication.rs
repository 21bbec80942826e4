//! Istio's PeerAuthentication: which ports take mutual TLS, plain text, or both.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Deserialize;
use serde_json::Value;

use super::findings::{Finding, Findings, field};
use super::metadata::{ObjectName, Selector};
use super::policy::{Remains, SelectorSpec};

/// The object of the API.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of every Kubernetes object")]
pub struct PeerAuthenticationObject {
    pub api_version: String,
    pub kind: String,
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: PeerAuthenticationSpec,
    #[serde(default)]
    pub status: Value,
}

/// A policy as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerAuthenticationSpec {
    selector: Option<SelectorSpec>,
    mtls: Option<MutualTlsSpec>,
    port_level_mtls: Option<BTreeMap<String, MutualTlsSpec>>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct MutualTlsSpec {
    mode: ModeSpec,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum ModeSpec {
    #[default]
    Unset,
    Disable,
    Permissive,
    Strict,
}

/// What a port takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MutualTlsMode {
    /// Mutual TLS and plain text.
    Permissive,
    /// Mutual TLS only.
    Strict,
    /// Plain text only.
    Disable,
}

/// Which ports take mutual TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Namespace and name.
    pub name: ObjectName,
    /// When it was made: of several for the same workloads the oldest counts.
    pub created: Option<Time>,
    /// Whom it is for; without it every workload of its namespace, or of the mesh in the root namespace.
    pub selector: Option<Selector>,
    /// What their ports take; as the wider policy says if it is not set.
    pub mode: Option<MutualTlsMode>,
    /// Ports that differ.
    pub ports: BTreeMap<u16, MutualTlsMode>,
    /// Whether it stands in for one that cannot be used. STRICT is the most that such a policy can ask for.
    pub unusable: bool,
}

impl PeerAuthentication {
    /// Reads the object of the API.
    pub fn read(object: PeerAuthenticationObject, findings: &mut Findings) -> Self {
        let name = ObjectName::namespaced(&object.metadata, findings);
        let spec = object.spec;
        let selector = spec.selector.and_then(|selector| selector.read(findings));
        let place = field!["spec", "portLevelMtls"];
        let mut ports = BTreeMap::new();
        if let Some(written) = &spec.port_level_mtls {
            if written.is_empty() {
                findings.refuse(place.clone(), "must not be empty: leave it out");
            } else if selector.is_none() {
                let reason = "a port has a meaning for known workloads only: name them by spec.selector";
                findings.refuse(place.clone(), reason);
            }
            for (text, mtls) in written {
                let number = text.parse::<u16>().ok().filter(|port| *port != 0);
                let Some(number) = number else {
                    let reason = format!("expected a port between 1 and 65535, found {text:?}");
                    findings.refuse(place.clone().then(text), reason);
                    continue;
                };
                if let Some(mode) = mtls.mode.read() {
                    ports.insert(number, mode);
                }
            }
        }
        Self {
            name,
            created: object.metadata.creation_timestamp,
            selector,
            mode: spec.mtls.unwrap_or_default().mode.read(),
            ports,
            unusable: false,
        }
    }

    /// What is wrong with its place, if anything is.
    pub(super) fn misplaced(&self, root_namespace: &str) -> Option<Finding> {
        let selects_nobody = self.selector.is_some() && *self.name.namespace == *root_namespace;
        selects_nobody.then(|| {
            let reason = format!(
                "selects nobody: in the root namespace {root_namespace} a PeerAuthentication is for the whole mesh. \
                 Put it into the namespace of the workloads, or leave the selector out"
            );
            Finding::warning(field!["spec", "selector"], reason)
        })
    }

    /// What is served in the place of a policy that was refused.
    pub(super) fn unusable(name: &ObjectName, object: &Value, findings: &[Finding]) -> Option<Self> {
        let remains = Remains::of(name, object, findings)?;
        let created = object.pointer("/metadata/creationTimestamp").cloned().unwrap_or_default();
        Some(Self {
            name: remains.name,
            created: serde_json::from_value(created).ok(),
            selector: remains.selector,
            mode: Some(MutualTlsMode::Strict),
            ports: BTreeMap::new(),
            unusable: true,
        })
    }
}

impl ModeSpec {
    fn read(self) -> Option<MutualTlsMode> {
        match self {
            Self::Unset => None,
            Self::Disable => Some(MutualTlsMode::Disable),
            Self::Permissive => Some(MutualTlsMode::Permissive),
            Self::Strict => Some(MutualTlsMode::Strict),
        }
    }
}
