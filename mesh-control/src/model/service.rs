//! Services.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mesh_xds::proto::workload::{AppProtocol, IpFamilies};

use super::annotations;
use super::findings::{FieldPath, Findings, field};
use super::metadata::{ObjectName, Selector};

/// Kubernetes' default for session affinity.
const AFFINITY_SECONDS: u32 = 10_800;
/// A day, the most that Kubernetes takes.
const MAX_AFFINITY_SECONDS: u32 = 86_400;

/// A service.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// Whether it only stands for a name elsewhere in DNS: the mesh has nothing to balance there.
    pub external_name: bool,
    /// Virtual addresses; none for a headless service.
    pub addresses: Vec<IpAddr>,
    /// TCP ports.
    pub ports: Vec<ServicePort>,
    /// Labels of its pods; without it its endpoints are listed in slices only.
    pub selector: Option<Selector>,
    /// Whether only endpoints on the client's node are used.
    pub node_local: bool,
    /// How clients choose among endpoints, where the service says so.
    pub traffic_distribution: Option<TrafficDistribution>,
    /// For how many seconds after its last connection a client stays with its endpoint, if it does at all.
    pub affinity_seconds: Option<u32>,
    /// Whether endpoints that are not ready are used as well.
    pub publish_not_ready: bool,
    /// Address families.
    pub families: IpFamilies,
}

/// A TCP port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Name, unique in the service; empty if it is the only port.
    pub name: String,
    /// Number at the service's addresses.
    pub number: u16,
    /// Port of the endpoints.
    pub target: TargetPort,
    /// What the application speaks.
    pub protocol: AppProtocol,
}

/// A port of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By the name that the endpoint gives it.
    Name(String),
}

/// How clients choose among endpoints (`spec.trafficDistribution`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrafficDistribution {
    /// All alike.
    Any,
    /// Those in the client's zone first.
    PreferSameZone,
    /// Those nearest to the client first, by network, region, zone and subzone.
    PreferClose,
    /// Those on the client's node first, then as `PreferClose`.
    PreferSameNode,
}

impl TrafficDistribution {
    pub(super) fn read(text: &str, place: FieldPath, findings: &mut Findings) -> Option<Self> {
        match text {
            "Any" => Some(Self::Any),
            "PreferSameZone" => Some(Self::PreferSameZone),
            "PreferClose" => Some(Self::PreferClose),
            "PreferSameNode" => Some(Self::PreferSameNode),
            other => {
                findings.refuse(
                    place,
                    format!("expected PreferClose, PreferSameZone, PreferSameNode or Any, found {other:?}"),
                );
                None
            }
        }
    }
}

/// What an application speaks, by a protocol's name in any case; one that is not known is just bytes to the mesh.
pub(super) fn application_protocol(name: &str) -> AppProtocol {
    match name.to_ascii_lowercase().as_str() {
        "http" | "http1" | "kubernetes.io/ws" => AppProtocol::Http11,
        "http2" | "h2c" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" | "grpc-web" => AppProtocol::Grpc,
        "https" | "tls" | "kubernetes.io/wss" => AppProtocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}

/// What a port says of it: `appProtocol` or, as Istio does it, the first word of the port's name.
fn protocol_of(port: &core::ServicePort) -> AppProtocol {
    match (&port.app_protocol, &port.name) {
        (Some(protocol), _) => application_protocol(protocol),
        (None, Some(name)) => application_protocol(name.split('-').next().unwrap_or_default()),
        (None, None) => AppProtocol::Unknown,
    }
}

impl Service {
    /// Reads the object of the API.
    pub fn read(object: core::Service, findings: &mut Findings) -> Self {
        let name = ObjectName::namespaced(&object.metadata, findings);
        let annotated = annotations::traffic_distribution(&object.metadata, findings);
        let spec = object.spec.unwrap_or_default();
        let distribution = spec.traffic_distribution.as_deref().and_then(|text| {
            TrafficDistribution::read(text, field!["spec", "trafficDistribution"], findings)
        });
        Self {
            name,
            external_name: spec.type_.as_deref() == Some("ExternalName"),
            addresses: addresses(&spec, object.status.as_ref(), findings),
            ports: ports(&spec, findings),
            node_local: policy_is_local(&spec, findings),
            traffic_distribution: distribution.or(annotated),
            affinity_seconds: affinity_seconds(&spec, findings),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            families: families(&spec, findings),
            selector: spec.selector.and_then(Selector::new),
        }
    }

    /// Whether clients reach it by the addresses of its endpoints only.
    pub fn headless(&self) -> bool {
        self.addresses.is_empty()
    }
}

/// Cluster IPs, external IPs, and addresses of a load balancer that leave the destination as it is: all that kube-proxy
/// translates.
fn addresses(
    spec: &core::ServiceSpec,
    status: Option<&core::ServiceStatus>,
    findings: &mut Findings,
) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    for (index, text) in listed.iter().enumerate().filter(|(_, text)| is_address(text)) {
        addresses.extend(findings.address(text, || field!["spec", "clusterIPs", index]));
    }
    // clusterIP repeats the first of clusterIPs, and stands alone only in manifests written by hand.
    if let Some(text) = spec.cluster_ip.as_deref().filter(|text| listed.is_empty() && is_address(text)) {
        addresses.extend(findings.address(text, || field!["spec", "clusterIP"]));
    }
    for (index, text) in spec.external_ips.iter().flatten().enumerate() {
        addresses.extend(findings.address(text, || field!["spec", "externalIPs", index]));
    }
    let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    for (index, ingress) in ingress.into_iter().flatten().enumerate() {
        let kept = ingress.ip_mode.as_deref() != Some("Proxy");
        if let Some(text) = ingress.ip.as_deref().filter(|_| kept) {
            addresses
                .extend(findings.address(text, || field!["status", "loadBalancer", "ingress", index, "ip"]));
        }
    }
    // A load balancer may have been given an external IP.
    let mut seen = BTreeSet::new();
    addresses.retain(|address| seen.insert(*address));
    addresses
}

fn affinity_seconds(spec: &core::ServiceSpec, findings: &mut Findings) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => None,
        Some("ClientIP") => {
            let by_client =
                spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            let Some(seconds) = by_client.and_then(|config| config.timeout_seconds) else {
                return Some(AFFINITY_SECONDS);
            };
            let read =
                u32::try_from(seconds).ok().filter(|seconds| (1..=MAX_AFFINITY_SECONDS).contains(seconds));
            if read.is_none() {
                let place = field!["spec", "sessionAffinityConfig", "clientIP", "timeoutSeconds"];
                findings
                    .refuse(place, format!("expected 1 to {MAX_AFFINITY_SECONDS} seconds, found {seconds}"));
            }
            read
        }
        Some(other) => {
            let place = field!["spec", "sessionAffinity"];
            findings.refuse(place, format!("expected None or ClientIP, found {other:?}"));
            None
        }
    }
}

fn is_address(text: &str) -> bool {
    !text.is_empty() && text != "None"
}

fn ports(spec: &core::ServiceSpec, findings: &mut Findings) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let number = findings.port(port.port, || field!["spec", "ports", index, "port"]);
        let target = match &port.target_port {
            Some(IntOrString::Int(target)) => findings
                .port(*target, || field!["spec", "ports", index, "targetPort"])
                .map(TargetPort::Number),
            Some(IntOrString::String(name)) => Some(TargetPort::Name(name.clone())),
            None => number.map(TargetPort::Number),
        };
        let (Some(number), Some(target)) = (number, target) else {
            continue;
        };
        // The mesh carries TCP; other protocols pass it by.
        if port.protocol.as_deref().is_some_and(|protocol| protocol != "TCP") {
            continue;
        }
        if ports.iter().any(|known| known.number == number) {
            findings.refuse(field!["spec", "ports", index, "port"], format!("port {number} is there twice"));
            continue;
        }
        let name = port.name.clone().unwrap_or_default();
        if ports.iter().any(|known| known.name == name) {
            findings.refuse(
                field!["spec", "ports", index, "name"],
                "each of several ports needs a name of its own",
            );
            continue;
        }
        ports.push(ServicePort { name, number, target, protocol: protocol_of(port) });
    }
    ports
}

fn policy_is_local(spec: &core::ServiceSpec, findings: &mut Findings) -> bool {
    match spec.internal_traffic_policy.as_deref() {
        None | Some("Cluster") => false,
        Some("Local") => true,
        Some(other) => {
            let place = field!["spec", "internalTrafficPolicy"];
            findings.refuse(place, format!("expected Cluster or Local, found {other:?}"));
            false
        }
    }
}

fn families(spec: &core::ServiceSpec, findings: &mut Findings) -> IpFamilies {
    let (mut v4, mut v6) = (false, false);
    for (index, family) in spec.ip_families.iter().flatten().enumerate() {
        match family.as_str() {
            "IPv4" => v4 = true,
            "IPv6" => v6 = true,
            other => findings.refuse(
                field!["spec", "ipFamilies", index],
                format!("expected IPv4 or IPv6, found {other:?}"),
            ),
        }
    }
    match (v4, v6) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        (false, false) => IpFamilies::Automatic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: serde_json::Value) -> (Service, Vec<String>) {
        let manifest = serde_json::json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec,
        });
        let mut findings = Findings::default();
        let service = Service::read(serde_json::from_value(manifest).unwrap(), &mut findings);
        (
            service,
            findings
                .into_vec()
                .into_iter()
                .map(|found| format!("{}: {}", found.path, found.reason))
                .collect(),
        )
    }

    #[test]
    fn tcp_ports_are_kept_with_what_is_spoken_there() {
        let (service, problems) = service(serde_json::json!({"ports": [
            {"name": "http-api", "port": 80, "targetPort": "web"},
            {"name": "rpc", "port": 81, "appProtocol": "grpc"},
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 53},
        ]}));
        assert!(problems.is_empty(), "{problems:?}");
        let port = |name: &str, number, target, protocol| ServicePort {
            name: name.to_owned(),
            number,
            target,
            protocol,
        };
        assert_eq!(
            service.ports,
            [
                port("http-api", 80, TargetPort::Name("web".to_owned()), AppProtocol::Http11),
                port("rpc", 81, TargetPort::Number(81), AppProtocol::Grpc),
                port("dns-tcp", 53, TargetPort::Number(53), AppProtocol::Unknown),
            ]
        );
    }

    #[test]
    fn both_families_and_no_address_at_all() {
        let (dual, _) = service(serde_json::json!({
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"],
        }));
        assert_eq!(dual.addresses.len(), 2);
        assert_eq!(dual.families, IpFamilies::Dual);
        let (headless, problems) = service(serde_json::json!({"clusterIP": "None", "clusterIPs": ["None"]}));
        assert!(headless.headless() && problems.is_empty());
    }

    #[test]
    fn a_service_is_reached_by_all_that_kube_proxy_translates() {
        let manifest = serde_json::json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
            "spec": {"clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.1", "fd01::1"]},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "192.0.2.1", "ipMode": "VIP"}, {"ip": "192.0.2.2"}, {"ip": "192.0.2.3", "ipMode": "Proxy"},
                {"hostname": "lb.example.com"},
            ]}},
        });
        let mut findings = Findings::default();
        let service = Service::read(serde_json::from_value(manifest).unwrap(), &mut findings);
        let expected = ["10.96.0.1", "192.0.2.1", "fd01::1", "192.0.2.2"];
        assert_eq!(service.addresses, expected.map(|address| address.parse::<IpAddr>().unwrap()));
        assert!(!findings.refused());
    }

    #[test]
    fn affinity_lasts_as_long_as_it_says() {
        let seconds = |spec| service(spec).0.affinity_seconds;
        assert_eq!(seconds(serde_json::json!({"sessionAffinity": "None"})), None);
        assert_eq!(seconds(serde_json::json!({"sessionAffinity": "ClientIP"})), Some(10_800));
        let config = |seconds: i32| serde_json::json!({"clientIP": {"timeoutSeconds": seconds}});
        let spec =
            |time| serde_json::json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config(time)});
        assert_eq!(seconds(spec(30)), Some(30));
        assert_eq!(service(spec(0)).1.len(), 1);
    }

    #[test]
    fn every_bad_field_is_found() {
        let (_, problems) = service(serde_json::json!({
            "clusterIP": "10.96.0.300", "trafficDistribution": "Closest", "internalTrafficPolicy": "local",
            "ipFamilies": ["ipv4"],
            "ports": [{"port": 0}, {"name": "a", "port": 1, "targetPort": 65536}, {"name": "b", "port": 2}, {"name": "c", "port": 2}],
        }));
        assert_eq!(
            problems,
            [
                "spec.trafficDistribution: expected PreferClose, PreferSameZone, PreferSameNode or Any, found \"Closest\"",
                "spec.clusterIP: expected an IPv4 or IPv6 address, found \"10.96.0.300\"",
                "spec.ports[0].port: expected a port between 1 and 65535, found 0",
                "spec.ports[1].targetPort: expected a port between 1 and 65535, found 65536",
                "spec.ports[3].port: port 2 is there twice",
                "spec.internalTrafficPolicy: expected Cluster or Local, found \"local\"",
                "spec.ipFamilies[0]: expected IPv4 or IPv6, found \"ipv4\"",
            ]
        );
    }
}
