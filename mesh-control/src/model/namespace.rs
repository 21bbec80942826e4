//! Namespaces.

use k8s_openapi::api::core::v1 as core;

use super::annotations::{self, NETWORK};
use super::findings::{Findings, field};
use super::metadata::ObjectName;
use super::service::TrafficDistribution;

/// A namespace and what it decides for the resources in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Name.
    pub name: ObjectName,
    /// Whether its pods are enrolled, unless they say otherwise themselves (`istio.io/dataplane-mode`).
    pub enrolled: Option<bool>,
    /// Network its pods are in (`topology.istio.io/network`).
    pub network: Option<String>,
    /// How clients of its services choose among endpoints, unless a service says otherwise.
    pub traffic_distribution: Option<TrafficDistribution>,
}

impl Namespace {
    /// Reads the object of the API.
    pub fn read(object: core::Namespace, findings: &mut Findings) -> Self {
        let labels = object.metadata.labels.clone().unwrap_or_default();
        Self {
            name: ObjectName::cluster_wide(&object.metadata, findings),
            enrolled: annotations::enrolled(&labels, &field!["metadata", "labels"], findings),
            network: labels.get(NETWORK).cloned(),
            traffic_distribution: annotations::traffic_distribution(&object.metadata, findings),
        }
    }
}
