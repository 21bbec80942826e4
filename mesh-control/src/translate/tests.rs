use std::collections::BTreeMap;

use mesh_xds::proto::workload::address::Type;
use mesh_xds::proto::workload::load_balancing::{HealthPolicy, Mode, Scope};
use mesh_xds::proto::workload::{IpFamilies, NetworkMode, Service, TunnelProtocol, Workload, WorkloadStatus};

use super::*;
use crate::model::Resource;
use crate::source::files::resources;

mod incremental;
mod kubernetes;
mod policies;

/// Translates manifests in one go.
fn translate(manifests: &str) -> Translated {
    let mut translator = Translator::new(Mesh::default());
    let (resources, problems) = resources(manifests);
    assert!(problems.is_empty(), "{problems:?}");
    let delta = translator.apply(resources.into_iter().map(Change::Upsert));
    assert!(delta.removals.is_empty());
    Translated(delta.upserts.into_iter().map(|resource| (resource.name.name.to_string(), resource)).collect())
}

struct Translated(BTreeMap<String, Arc<Output>>);

impl Translated {
    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    fn workload(&self, name: &str) -> &Workload {
        match address_of(&self.0[name]) {
            Some(Type::Workload(workload)) => workload,
            other => panic!("{other:?}"),
        }
    }

    fn service(&self, name: &str) -> &Service {
        match address_of(&self.0[name]) {
            Some(Type::Service(service)) => service,
            other => panic!("{other:?}"),
        }
    }

    /// The services of a workload with their ports, as `namespace/hostname 80>8080`.
    fn members(&self, workload: &str) -> Vec<String> {
        let services = &self.workload(workload).services;
        services
            .iter()
            .map(|(name, list)| {
                let ports: Vec<_> = list
                    .ports
                    .iter()
                    .map(|port| format!("{}>{}", port.service_port, port.target_port))
                    .collect();
                format!("{name} {}", ports.join(","))
            })
            .collect()
    }
}

fn address_of(output: &Output) -> &Option<Type> {
    match &output.message {
        Message::Address(address) => &address.r#type,
        other => panic!("{other:?}"),
    }
}

const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: web-1
  namespace: shop
  labels: {app: web, version: v2}
spec:
  nodeName: node1
  serviceAccountName: web
  containers: [{name: main, ports: [{name: http, containerPort: 8080}]}]
status:
  phase: Running
  podIPs: [{ip: 10.244.1.11}, {ip: 'fd00:244:1::11'}]
  conditions: [{type: Ready, status: 'True'}]
---
";
const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  clusterIPs: [10.96.0.10, 'fd00:96::10']
  ipFamilies: [IPv4, IPv6]
  ports: [{name: http, port: 80, targetPort: http}, {name: admin, port: 81, targetPort: admin}]
---
";
const UID: &str = "Kubernetes//Pod/shop/web-1";
const HOST: &str = "shop/web.shop.svc.cluster.local";

#[test]
fn a_pod_is_a_workload() {
    let output = translate(&format!(
        "{POD}{SERVICE}
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{istio.io/dataplane-mode: ambient, topology.istio.io/network: east}}}}
---
apiVersion: v1
kind: Node
metadata: {{name: node1, labels: {{topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z}}}}
"
    ));
    assert_eq!(output.names(), [UID, HOST]);
    let workload = output.workload(UID);
    assert_eq!(workload.tunnel_protocol(), TunnelProtocol::Hbone);
    assert_eq!(workload.status(), WorkloadStatus::Healthy);
    assert_eq!((workload.node.as_str(), workload.network.as_str()), ("node1", "east"));
    assert_eq!(workload.service_account, "web");
    assert_eq!((workload.canonical_name.as_str(), workload.canonical_revision.as_str()), ("web", "v2"));
    assert_eq!(workload.locality.as_ref().unwrap().zone, "z");
    assert_eq!(workload.addresses.iter().map(Bytes::len).collect::<Vec<_>>(), [4, 16]);
    assert_eq!(workload.trust_domain, "");
    assert_eq!(output.0[UID].aliases, ["east/10.244.1.11", "east/fd00:244:1::11"]);
    // The port it has no name for is not its.
    assert_eq!(output.members(UID), [format!("{HOST} 80>8080")]);

    let service = output.service(HOST);
    assert_eq!(service.ip_families(), IpFamilies::Dual);
    let targets: Vec<_> = service.ports.iter().map(|port| port.target_port).collect();
    assert_eq!(targets, [0, 0], "each workload says which port it calls so");
    assert_eq!(service.load_balancing, None);
    assert_eq!(output.0[HOST].aliases, ["/10.96.0.10", "/fd00:96::10"]);
}

#[test]
fn enrolment_is_the_pods_own_word_first() {
    let tunnel = |namespace: &str, pod: &str, spec: &str| {
        let output = translate(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: ns, labels: {{{namespace}}}}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: ns, labels: {{{pod}}}}}\n\
             spec: {{containers: [], {spec}}}\nstatus: {{podIP: 10.0.0.1}}\n"
        ));
        output.workload("Kubernetes//Pod/ns/p").tunnel_protocol()
    };
    let (on, off) = ("istio.io/dataplane-mode: ambient", "istio.io/dataplane-mode: none");
    assert_eq!(tunnel("", "", ""), TunnelProtocol::None);
    assert_eq!(tunnel(on, "", ""), TunnelProtocol::Hbone);
    assert_eq!(tunnel(on, off, ""), TunnelProtocol::None);
    assert_eq!(tunnel("", on, ""), TunnelProtocol::Hbone);
    assert_eq!(tunnel(on, on, "hostNetwork: true"), TunnelProtocol::None);
}

#[test]
fn pods_without_address_or_life_are_no_workloads() {
    let ended = POD.replace("phase: Running", "phase: Succeeded");
    assert!(translate(&ended).names().is_empty());
    let starting = POD.replace("podIPs: [{ip: 10.244.1.11}, {ip: 'fd00:244:1::11'}]", "podIPs: []");
    assert!(translate(&starting).names().is_empty());
}

#[test]
fn a_host_network_pod_has_no_address_of_its_own() {
    let output = translate(&POD.replace("nodeName: node1", "nodeName: node1\n  hostNetwork: true"));
    assert_eq!(output.workload(UID).network_mode(), NetworkMode::HostNetwork);
    assert!(output.0[UID].aliases.is_empty());
}

#[test]
fn slices_list_who_is_behind_a_service() {
    let slice = |endpoints: &str| {
        format!(
            "{POD}{SERVICE}
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-x, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: 9090}}]
endpoints: [{endpoints}]
"
        )
    };
    let opaque = "Kubernetes/discovery.k8s.io/EndpointSlice/shop/web-x/192.0.2.1";

    let output = translate(&slice(
        "{addresses: [10.244.1.11], targetRef: {kind: Pod, name: web-1}}, {addresses: [192.0.2.1]}",
    ));
    assert_eq!(output.names(), [UID, opaque, HOST]);
    assert_eq!(output.members(UID), [format!("{HOST} 80>9090")]);
    assert_eq!(output.members(opaque), [format!("{HOST} 80>9090")]);
    assert_eq!(output.workload(opaque).network_mode(), NetworkMode::HostNetwork);

    // By address alone, as people write them.
    let output = translate(&slice("{addresses: [10.244.1.11]}"));
    assert_eq!(output.names(), [UID, HOST]);
    assert_eq!(output.members(UID), [format!("{HOST} 80>9090")]);

    // Not listed, though the selector would select it.
    assert!(translate(&slice("")).members(UID).is_empty());
    // Not ready while the pod says it is: being taken out.
    let unready = "{addresses: [10.244.1.11], conditions: {ready: false}}";
    assert!(translate(&slice(unready)).members(UID).is_empty());
    // Not ready as the pod itself: a matter of the service's health policy.
    let output = translate(&slice(unready).replace("status: 'True'", "status: 'False'"));
    assert_eq!(output.members(UID).len(), 1);
    assert_eq!(output.workload(UID).status(), WorkloadStatus::Unhealthy);
}

#[test]
fn services_say_how_endpoints_are_chosen() {
    let balancing = |spec: &str, metadata: &str| {
        let output = translate(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: ns, {metadata}}}\nspec: {{{spec}}}\n---\n\
             apiVersion: v1\nkind: Namespace\nmetadata: {{name: ns}}\n"
        ));
        output.service("ns/s.ns.svc.cluster.local").load_balancing.clone().unwrap_or_default()
    };
    let same_node = balancing("trafficDistribution: PreferSameNode", "");
    assert_eq!(same_node.mode(), Mode::Failover);
    assert_eq!(
        same_node.routing_preference().collect::<Vec<_>>(),
        [Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node]
    );
    let close = balancing("", "annotations: {networking.istio.io/traffic-distribution: PreferClose}");
    assert_eq!(close.routing_preference().count(), 4);
    let local = balancing("internalTrafficPolicy: Local, trafficDistribution: PreferClose", "");
    assert_eq!(
        (local.mode(), local.routing_preference().collect::<Vec<_>>()),
        (Mode::Strict, vec![Scope::Node])
    );
    let all = balancing("publishNotReadyAddresses: true", "");
    assert_eq!((all.mode(), all.health_policy()), (Mode::UnspecifiedMode, HealthPolicy::AllowAll));
}

#[test]
fn headless_and_external_services() {
    let output = translate(
        "apiVersion: v1\nkind: Service\nmetadata: {name: h}\nspec: {clusterIP: None, ports: [{port: 1}]}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: e}\nspec: {type: ExternalName, externalName: a.b}\n",
    );
    assert_eq!(output.names(), ["default/h.default.svc.cluster.local"]);
    assert!(output.service("default/h.default.svc.cluster.local").addresses.is_empty());
}

#[test]
fn service_entries_have_a_service_per_host_and_their_endpoints() {
    let entry = |spec: &str| {
        format!(
            "{POD}
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: out, namespace: shop}}
spec:
  hosts: [a.example.com, b.example.com]
  addresses: [192.0.2.10]
  ports: [{{number: 443, name: tls, protocol: TLS, targetPort: 8443}}]
  {spec}
---
apiVersion: networking.istio.io/v1beta1
kind: WorkloadEntry
metadata: {{name: vm, namespace: shop}}
spec: {{address: 198.51.100.7, labels: {{app: web}}, weight: 5, ports: {{tls: 7443}}, locality: r/z}}
"
        )
    };
    let (vm, inline) = (
        "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm",
        "Kubernetes/networking.istio.io/ServiceEntry/shop/out/198.51.100.1",
    );

    let output = translate(&entry("resolution: STATIC\n  endpoints: [{address: 198.51.100.1}]"));
    assert_eq!(output.names(), [UID, inline, vm, "shop/a.example.com", "shop/b.example.com"]);
    assert_eq!(output.members(inline), ["shop/a.example.com 443>8443", "shop/b.example.com 443>8443"]);
    assert!(output.members(vm).is_empty());

    let output = translate(&entry("resolution: STATIC\n  workloadSelector: {labels: {app: web}}"));
    assert_eq!(output.members(vm), ["shop/a.example.com 443>7443", "shop/b.example.com 443>7443"]);
    assert_eq!(output.members(UID), ["shop/a.example.com 443>8443", "shop/b.example.com 443>8443"]);
    assert_eq!(
        (output.workload(vm).capacity, output.workload(vm).tunnel_protocol()),
        (Some(5), TunnelProtocol::None)
    );

    let output = translate(&entry("resolution: DNS"));
    let resolved = "Kubernetes/networking.istio.io/ServiceEntry/shop/out/a.example.com";
    assert_eq!(output.members(resolved), ["shop/a.example.com 443>8443"]);
    assert_eq!(output.workload(resolved).hostname, "a.example.com");

    let output = translate(&entry("resolution: NONE"));
    let balancing = output.service("shop/a.example.com").load_balancing.clone().unwrap();
    assert_eq!(balancing.mode(), Mode::Passthrough);
}

#[test]
fn a_kubernetes_service_has_its_host_before_any_entry() {
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a, namespace: shop}\n\
                 spec: {hosts: [web.shop.svc.cluster.local], resolution: NONE}\n---\n";
    let resources: BTreeMap<_, _> =
        [entry, SERVICE].iter().flat_map(|text| resources(text).0).map(|it| (it.key(), it)).collect();
    let mut translator = Translator::new(Mesh::default());
    let name = OutputName { of: OutputType::Address, name: HOST.into() };
    let owner =
        |translator: &Translator| match address_of(&translator.resource(&name, &mut Fresh::new()).unwrap()) {
            Some(Type::Service(service)) => service.name.clone(),
            other => panic!("{other:?}"),
        };
    for resource in resources.values().rev() {
        translator.apply([Change::Upsert(resource.clone())]);
    }
    assert_eq!(owner(&translator), "web");
    let service = resources.values().find(|resource| matches!(resource, Resource::Service(_))).unwrap().key();
    let delta = translator.apply([Change::Remove(service)]);
    assert_eq!((delta.upserts.len(), owner(&translator).as_str()), (1, "a"));
}
