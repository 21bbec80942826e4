//! Endpoint slices.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1 as discovery;

use super::findings::{Findings, field};
use super::metadata::ObjectName;

/// Label that names the service of a slice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Some of the endpoints of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub name: ObjectName,
    /// Name of its service, in the same namespace.
    pub service: Option<Arc<str>>,
    /// TCP ports of every endpoint.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// A port of every endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the service's port.
    pub name: String,
    /// Number at the endpoints.
    pub number: u16,
}

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Addresses of one machine; Kubernetes writes one.
    pub addresses: Vec<IpAddr>,
    /// Name of the pod behind it, in the same namespace.
    pub pod: Option<Arc<str>>,
    /// Whether it takes new connections.
    pub ready: bool,
    /// Whether it is being ended but still answers.
    pub draining: bool,
    /// Node it runs on.
    pub node: Arc<str>,
}

impl EndpointSlice {
    /// Reads the object of the API.
    pub fn read(object: discovery::EndpointSlice, findings: &mut Findings) -> Self {
        let name = ObjectName::namespaced(&object.metadata, findings);
        let labels = object.metadata.labels.unwrap_or_default();
        let service = labels.get(SERVICE_NAME).map(|service| Arc::from(service.as_str()));
        if service.is_none() {
            findings.warn(
                field!["metadata", "labels"],
                format!("without the label {SERVICE_NAME} the slice belongs to no service and is not used"),
            );
        }
        let by_address = match object.address_type.as_str() {
            "IPv4" | "IPv6" => true,
            "FQDN" => {
                findings.warn(field!["addressType"], "endpoints by host name are not used");
                false
            }
            other => {
                findings.refuse(field!["addressType"], format!("expected IPv4 or IPv6, found {other:?}"));
                false
            }
        };
        Self {
            ports: ports(object.ports.as_deref().unwrap_or_default(), findings),
            endpoints: object
                .endpoints
                .into_iter()
                .enumerate()
                .filter(|_| by_address)
                .map(|(index, endpoint)| SliceEndpoint::read(endpoint, index, &name, findings))
                .collect(),
            name,
            service,
        }
    }
}

impl SliceEndpoint {
    fn read(
        endpoint: discovery::Endpoint,
        index: usize,
        slice: &ObjectName,
        findings: &mut Findings,
    ) -> Self {
        let target = endpoint.target_ref.filter(|target| target.kind.as_deref() == Some("Pod"));
        let local = target.filter(|target| {
            target.namespace.as_deref().is_none_or(|namespace| namespace == &*slice.namespace)
        });
        let addresses = endpoint.addresses.iter().enumerate();
        let conditions = endpoint.conditions.unwrap_or_default();
        let terminating = conditions.terminating.unwrap_or(false);
        // Not said means ready, but what is terminating takes nothing new, even if it is still serving.
        let ready = conditions.ready.unwrap_or(!terminating);
        Self {
            addresses: addresses
                .filter_map(|(position, text)| {
                    findings.address(text, || field!["endpoints", index, "addresses", position])
                })
                .collect(),
            pod: local.and_then(|target| target.name).map(Arc::from),
            ready,
            draining: !ready && terminating && conditions.serving.unwrap_or(false),
            node: endpoint.node_name.as_deref().unwrap_or_default().into(),
        }
    }
}

fn ports(ports: &[discovery::EndpointPort], findings: &mut Findings) -> Vec<SlicePort> {
    let mut known = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
        let Some(number) = port.port.filter(|_| tcp) else {
            continue;
        };
        if let Some(number) = findings.port(number, || field!["ports", index, "port"]) {
            known.push(SlicePort { name: port.name.clone().unwrap_or_default(), number });
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(manifest: serde_json::Value) -> (EndpointSlice, Vec<String>) {
        let mut findings = Findings::default();
        let slice = EndpointSlice::read(serde_json::from_value(manifest).unwrap(), &mut findings);
        (
            slice,
            findings
                .into_vec()
                .into_iter()
                .map(|found| format!("{}: {}", found.path, found.reason))
                .collect(),
        )
    }

    #[test]
    fn endpoints_keep_their_pod_and_their_readiness() {
        let (slice, problems) = slice(serde_json::json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "web-a", "namespace": "shop"}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.0.0.3"], "targetRef": {"kind": "Pod", "name": "web-b", "namespace": "other"}},
            ],
        }));
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(slice.service.as_deref(), Some("web"));
        assert_eq!(slice.ports, [SlicePort { name: "http".to_owned(), number: 8080 }]);
        let seen: Vec<_> =
            slice.endpoints.iter().map(|found| (found.pod.as_deref(), found.ready, found.draining)).collect();
        assert_eq!(seen, [(Some("web-a"), true, false), (None, false, true), (None, true, false)]);
    }

    #[test]
    fn what_has_no_effect_is_said() {
        let (slice, problems) = slice(serde_json::json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s"},
            "addressType": "FQDN", "endpoints": [{"addresses": ["db.example.com"]}],
        }));
        assert!(slice.endpoints.is_empty());
        assert_eq!(problems.len(), 2, "{problems:?}");
    }
}
