//! Istio's ServiceEntry: a service that Kubernetes does not know.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::findings::{Findings, field};
use super::metadata::{Labels, ObjectName, Selector, is_subdomain};
use super::service::{ServicePort, TargetPort, application_protocol};
use super::workload_entry::{Endpoint, EndpointAddress, EndpointSpec};

/// The object of the API.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of every Kubernetes object")]
pub struct ServiceEntryObject {
    pub api_version: String,
    pub kind: String,
    #[serde(default)]
    pub metadata: ObjectMeta,
    pub spec: ServiceEntrySpec,
    #[serde(default)]
    pub status: serde_json::Value,
}

/// A service entry as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntrySpec {
    hosts: Vec<String>,
    addresses: Vec<String>,
    ports: Vec<PortSpec>,
    location: Option<Location>,
    resolution: Resolution,
    endpoints: Vec<EndpointSpec>,
    workload_selector: Option<SelectorSpec>,
    export_to: Vec<String>,
    subject_alt_names: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PortSpec {
    number: i64,
    protocol: String,
    name: String,
    target_port: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct SelectorSpec {
    labels: Labels,
}

/// Whether the service belongs to the mesh. Nothing depends on it: how an endpoint is reached is its own matter.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Location {
    MeshExternal,
    MeshInternal,
}

/// How the endpoints of a service entry are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// The address that the client chose is the endpoint.
    #[default]
    None,
    /// They are listed or selected.
    Static,
    /// They are resolved, all of them.
    Dns,
    /// They are resolved, and one is used.
    DnsRoundRobin,
}

impl Resolution {
    /// Whether host names are resolved.
    pub fn resolves(self) -> bool {
        matches!(self, Self::Dns | Self::DnsRoundRobin)
    }
}

/// A service that Kubernetes does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Namespace and name.
    pub name: ObjectName,
    /// Host names; each is a service.
    pub hosts: Vec<String>,
    /// Virtual addresses of all of them.
    pub addresses: Vec<IpAddr>,
    /// TCP ports.
    pub ports: Vec<ServicePort>,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// The endpoints.
    pub endpoints: EntryEndpoints,
    /// Names to accept in a certificate.
    pub subject_alt_names: Vec<String>,
}

/// The endpoints of a service entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryEndpoints {
    /// Written into the entry; may be none.
    Listed(Vec<Endpoint>),
    /// Workload entries and pods of its namespace.
    Selected(Selector),
}

impl ServiceEntry {
    /// Reads the object of the API.
    pub fn read(object: ServiceEntryObject, findings: &mut Findings) -> Self {
        let name = ObjectName::namespaced(&object.metadata, findings);
        let spec = object.spec;
        for (index, scope) in spec.export_to.iter().enumerate().filter(|(_, scope)| *scope != "*") {
            let reason = format!("the mesh shows services everywhere: {scope:?} has no effect");
            findings.warn(field!["spec", "exportTo", index], reason);
        }
        Self {
            hosts: hosts(&spec, findings),
            addresses: addresses(&spec, findings),
            ports: ports(&spec, findings),
            resolution: spec.resolution,
            endpoints: endpoints(&spec, findings),
            subject_alt_names: spec.subject_alt_names,
            name,
        }
    }

    /// The selector, if its endpoints are selected.
    pub fn selector(&self) -> Option<&Selector> {
        match &self.endpoints {
            EntryEndpoints::Selected(selector) => Some(selector),
            EntryEndpoints::Listed(_) => None,
        }
    }
}

fn hosts(spec: &ServiceEntrySpec, findings: &mut Findings) -> Vec<String> {
    if spec.hosts.is_empty() {
        findings.refuse(field!["spec", "hosts"], "a service entry needs a host name");
    }
    for (index, host) in spec.hosts.iter().enumerate() {
        let place = field!["spec", "hosts", index];
        if !is_subdomain(host.strip_prefix("*.").unwrap_or(host)) {
            findings.refuse(place, format!("expected a host name, found {host:?}"));
        } else if host.starts_with("*.") && spec.resolution.resolves() {
            findings.refuse(place, "a wildcard cannot be resolved: use resolution NONE, or name each host");
        }
    }
    let mut hosts = spec.hosts.clone();
    hosts.sort_unstable();
    hosts.dedup();
    hosts
}

fn addresses(spec: &ServiceEntrySpec, findings: &mut Findings) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (index, text) in spec.addresses.iter().enumerate() {
        let place = || field!["spec", "addresses", index];
        match text.parse::<IpNet>() {
            Ok(range) if range.prefix_len() == range.max_prefix_len() => addresses.push(range.addr()),
            Ok(_) => findings.refuse(
                place(),
                format!("the workload protocol knows single addresses, not ranges such as {text}"),
            ),
            Err(_) => addresses.extend(findings.address(text, place)),
        }
    }
    addresses
}

fn ports(spec: &ServiceEntrySpec, findings: &mut Findings) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (index, port) in spec.ports.iter().enumerate() {
        let Some(number) = findings.port(port.number, || field!["spec", "ports", index, "number"]) else {
            continue;
        };
        let target = match port.target_port {
            Some(target) => findings.port(target, || field!["spec", "ports", index, "targetPort"]),
            None => Some(number),
        };
        if ports.iter().any(|known| known.number == number) {
            findings
                .refuse(field!["spec", "ports", index, "number"], format!("port {number} is there twice"));
        } else if port.protocol.eq_ignore_ascii_case("UDP") {
            findings
                .warn(field!["spec", "ports", index, "protocol"], "the mesh carries TCP: UDP passes it by");
        } else if let Some(target) = target {
            ports.push(ServicePort {
                name: port.name.clone(),
                number,
                target: TargetPort::Number(target),
                protocol: application_protocol(&port.protocol),
            });
        }
    }
    ports
}

fn endpoints(spec: &ServiceEntrySpec, findings: &mut Findings) -> EntryEndpoints {
    let place = field!["spec", "endpoints"];
    if let Some(selector) = &spec.workload_selector {
        if !spec.endpoints.is_empty() {
            findings.refuse(
                place.clone(),
                "endpoints are either listed here or selected by workloadSelector, not both",
            );
        } else if spec.resolution != Resolution::Static {
            findings.refuse(field!["spec", "resolution"], "workloadSelector needs resolution STATIC");
        }
        if let Some(selector) = Selector::new(selector.labels.clone()) {
            return EntryEndpoints::Selected(selector);
        }
        findings.refuse(field!["spec", "workloadSelector", "labels"], "a selector needs a label");
    }
    if spec.resolution == Resolution::None && !spec.endpoints.is_empty() {
        findings.refuse(
            place.clone(),
            "with resolution NONE clients choose the address: endpoints need STATIC or DNS",
        );
    }
    let mut listed: Vec<Endpoint> = Vec::new();
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        let place = place.clone().then(index);
        let endpoint = Endpoint::read(endpoint, &place, findings);
        let by_name = matches!(endpoint.address, EndpointAddress::Hostname(_));
        if by_name && spec.resolution == Resolution::Static {
            findings
                .refuse(place.then("address"), "resolution STATIC needs IP addresses; host names need DNS");
        } else if listed.iter().any(|known| known.address == endpoint.address) {
            findings.refuse(place.then("address"), "another endpoint has this address already");
        } else {
            listed.push(endpoint);
        }
    }
    EntryEndpoints::Listed(listed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(spec: serde_json::Value) -> (ServiceEntry, Vec<String>) {
        let manifest = serde_json::json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": {"name": "outside"}, "spec": spec,
        });
        let mut findings = Findings::default();
        let entry = ServiceEntry::read(serde_json::from_value(manifest).unwrap(), &mut findings);
        (entry, findings.into_vec().into_iter().map(|found| found.path.to_string()).collect())
    }

    #[test]
    fn a_static_entry_is_read() {
        let (entry, problems) = entry(serde_json::json!({
            "hosts": ["b.example.com", "a.example.com"], "addresses": ["192.0.2.1/32", "2001:db8::1"],
            "location": "MESH_EXTERNAL", "resolution": "STATIC", "exportTo": ["*"],
            "ports": [{"number": 443, "name": "tls", "protocol": "TLS", "targetPort": 8443}],
            "endpoints": [{"address": "198.51.100.1"}, {"address": "198.51.100.2", "ports": {"tls": 9443}}],
        }));
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(entry.hosts, ["a.example.com", "b.example.com"]);
        assert_eq!(entry.addresses.len(), 2);
        let EntryEndpoints::Listed(endpoints) = entry.endpoints else { panic!("listed") };
        assert_eq!(endpoints.len(), 2);
    }

    #[test]
    fn what_cannot_be_expressed_is_refused_at_its_field() {
        let base = serde_json::json!({"hosts": ["a.example.com"], "resolution": "STATIC"});
        let with = |field: &str, value: serde_json::Value| {
            let mut spec = base.clone();
            spec[field] = value;
            entry(spec).1
        };
        assert_eq!(with("hosts", serde_json::json!([])), ["spec.hosts"]);
        assert_eq!(with("addresses", serde_json::json!(["10.0.0.0/8"])), ["spec.addresses[0]"]);
        assert_eq!(with("endpoints", serde_json::json!([{"address": "a.b"}])), ["spec.endpoints[0].address"]);
        assert_eq!(
            with("endpoints", serde_json::json!([{"address": "192.0.2.1"}, {"address": "192.0.2.1"}])),
            ["spec.endpoints[1].address"]
        );
        assert_eq!(with("workloadSelector", serde_json::json!({})), ["spec.workloadSelector.labels"]);
        assert_eq!(with("exportTo", serde_json::json!(["."])), ["spec.exportTo[0]"]);
        assert_eq!(
            entry(serde_json::json!({"hosts": ["*.example.com"], "resolution": "DNS"})).1,
            ["spec.hosts[0]"]
        );
    }
}
