//! The part of Kubernetes and Istio resources that the mesh is made of.
//!
//! A source reads objects of the API (`k8s_openapi` types, or our own for Istio's) and turns them into the types
//! here with `read`, which checks every field the mesh uses and keeps nothing else. Translation therefore never
//! meets a bad port or address, and a change of anything that does not matter (a probe time, a managed field) is
//! no change at all.

pub mod findings;

mod annotations;
mod endpoint_slice;
mod metadata;
mod namespace;
mod node;
mod pod;
mod service;
mod service_entry;
mod workload_entry;

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

pub use endpoint_slice::{EndpointSlice, SliceEndpoint, SlicePort};
pub use metadata::{Labels, ObjectName, Selector};
pub use namespace::Namespace;
pub use node::{Locality, Node};
pub use pod::{ContainerPort, Owner, Pod};
pub use service::{Service, ServicePort, TargetPort, TrafficDistribution};
pub use service_entry::{EntryEndpoints, Resolution, ServiceEntry, ServiceEntryObject};
pub use workload_entry::{Endpoint, EndpointAddress, WorkloadEntry, WorkloadEntryObject};

/// The kinds of resources the mesh is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Kind {
    /// A namespace; says whether its pods are enrolled.
    Namespace,
    /// A node; says where its pods are.
    Node,
    /// A pod: a workload.
    Pod,
    /// A name and virtual addresses.
    Service,
    /// Endpoints of a service.
    EndpointSlice,
    /// Istio: a service of the mesh or outside that Kubernetes does not know.
    ServiceEntry,
    /// Istio: a workload that is not a pod.
    WorkloadEntry,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::ServiceEntry,
        Self::WorkloadEntry,
    ];

    /// The name of the kind in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
        }
    }

    /// The API group; empty for the core of Kubernetes.
    pub fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod | Self::Service => "",
            Self::EndpointSlice => "discovery.k8s.io",
            Self::ServiceEntry | Self::WorkloadEntry => "networking.istio.io",
        }
    }

    /// The versions of the group that are understood.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Self::ServiceEntry | Self::WorkloadEntry => &["v1", "v1beta1", "v1alpha3"],
            _ => &["v1"],
        }
    }

    /// Whether resources of the kind live in a namespace.
    pub fn namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }

    /// The kind that `kind` in API group `group` names.
    pub fn parse(group: &str, kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == kind && known.group() == group)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// What makes a resource that resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace (empty if its kind has none) and name.
    pub name: ObjectName,
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.kind, self.name)
    }
}

/// A resource of any kind.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "each variant is the type of its name")]
pub enum Resource {
    Namespace(Arc<Namespace>),
    Node(Arc<Node>),
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    ServiceEntry(Arc<ServiceEntry>),
    WorkloadEntry(Arc<WorkloadEntry>),
}

impl Resource {
    /// What makes it this resource.
    pub fn key(&self) -> ResourceKey {
        let (kind, name) = match self {
            Self::Namespace(namespace) => (Kind::Namespace, &namespace.name),
            Self::Node(node) => (Kind::Node, &node.name),
            Self::Pod(pod) => (Kind::Pod, &pod.name),
            Self::Service(service) => (Kind::Service, &service.name),
            Self::EndpointSlice(slice) => (Kind::EndpointSlice, &slice.name),
            Self::ServiceEntry(entry) => (Kind::ServiceEntry, &entry.name),
            Self::WorkloadEntry(entry) => (Kind::WorkloadEntry, &entry.name),
        };
        ResourceKey { kind, name: name.clone() }
    }
}
