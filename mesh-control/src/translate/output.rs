//! What agents get.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_xds::proto::Any;
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
    pub name: Arc<str>,
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
            name: OutputName { of: OutputType::Address, name: workload.uid.as_str().into() },
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
            name: OutputName { of: OutputType::Address, name: name.into() },
            aliases: addresses.filter_map(|address| alias(&address.network, &address.address)).collect(),
            message: Message::Address(Box::new(Address { r#type: Some(Type::Service(service)) })),
        }
    }
}

impl From<Authorization> for Output {
    fn from(policy: Authorization) -> Self {
        let name = format!("{}/{}", policy.namespace, policy.name);
        Self {
            name: OutputName { of: OutputType::Authorization, name: name.into() },
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

/// What is remembered of a resource that was told: enough to see whether another one says the same. Whoever produced it can
/// produce it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Summary {
    class: Class,
    /// SipHash of the content: two that differ have the same once in 2⁶⁴ times.
    digest: u64,
}

/// What is counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Workload,
    Service,
    Authorization,
}

impl Output {
    /// The message as it is sent.
    pub fn body(&self) -> Any {
        match &self.message {
            Message::Authorization(authorization) => Any::pack(authorization),
            Message::Address(address) => Any::pack(address.as_ref()),
        }
    }

    pub(super) fn summary(&self) -> Summary {
        let class = match &self.message {
            Message::Authorization(_) => Class::Authorization,
            Message::Address(address) => match address.r#type {
                Some(Type::Service(_)) => Class::Service,
                Some(Type::Workload(_)) | None => Class::Workload,
            },
        };
        let mut hasher = DefaultHasher::new();
        self.aliases.hash(&mut hasher);
        self.body().hash(&mut hasher);
        Summary { class, digest: hasher.finish() }
    }
}

impl Served {
    /// Counts a resource that comes, goes or changes.
    pub(super) fn replace(&mut self, was: Option<Summary>, now: Option<Summary>) {
        if let Some(was) = was {
            *self.count_of(was.class) -= 1;
        }
        if let Some(now) = now {
            *self.count_of(now.class) += 1;
        }
    }

    fn count_of(&mut self, class: Class) -> &mut usize {
        match class {
            Class::Workload => &mut self.workloads,
            Class::Service => &mut self.services,
            Class::Authorization => &mut self.authorizations,
        }
    }
}
