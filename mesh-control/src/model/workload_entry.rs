//! Istio's WorkloadEntry: a workload that is not a pod, and the endpoint of a ServiceEntry, which has the same form.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::findings::{FieldPath, Findings, field};
use super::metadata::{Labels, ObjectName, is_subdomain};
use super::node::Locality;

/// The object of the API.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of every Kubernetes object")]
pub struct WorkloadEntryObject {
    pub api_version: String,
    pub kind: String,
    #[serde(default)]
    pub metadata: ObjectMeta,
    pub spec: EndpointSpec,
    #[serde(default)]
    pub status: serde_json::Value,
}

/// An endpoint as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSpec {
    /// IP address or host name.
    address: Option<String>,
    /// Its own target ports, by the names of the service's ports.
    ports: BTreeMap<String, i64>,
    labels: Labels,
    network: Option<String>,
    /// `region/zone/subzone`.
    locality: Option<String>,
    weight: Option<u32>,
    service_account: Option<String>,
}

/// A workload that is not a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// Namespace and name.
    pub name: ObjectName,
    /// Labels that selectors look at.
    pub labels: Labels,
    /// Where it is.
    pub endpoint: Endpoint,
}

/// An endpoint outside Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: EndpointAddress,
    /// Its own target ports, by the names of the service's ports.
    pub ports: BTreeMap<String, u16>,
    /// Labels.
    pub labels: Labels,
    /// Network of its address, if not the default.
    pub network: Option<String>,
    /// Where it stands.
    pub locality: Locality,
    /// Share of the traffic, relative to other endpoints.
    pub weight: Option<u32>,
    /// Service account of its identity.
    pub service_account: Option<String>,
}

/// How an endpoint is reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndpointAddress {
    /// By address.
    Ip(IpAddr),
    /// By a name to resolve.
    Hostname(String),
}

impl WorkloadEntry {
    /// Reads the object of the API.
    pub fn read(object: WorkloadEntryObject, findings: &mut Findings) -> Self {
        let name = ObjectName::namespaced(&object.metadata, findings);
        let endpoint = Endpoint::read(&object.spec, &field!["spec"], findings);
        // Istio selects by the labels of both places.
        let mut labels = object.metadata.labels.unwrap_or_default();
        labels.extend(endpoint.labels.clone());
        Self { name, labels, endpoint }
    }
}

impl Endpoint {
    pub(super) fn read(spec: &EndpointSpec, place: &FieldPath, findings: &mut Findings) -> Self {
        let at = |field: &str| place.clone().then(field);
        let ports = spec.ports.iter().filter_map(|(name, number)| {
            Some((name.clone(), findings.port(*number, || at("ports").then(name))?))
        });
        let ports = ports.collect();
        Self {
            address: EndpointAddress::read(
                spec.address.as_deref().unwrap_or_default(),
                at("address"),
                findings,
            ),
            ports,
            labels: spec.labels.clone(),
            network: spec.network.clone(),
            locality: spec.locality.as_deref().map(Locality::parse).unwrap_or_default(),
            weight: spec.weight.filter(|weight| *weight != 0),
            service_account: spec.service_account.clone(),
        }
    }
}

impl EndpointAddress {
    fn read(text: &str, place: FieldPath, findings: &mut Findings) -> Self {
        match text.parse() {
            Ok(address) => Self::Ip(address),
            Err(_) => {
                if text.is_empty() {
                    findings.refuse(place, "an endpoint needs an address");
                } else if text.starts_with("unix:") {
                    findings.refuse(place, "the mesh carries TCP; it cannot reach Unix sockets");
                } else if !is_subdomain(text) {
                    findings.refuse(place, format!("expected an IP address or a host name, found {text:?}"));
                }
                Self::Hostname(text.to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(spec: serde_json::Value) -> (WorkloadEntry, Vec<String>) {
        let manifest = serde_json::json!({
            "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
            "metadata": {"name": "vm", "labels": {"a": "1"}}, "spec": spec,
        });
        let mut findings = Findings::default();
        let entry = WorkloadEntry::read(serde_json::from_value(manifest).unwrap(), &mut findings);
        (entry, findings.into_vec().into_iter().map(|found| found.path.to_string()).collect())
    }

    #[test]
    fn a_machine_is_read() {
        let (entry, problems) = entry(serde_json::json!({
            "address": "2001:db8::7", "labels": {"b": "2"}, "locality": "eu/z1", "weight": 3, "ports": {"http": 8080},
        }));
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(entry.endpoint.address, EndpointAddress::Ip("2001:db8::7".parse().unwrap()));
        assert_eq!(entry.labels.len(), 2);
        assert_eq!((entry.endpoint.locality.zone.as_str(), entry.endpoint.weight), ("z1", Some(3)));
    }

    #[test]
    fn an_address_is_needed() {
        for address in ["", "unix:///run/x.sock", "not a name"] {
            assert_eq!(entry(serde_json::json!({"address": address})).1, ["spec.address"], "{address}");
        }
        assert!(entry(serde_json::json!({"address": "db.example.com"})).1.is_empty());
    }
}
