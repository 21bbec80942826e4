//! Turns what a person types into two addresses. What is ambiguous is refused with the choices.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::admin::routes::ApiError;
use crate::config::{ServiceEntry, Snapshot};
use crate::pods::{LocalPod, LocalPods};

/// Choices listed at most.
const CHOICES: usize = 10;

/// A connection to explain. The client's port is 0: it does not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) client: SocketAddr,
    pub(super) destination: SocketAddr,
}

impl Question {
    pub(super) fn parse(
        client: &str,
        destination: &str,
        mesh: &Snapshot,
        pods: &LocalPods,
    ) -> Result<Self, ApiError> {
        let pod = match client.parse::<IpAddr>() {
            Ok(address) => {
                let pod = pods.by_address(address);
                let destination = resolve(destination, mesh, pod, address.is_ipv4())?;
                return Ok(Self { client: SocketAddr::new(address, 0), destination });
            }
            Err(_) => find_pod(client, mesh, pods)?,
        };
        let prefers_v4 = pod.addresses.first().is_none_or(IpAddr::is_ipv4);
        let destination = resolve(destination, mesh, Some(pod), prefers_v4)?;
        // The pod speaks with its address of the destination's family, if it has one.
        let same_family = pod.addresses.iter().find(|address| address.is_ipv4() == destination.is_ipv4());
        let address = same_family.or(pod.addresses.first()).ok_or_else(|| {
            ApiError::Invalid(format!("pod {}/{} has no address yet", pod.namespace, pod.name))
        })?;
        Ok(Self { client: SocketAddr::new(*address, 0), destination })
    }
}

/// The pod of this node called `name` or `namespace/name`.
fn find_pod<'a>(text: &str, mesh: &Snapshot, pods: &'a LocalPods) -> Result<&'a Arc<LocalPod>, ApiError> {
    let (namespace, name) = match text.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, text),
    };
    let mut found: Vec<_> = pods
        .iter()
        .filter(|pod| *pod.name == *name && namespace.is_none_or(|namespace| *pod.namespace == *namespace))
        .collect();
    match (found.pop(), found.len()) {
        (Some(pod), 0) => Ok(pod),
        (Some(pod), _) => {
            found.push(pod);
            let names = found.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name));
            Err(ApiError::Invalid(format!("{text:?} could be {}", choices(names, " or "))))
        }
        (None, _) => {
            if let Some(elsewhere) = elsewhere(text, mesh) {
                return Err(ApiError::NotFound(elsewhere));
            }
            let names = pods.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name));
            Err(ApiError::NotFound(format!(
                "no pod {text:?} on this node; it has {} (clients elsewhere: give their address)",
                choices(names, ", ")
            )))
        }
    }
}

/// Says where a pod called `name` or `namespace/name` is, if it is on another node: each agent knows its own node's.
pub(in crate::admin) fn elsewhere(text: &str, mesh: &Snapshot) -> Option<String> {
    let (namespace, name) =
        text.split_once('/').map_or((None, text), |(namespace, name)| (Some(namespace), name));
    let found = mesh.workloads().find(|workload| {
        workload.name() == name
            && namespace.is_none_or(|namespace| *workload.namespace == *namespace)
            && !workload.node.is_empty()
            && workload.node != mesh.node().name
    })?;
    Some(format!(
        "{}/{name} is on node {}, and this is the agent of {}: ask the one there (`kubectl get pods -n mesh-system -o wide`)",
        found.namespace,
        found.node,
        mesh.node().name
    ))
}

/// The address that `text` (`address:port` or `host:port`) stands for, seen from `pod`.
fn resolve(
    text: &str,
    mesh: &Snapshot,
    pod: Option<&Arc<LocalPod>>,
    prefers_v4: bool,
) -> Result<SocketAddr, ApiError> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let usage = || {
        ApiError::Invalid(format!("{text:?} is no destination: say 10.0.0.1:80, [fd00::1]:80 or web.shop:80"))
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(usage)?;
    let port: u16 = port.parse().map_err(|_| usage())?;
    if host.parse::<std::net::Ipv6Addr>().is_ok() {
        return Err(ApiError::Invalid(format!(
            "{text:?} is ambiguous: put the address in brackets, [{host}]:{port}"
        )));
    }
    let entry = find_service(host, mesh, pod)?;
    let mut addresses: Vec<IpAddr> = entry
        .service
        .addresses
        .iter()
        .filter(|address| address.network == mesh.node().network)
        .map(|address| address.address)
        .collect();
    addresses.sort_by_key(|address| address.is_ipv4() != prefers_v4);
    match addresses.first() {
        Some(address) => Ok(SocketAddr::new(*address, port)),
        None => {
            let endpoints = entry.endpoints.iter().flat_map(|endpoint| {
                let port = endpoint.target_port(port).unwrap_or(port);
                endpoint
                    .workload
                    .addresses
                    .iter()
                    .map(move |address| SocketAddr::new(*address, port).to_string())
            });
            Err(ApiError::Invalid(format!(
                "{} has no address of its own (headless): clients connect to its endpoints, say {}",
                entry.service.id,
                choices(endpoints, " or ")
            )))
        }
    }
}

/// The service that `host` is, as a pod's resolver would have it: a full name, or `name[.namespace[.svc]]`.
fn find_service<'a>(
    host: &str,
    mesh: &'a Snapshot,
    pod: Option<&Arc<LocalPod>>,
) -> Result<&'a Arc<ServiceEntry>, ApiError> {
    let host = host.trim_end_matches('.');
    let own_namespace =
        |entry: &&Arc<ServiceEntry>| pod.is_some_and(|pod| entry.service.id.namespace == pod.namespace);
    let full: Vec<_> = mesh.services().filter(|entry| *entry.service.id.hostname == *host).collect();
    // A name may be defined in several namespaces; the client's own is meant.
    if let Some(entry) = full.iter().copied().find(own_namespace).or(full.first().copied()) {
        return Ok(entry);
    }
    let abbreviated = |entry: &&Arc<ServiceEntry>| {
        let hostname = entry.service.id.hostname.strip_prefix(host);
        hostname.is_some_and(|rest| rest.starts_with('.'))
    };
    let mut found: Vec<_> = mesh.services().filter(abbreviated).collect();
    if found.len() > 1 && found.iter().any(own_namespace) {
        found.retain(own_namespace);
    }
    match found.as_slice() {
        [entry] => Ok(entry),
        [] => Err(ApiError::NotFound(format!(
            "the mesh knows no service {host:?}; see `meshctl services`, or give an address"
        ))),
        several => {
            let names = several.iter().map(|entry| entry.service.id.hostname.to_string());
            Err(ApiError::Invalid(format!("{host:?} could be {}", choices(names, " or "))))
        }
    }
}

/// The first of the choices, in order.
fn choices(all: impl Iterator<Item = String>, separator: &str) -> String {
    let mut all: Vec<_> = all.collect();
    all.sort();
    match all.len() {
        0 => "none".into(),
        count if count > CHOICES => {
            all.truncate(CHOICES);
            format!("{}{separator}{} more", all.join(separator), count - CHOICES)
        }
        _ => all.join(separator),
    }
}
