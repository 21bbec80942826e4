//! What agents get.

use std::net::IpAddr;

use mesh_xds::proto::security::Authorization;
use mesh_xds::proto::workload::address::Type;
use mesh_xds::proto::workload::{Address, NetworkMode, Service, Workload};

/// A resource as agents get it.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// What it is called.
    pub name: OutputName,
    /// `network/ip` for each address of a workload or service: agents may ask by them.
    pub aliases: Vec<String>,
    /// What it says.
    pub message: Message,
}

/// Type and name of a resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutputName {
    /// Its type.
    pub of: OutputType,
    /// `uid` of a workload, `namespace/hostname` of a service, `namespace/name` of a policy.
    pub name: String,
}

/// The types of resources that agents get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutputType {
    /// Policies.
    Authorization,
    /// Workloads and services.
    Address,
}

/// What a resource says.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "each variant is the type of its name")]
pub enum Message {
    Authorization(Authorization),
    Address(Box<Address>),
}

impl From<Workload> for Output {
    fn from(workload: Workload) -> Self {
        // A shared address does not tell who is there.
        let own = workload.network_mode() != NetworkMode::HostNetwork;
        let addresses = workload.addresses.iter().filter(|_| own);
        Self {
            name: OutputName { of: OutputType::Address, name: workload.uid.clone() },
            aliases: addresses.filter_map(|address| alias(&workload.network, address)).collect(),
            message: Message::Address(Box::new(Address { r#type: Some(Type::Workload(workload)) })),
        }
    }
}

impl From<Service> for Output {
    fn from(service: Service) -> Self {
        let addresses = service.addresses.iter();
        let name = format!("{}/{}", service.namespace, service.hostname);
        Self {
            name: OutputName { of: OutputType::Address, name },
            aliases: addresses.filter_map(|address| alias(&address.network, &address.address)).collect(),
            message: Message::Address(Box::new(Address { r#type: Some(Type::Service(service)) })),
        }
    }
}

impl From<Authorization> for Output {
    fn from(policy: Authorization) -> Self {
        let name = format!("{}/{}", policy.namespace, policy.name);
        Self {
            name: OutputName { of: OutputType::Authorization, name },
            aliases: Vec::new(),
            message: Message::Authorization(policy),
        }
    }
}

fn alias(network: &str, octets: &[u8]) -> Option<String> {
    let address = <[u8; 4]>::try_from(octets)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
        .ok()?;
    Some(format!("{network}/{address}"))
}

/// Numbers of outputs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Served {
    /// Workloads.
    pub workloads: usize,
    /// Services.
    pub services: usize,
    /// Policies.
    pub authorizations: usize,
}

impl Served {
    /// Counts a resource that comes, goes or changes.
    pub(super) fn replace(&mut self, was: Option<&Output>, now: Option<&Output>) {
        if let Some(count) = was.and_then(|resource| self.count_of(resource)) {
            *count -= 1;
        }
        if let Some(count) = now.and_then(|resource| self.count_of(resource)) {
            *count += 1;
        }
    }

    fn count_of(&mut self, resource: &Output) -> Option<&mut usize> {
        match &resource.message {
            Message::Authorization(_) => Some(&mut self.authorizations),
            Message::Address(address) => match address.r#type.as_ref()? {
                Type::Workload(_) => Some(&mut self.workloads),
                Type::Service(_) => Some(&mut self.services),
            },
        }
    }
}
