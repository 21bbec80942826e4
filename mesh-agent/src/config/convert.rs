//! From the wire to the agent's own types. What is wrong with a resource is found here, once, and told to the
//! control server (NACK); behind this line every port is a port and every address an address.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use mesh_xds::HBONE_PORT;
use mesh_xds::proto::{UnpackError, mesh, workload as wire};

use super::intern::Pools;
use super::load::SharedLoad;
use super::model::{
    BalanceMode, Gateway, GatewayAddress, HealthPolicy, LoadBalancing, Locality, MutualTls, MutualTlsMode,
    NetworkAddress, PortMapping, RoutingScope, Service, ServiceName, ServicePort, Template, TunnelProtocol,
    Workload,
};
use super::store::Change;
use crate::pods::{CidrSelection, FailureMode, PortSelection, Redirection};
use crate::policy::Strings;

#[cfg(test)]
mod tests;

const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// Why a resource cannot be used. The last good version of it stays.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidResource {
    /// Neither a workload nor a service.
    #[error("the resource holds neither a workload nor a service")]
    Empty,
    /// A field that must not be empty is.
    #[error("{field} is empty")]
    Missing {
        /// Name of the field.
        field: &'static str,
    },
    /// The resource is called other than what it holds.
    #[error("the resource is named {name:?} but holds {holds:?}")]
    WrongName {
        /// Resource name.
        name: String,
        /// Name by content.
        holds: String,
    },
    /// Not 4 or 16 bytes.
    #[error("{field}: an address has 4 or 16 bytes, this one has {length}")]
    Address {
        /// Name of the field.
        field: &'static str,
        /// Bytes found.
        length: usize,
    },
    /// Out of range.
    #[error("{field}: {port} is not a TCP port")]
    Port {
        /// Name of the field.
        field: &'static str,
        /// Number found.
        port: u32,
    },
    /// Longer than the address.
    #[error("{field}: a prefix of {length} bits is longer than the address")]
    Prefix {
        /// Name of the field.
        field: &'static str,
        /// Bits found.
        length: u32,
    },
    /// Not `<namespace>/<hostname>`.
    #[error("services: {name:?} is not of the form <namespace>/<hostname>")]
    ServiceName {
        /// Text found.
        name: String,
    },
    /// An enum value this agent does not know.
    #[error("{field}: {value} is unknown to this agent")]
    UnknownValue {
        /// Name of the field.
        field: &'static str,
        /// Number found.
        value: i32,
    },
    /// One of our own extensions cannot be read.
    #[error("extensions: {0}")]
    Extension(#[from] UnpackError),
}

/// Reads the resource called `name`.
///
/// # Errors
/// Says which field cannot be used and why.
pub(super) fn change(
    name: &str,
    address: wire::Address,
    pools: &mut Pools,
) -> Result<Change, InvalidResource> {
    let (holds, change) = match address.r#type.ok_or(InvalidResource::Empty)? {
        wire::address::Type::Workload(message) => {
            let workload = workload(message, pools)?;
            (Arc::clone(&workload.uid), Change::Workload(Arc::new(workload)))
        }
        wire::address::Type::Service(message) => {
            let service = service(message, &mut pools.strings)?;
            (service.id.to_string().into(), Change::Service(Arc::new(service)))
        }
    };
    if *holds != *name {
        return Err(InvalidResource::WrongName { name: name.to_owned(), holds: holds.to_string() });
    }
    Ok(change)
}

fn workload(message: wire::Workload, pools: &mut Pools) -> Result<Workload, InvalidResource> {
    if message.uid.is_empty() {
        return Err(InvalidResource::Missing { field: "uid" });
    }
    let rules = message.traffic_redirection()?;
    let failure_mode = match rules.as_ref().map(mesh::TrafficRedirection::failure_mode) {
        Some(mesh::FailureMode::Closed) => Some(FailureMode::Closed),
        Some(mesh::FailureMode::Open) => Some(FailureMode::Open),
        Some(mesh::FailureMode::AgentDefault) | None => None,
    };
    let mutual_tls = message.mutual_tls()?.map(mutual_tls).transpose()?.unwrap_or_default();
    let redirection = rules.map(redirection).transpose()?.unwrap_or_default();
    let status = known::<wire::WorkloadStatus>("status", message.status)?;
    let terminating = status != wire::WorkloadStatus::Healthy && message.is_terminating();
    let tunnel = match known::<wire::TunnelProtocol>("tunnel_protocol", message.tunnel_protocol)? {
        wire::TunnelProtocol::Hbone if message.native_tunnel => TunnelProtocol::NativeHbone,
        wire::TunnelProtocol::Hbone => TunnelProtocol::Hbone,
        // A sidecar accepts plain TCP too unless it is strict; it is not ours to speak its protocol.
        wire::TunnelProtocol::None | wire::TunnelProtocol::LegacyIstioMtls => TunnelProtocol::None,
    };
    let host_network =
        known::<wire::NetworkMode>("network_mode", message.network_mode)? == wire::NetworkMode::HostNetwork;
    let Pools { strings, templates, localities } = pools;
    let mut services = Vec::with_capacity(message.services.len());
    for (name, ports) in message.services {
        let id = ServiceName::parse(&name).ok_or(InvalidResource::ServiceName { name })?;
        let id =
            ServiceName { namespace: strings.share(&id.namespace), hostname: strings.share(&id.hostname) };
        services.push((id, ports.ports.iter().map(port_mapping).collect::<Result<_, InvalidResource>>()?));
    }
    let template = Template {
        namespace: strings.share(&message.namespace),
        service_account: strings.share(or_default(&message.service_account, DEFAULT_SERVICE_ACCOUNT)),
        trust_domain: strings.share(or_default(&message.trust_domain, DEFAULT_TRUST_DOMAIN)),
        hostname: strings.share(&message.hostname),
        network: strings.share(&message.network),
        cluster: strings.share(&message.cluster_id),
        host_network,
        canonical_name: strings.share(&message.canonical_name),
        canonical_revision: strings.share(&message.canonical_revision),
        workload_name: strings.share(&message.workload_name),
        tunnel,
        waypoint: message.waypoint.map(|address| gateway("waypoint", address)).transpose()?,
        network_gateway: message
            .network_gateway
            .map(|address| gateway("network_gateway", address))
            .transpose()?,
        weight: message.capacity.unwrap_or(1),
        services,
        authorization_policies: message
            .authorization_policies
            .iter()
            .map(|name| strings.share(name))
            .collect(),
        mutual_tls,
        redirection,
        failure_mode,
    };
    let has_own_name = message.uid.rsplit('/').next() != Some(message.name.as_str());
    Ok(Workload {
        uid: message.uid.into(),
        own_name: has_own_name.then(|| message.name.into()),
        addresses: message
            .addresses
            .iter()
            .map(|bytes| ip("addresses", bytes))
            .collect::<Result<_, InvalidResource>>()?,
        node: strings.share(&message.node),
        locality: localities.share(locality(message.locality.unwrap_or_default(), strings)),
        healthy: status == wire::WorkloadStatus::Healthy,
        terminating,
        template: templates.share(template),
        load: SharedLoad::default(),
    })
}

fn mutual_tls(message: mesh::MutualTls) -> Result<MutualTls, InvalidResource> {
    let mode = |value| -> Result<_, InvalidResource> {
        Ok(match known::<mesh::mutual_tls::Mode>("extensions: mutual-tls", value)? {
            mesh::mutual_tls::Mode::Permissive => MutualTlsMode::Permissive,
            mesh::mutual_tls::Mode::Strict => MutualTlsMode::Strict,
            mesh::mutual_tls::Mode::Disable => MutualTlsMode::Disable,
        })
    };
    let ports = message
        .ports
        .into_iter()
        .map(|port| Ok((tcp_port("extensions: mutual-tls", port.port)?, mode(port.mode)?)));
    Ok(MutualTls {
        ports: ports.collect::<Result<_, InvalidResource>>()?,
        mode: mode(message.mode)?,
        policy: message.policy.into(),
    })
}

fn service(message: wire::Service, strings: &mut Strings) -> Result<Service, InvalidResource> {
    let affinity = message.session_affinity()?.map(|affinity| affinity.timeout_seconds);
    for (field, value) in [("namespace", &message.namespace), ("hostname", &message.hostname)] {
        if value.is_empty() {
            return Err(InvalidResource::Missing { field });
        }
    }
    Ok(Service {
        id: ServiceName {
            namespace: strings.share(&message.namespace),
            hostname: strings.share(&message.hostname),
        },
        name: strings.share(&message.name),
        addresses: message
            .addresses
            .into_iter()
            // A range is served by its waypoint only; there is nothing to balance to behind it.
            .filter(|address| address.length.is_none())
            .map(|address| {
                let place = network_address("addresses", address)?;
                Ok(NetworkAddress { network: strings.share(&place.network), ..place })
            })
            .collect::<Result<_, InvalidResource>>()?,
        ports: message
            .ports
            .iter()
            .map(|port| {
                Ok(ServicePort {
                    service_port: tcp_port("ports.service_port", port.service_port)?,
                    target_port: port_or_zero("ports.target_port", port.target_port)?,
                })
            })
            .collect::<Result<_, InvalidResource>>()?,
        subject_alt_names: message.subject_alt_names.into_iter().map(Into::into).collect(),
        waypoint: message.waypoint.map(|address| gateway("waypoint", address)).transpose()?,
        load_balancing: LoadBalancing {
            session_affinity: affinity.map(|seconds| Duration::from_secs(seconds.into())),
            ..message.load_balancing.map(load_balancing).transpose()?.unwrap_or_default()
        },
    })
}

fn load_balancing(message: wire::LoadBalancing) -> Result<LoadBalancing, InvalidResource> {
    use wire::load_balancing as wire;
    let preference = message
        .routing_preference
        .iter()
        .map(|value| {
            Ok(match known::<wire::Scope>("load_balancing.routing_preference", *value)? {
                wire::Scope::UnspecifiedScope => None,
                wire::Scope::Region => Some(RoutingScope::Region),
                wire::Scope::Zone => Some(RoutingScope::Zone),
                wire::Scope::Subzone => Some(RoutingScope::Subzone),
                wire::Scope::Node => Some(RoutingScope::Node),
                wire::Scope::Cluster => Some(RoutingScope::Cluster),
                wire::Scope::Network => Some(RoutingScope::Network),
            })
        })
        .filter_map(Result::transpose)
        .collect::<Result<_, InvalidResource>>()?;
    let mode = match known::<wire::Mode>("load_balancing.mode", message.mode)? {
        wire::Mode::UnspecifiedMode => BalanceMode::Any,
        wire::Mode::Strict => BalanceMode::Strict,
        wire::Mode::Failover => BalanceMode::Failover,
        wire::Mode::Passthrough => BalanceMode::Passthrough,
    };
    let health_policy =
        match known::<wire::HealthPolicy>("load_balancing.health_policy", message.health_policy)? {
            wire::HealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
            wire::HealthPolicy::AllowAll => HealthPolicy::AllowAll,
        };
    Ok(LoadBalancing { preference, mode, health_policy, session_affinity: None })
}

fn gateway(field: &'static str, message: wire::GatewayAddress) -> Result<Gateway, InvalidResource> {
    use wire::gateway_address::Destination;
    let address = match message.destination.ok_or(InvalidResource::Missing { field })? {
        Destination::Hostname(name) => GatewayAddress::Service(ServiceName {
            namespace: name.namespace.into(),
            hostname: name.hostname.into(),
        }),
        Destination::Address(address) => GatewayAddress::Address(network_address(field, address)?),
    };
    let hbone_port = match port_or_zero(field, message.hbone_mtls_port)? {
        0 => HBONE_PORT,
        port => port,
    };
    Ok(Gateway { address, hbone_port })
}

fn redirection(message: mesh::TrafficRedirection) -> Result<Redirection, InvalidResource> {
    Ok(Redirection {
        include_inbound_ports: match message.include_inbound_ports {
            None => PortSelection::All,
            Some(only) => PortSelection::Only(ports("include_inbound_ports", only.ports)?),
        },
        exclude_inbound_ports: ports("exclude_inbound_ports", message.exclude_inbound_ports)?,
        include_outbound_ports: ports("include_outbound_ports", message.include_outbound_ports)?,
        exclude_outbound_ports: ports("exclude_outbound_ports", message.exclude_outbound_ports)?,
        include_outbound_cidrs: match message.include_outbound_cidrs {
            None => CidrSelection::All,
            Some(only) => CidrSelection::Only(ranges("include_outbound_cidrs", only.ranges)?),
        },
        exclude_outbound_cidrs: ranges("exclude_outbound_cidrs", message.exclude_outbound_cidrs)?,
    })
}

fn ports(field: &'static str, ports: Vec<u32>) -> Result<BTreeSet<u16>, InvalidResource> {
    ports.into_iter().map(|port| tcp_port(field, port)).collect()
}

fn ranges(field: &'static str, ranges: Vec<mesh::Cidr>) -> Result<BTreeSet<IpNet>, InvalidResource> {
    ranges.iter().map(|range| cidr(field, range)).collect()
}

fn cidr(field: &'static str, message: &mesh::Cidr) -> Result<IpNet, InvalidResource> {
    let address = ip(field, &message.address)?;
    let prefix = || InvalidResource::Prefix { field, length: message.length };
    let length = u8::try_from(message.length).map_err(|_| prefix())?;
    IpNet::new(address, length).map(|net| net.trunc()).map_err(|_| prefix())
}

fn network_address(
    field: &'static str,
    message: wire::NetworkAddress,
) -> Result<NetworkAddress, InvalidResource> {
    Ok(NetworkAddress { address: ip(field, &message.address)?, network: message.network.into() })
}

fn locality(message: wire::Locality, strings: &mut Strings) -> Locality {
    Locality {
        region: strings.share(&message.region),
        zone: strings.share(&message.zone),
        subzone: strings.share(&message.subzone),
    }
}

fn port_mapping(port: &wire::Port) -> Result<PortMapping, InvalidResource> {
    Ok(PortMapping {
        service_port: tcp_port("services.service_port", port.service_port)?,
        target_port: tcp_port("services.target_port", port.target_port)?,
    })
}

fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, InvalidResource> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        Ok(IpAddr::from(octets))
    } else if let Ok(octets) = <[u8; 16]>::try_from(bytes) {
        Ok(IpAddr::from(octets))
    } else {
        Err(InvalidResource::Address { field, length: bytes.len() })
    }
}

fn tcp_port(field: &'static str, port: u32) -> Result<u16, InvalidResource> {
    match port_or_zero(field, port)? {
        0 => Err(InvalidResource::Port { field, port }),
        port => Ok(port),
    }
}

fn port_or_zero(field: &'static str, port: u32) -> Result<u16, InvalidResource> {
    u16::try_from(port).map_err(|_| InvalidResource::Port { field, port })
}

fn known<E: TryFrom<i32>>(field: &'static str, value: i32) -> Result<E, InvalidResource> {
    E::try_from(value).map_err(|_| InvalidResource::UnknownValue { field, value })
}

fn or_default<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}
