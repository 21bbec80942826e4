//! A mesh of any size that looks like those in the field, the same every time.
//!
//! Workloads come in deployments of ten, each with a service account and a service of its own (one cluster IP, port 80 to
//! 8080); twenty deployments make a namespace and fifty workloads a node, in three zones. Every fourth deployment is
//! dual-stack, the others have IPv4. Names are as long as Kubernetes makes them: `app-0042-6f7d9bfc5c-x2v8k`. All are
//! enrolled and none is on a node that a lab has. Addresses are clear of the lab's.

mod lab;
mod manifests;
mod objects;
mod server;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_xds::proto::Any;
use mesh_xds::proto::workload::address::Type;
use mesh_xds::proto::workload::{
    Address, IpFamilies, Locality, NetworkAddress, Port, PortList, Service, TunnelProtocol, Workload,
    WorkloadType,
};
use mesh_xds::server::StoredResource;

pub(crate) use lab::pod_workload;
pub(crate) use objects::SlicedPod;
pub(crate) use server::MeshServer;

/// Workloads of a deployment.
const REPLICAS: usize = 10;
/// Deployments of a namespace.
const DEPLOYMENTS: usize = 20;
/// Workloads of a node.
const PODS_PER_NODE: usize = 50;
/// Every so many deployments, one is dual-stack.
const DUAL_STACK_EVERY: usize = 4;
/// What Kubernetes takes generated names from.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SERVICE_PORT: u16 = 80;
const TARGET_PORT: u16 = 8080;

/// A mesh of that many workloads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SyntheticMesh {
    workloads: usize,
}

/// A deployment with its service.
#[derive(Debug, Clone, Copy)]
struct Deployment {
    number: usize,
    /// The first of its workloads.
    first: usize,
    /// How many there are.
    replicas: usize,
    /// Nodes of the mesh.
    nodes: usize,
}

impl SyntheticMesh {
    /// A mesh of this size.
    pub(crate) fn new(workloads: usize) -> Self {
        Self { workloads }
    }

    fn deployments(self) -> impl Iterator<Item = Deployment> {
        let nodes = self.nodes();
        (0..self.workloads).step_by(REPLICAS).enumerate().map(move |(number, first)| Deployment {
            number,
            first,
            replicas: REPLICAS.min(self.workloads - first),
            nodes,
        })
    }

    fn nodes(self) -> usize {
        self.workloads.div_ceil(PODS_PER_NODE).max(1)
    }

    /// The workloads and services as a control server sends them.
    pub(crate) fn resources(self) -> impl Iterator<Item = StoredResource> {
        self.deployments().flat_map(|deployment| {
            let workloads = deployment.replicas().map(move |replica| stored(Type::Workload(replica)));
            std::iter::once(stored(Type::Service(deployment.service()))).chain(workloads)
        })
    }
}

impl Deployment {
    fn namespace(self) -> String {
        format!("team-{:04}", self.number / DEPLOYMENTS)
    }

    fn app(self) -> String {
        format!("app-{:04}", self.number)
    }

    fn hostname(self) -> String {
        format!("{}.{}.svc.cluster.local", self.app(), self.namespace())
    }

    fn replica_set(self) -> String {
        format!("{}-{}", self.app(), generated(self.number, 10))
    }

    /// Numbers of its workloads.
    fn numbers(self) -> std::ops::Range<usize> {
        self.first..self.first + self.replicas
    }

    fn pod(self, number: usize) -> String {
        format!("{}-{}", self.replica_set(), generated(number, 5))
    }

    fn node(self, number: usize) -> String {
        Self::node_name(number % self.nodes)
    }

    fn node_name(number: usize) -> String {
        format!("node-{number:04}.example.com")
    }

    fn zone(self, number: usize) -> String {
        zone(number % self.nodes)
    }

    /// Addresses out of 172.16.0.0/12 and fd00:10::/96, in the order of the workloads.
    fn addresses(self, number: usize) -> Vec<IpAddr> {
        self.families(Ipv4Addr::new(172, 16, 0, 0), Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0), number)
    }

    /// Addresses out of 100.64.0.0/10 and fd00:20::/96.
    fn cluster_ips(self) -> Vec<IpAddr> {
        self.families(
            Ipv4Addr::new(100, 64, 0, 0),
            Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, 0),
            self.number,
        )
    }

    fn families(self, v4: Ipv4Addr, v6: Ipv6Addr, number: usize) -> Vec<IpAddr> {
        // Neither the network's own address nor its gateway's.
        let offset = u32::try_from(number).unwrap_or(u32::MAX).saturating_add(10);
        let v4 = Ipv4Addr::from(u32::from(v4).saturating_add(offset));
        let v6 = Ipv6Addr::from(u128::from(v6) + u128::from(offset));
        let dual = self.number.is_multiple_of(DUAL_STACK_EVERY);
        std::iter::once(v4.into()).chain(dual.then_some(v6.into())).collect()
    }

    fn replicas(self) -> impl Iterator<Item = Workload> {
        self.numbers().map(move |number| self.workload(number))
    }

    fn workload(self, number: usize) -> Workload {
        let (namespace, app, name) = (self.namespace(), self.app(), self.pod(number));
        let ports = vec![Port {
            service_port: SERVICE_PORT.into(),
            target_port: TARGET_PORT.into(),
            app_protocol: 0,
        }];
        Workload {
            uid: format!("Kubernetes//Pod/{namespace}/{name}"),
            addresses: self.addresses(number).into_iter().map(octets).collect(),
            tunnel_protocol: TunnelProtocol::Hbone.into(),
            service_account: app.clone(),
            node: self.node(number),
            canonical_name: app.clone(),
            canonical_revision: "v1".to_owned(),
            workload_type: WorkloadType::Deployment.into(),
            workload_name: app,
            services: [(format!("{namespace}/{}", self.hostname()), PortList { ports })].into(),
            cluster_id: "Kubernetes".to_owned(),
            locality: Some(Locality {
                region: "region-1".to_owned(),
                zone: self.zone(number),
                subzone: String::new(),
            }),
            name,
            namespace,
            ..Workload::default()
        }
    }

    fn service(self) -> Service {
        let port =
            Port { service_port: SERVICE_PORT.into(), target_port: TARGET_PORT.into(), app_protocol: 0 };
        let addresses = self.cluster_ips();
        let families = if addresses.len() > 1 { IpFamilies::Dual } else { IpFamilies::Ipv4Only };
        Service {
            name: self.app(),
            namespace: self.namespace(),
            hostname: self.hostname(),
            addresses: addresses
                .into_iter()
                .map(|address| NetworkAddress { address: octets(address), ..NetworkAddress::default() })
                .collect(),
            ports: vec![port],
            ip_families: families.into(),
            canonical: true,
            ..Service::default()
        }
    }
}

fn stored(of: Type) -> StoredResource {
    let (name, addresses) = match &of {
        Type::Workload(workload) => (workload.uid.clone(), workload.addresses.clone()),
        Type::Service(service) => {
            let addresses = service.addresses.iter().map(|address| address.address.clone()).collect();
            (format!("{}/{}", service.namespace, service.hostname), addresses)
        }
    };
    let aliases: Vec<String> = addresses.iter().filter_map(|octets| alias(octets)).collect();
    let body = Any::pack(&Address { r#type: Some(of) });
    StoredResource::with_aliases(&name, aliases.iter().map(String::as_str), body)
}

/// The name by which a client may ask for an address of the default network.
fn alias(octets: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    let address = v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()?;
    Some(format!("/{address}"))
}

fn zone(node: usize) -> String {
    format!("zone-{}", node % 3)
}

/// The part of a name that Kubernetes makes up: the same for the same number, and of no order.
fn generated(number: usize, length: usize) -> String {
    // A step of an LCG (Knuth's MMIX): spreads neighbours.
    let mut state =
        (number as u64).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let letters = (0..length).map(|_| {
        state ^= state >> 29;
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let place = usize::try_from((state >> 33) % ALPHABET.len() as u64).unwrap_or_default();
        char::from(ALPHABET.get(place).copied().unwrap_or(b'x'))
    });
    letters.collect()
}

fn octets(address: IpAddr) -> bytes::Bytes {
    match address {
        IpAddr::V4(address) => address.octets().to_vec().into(),
        IpAddr::V6(address) => address.octets().to_vec().into(),
    }
}
