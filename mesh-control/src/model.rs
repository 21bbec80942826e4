//! The part of Kubernetes and Istio resources that the mesh is made of.
//!
//! A source reads objects of the API (`k8s_openapi` types, or our own for Istio's) and turns them into the types
//! here with `read`, which checks every field the mesh uses and keeps nothing else. Translation therefore never
//! meets a bad port or address, and a change of anything that does not matter (a probe time, a managed field) is
//! no change at all.

pub mod findings;

mod annotations;
mod authorization_policy;
mod endpoint_slice;
mod metadata;
mod namespace;
mod node;
mod peer_authentication;
mod pod;
mod policy;
mod read;
mod service;
mod service_entry;
mod workload_entry;

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use findings::Finding;

pub use authorization_policy::{
    Action, AuthorizationPolicy, AuthorizationPolicyObject, Clause, Match, PolicyBody, Rule, ServiceAccount,
    Values,
};
pub use endpoint_slice::{EndpointSlice, SliceEndpoint, SlicePort};
pub use metadata::{Labels, ObjectName, Selector};
pub(crate) use metadata::{is_label, is_subdomain};
pub use namespace::Namespace;
pub use node::{Locality, Node};
pub use peer_authentication::{MutualTlsMode, PeerAuthentication, PeerAuthenticationObject};
pub use pod::{ContainerPort, Owner, Pod};
pub use read::{judge, read};
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
    /// Istio: who may connect to whom.
    AuthorizationPolicy,
    /// Istio: which ports take mutual TLS.
    PeerAuthentication,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
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
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
        }
    }

    /// The name of the kind in paths of the API and in RBAC.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::ServiceEntry => "serviceentries",
            Self::WorkloadEntry => "workloadentries",
            Self::AuthorizationPolicy => "authorizationpolicies",
            Self::PeerAuthentication => "peerauthentications",
        }
    }

    /// The API group; empty for the core of Kubernetes.
    pub fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod | Self::Service => "",
            Self::EndpointSlice => "discovery.k8s.io",
            Self::ServiceEntry | Self::WorkloadEntry => "networking.istio.io",
            Self::AuthorizationPolicy | Self::PeerAuthentication => "security.istio.io",
        }
    }

    /// The versions of the group that are understood, the best first.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Self::ServiceEntry | Self::WorkloadEntry => &["v1", "v1beta1", "v1alpha3"],
            Self::AuthorizationPolicy | Self::PeerAuthentication => &["v1", "v1beta1"],
            _ => &["v1"],
        }
    }

    /// Whether resources of the kind live in a namespace.
    pub fn namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }

    /// Whether resources of the kind say what is refused. A field of one that is not understood might be a condition.
    pub fn is_policy(self) -> bool {
        matches!(self, Self::AuthorizationPolicy | Self::PeerAuthentication)
    }

    /// Whether the kind is Istio's, which a cluster may or may not have.
    pub fn is_custom(self) -> bool {
        self.group().ends_with(".istio.io")
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
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    PeerAuthentication(Arc<PeerAuthentication>),
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
            Self::AuthorizationPolicy(policy) => (Kind::AuthorizationPolicy, &policy.name),
            Self::PeerAuthentication(policy) => (Kind::PeerAuthentication, &policy.name),
        };
        ResourceKey { kind, name: name.clone() }
    }

    /// What is wrong with it where it is, if anything is: what [`read()`] cannot tell from the object alone.
    pub fn misplaced(&self, root_namespace: &str) -> Option<Finding> {
        match self {
            Self::PeerAuthentication(policy) => policy.misplaced(root_namespace),
            _ => None,
        }
    }

    /// What is served in the place of a policy that was refused, so that a mistake opens nothing.
    pub fn stand_in(key: &ResourceKey, object: &serde_json::Value, findings: &[Finding]) -> Option<Self> {
        match key.kind {
            Kind::AuthorizationPolicy => AuthorizationPolicy::unusable(&key.name, object, findings)
                .map(|policy| Self::AuthorizationPolicy(Arc::new(policy))),
            Kind::PeerAuthentication => PeerAuthentication::unusable(&key.name, object, findings)
                .map(|policy| Self::PeerAuthentication(Arc::new(policy))),
            _ => None,
        }
    }

    /// Whether it stands in for one that was refused, and what that means for those it is for.
    pub fn stands_in(&self) -> Option<&'static str> {
        match self {
            Self::AuthorizationPolicy(policy) if policy.is_unusable() && policy.dry_run => {
                Some("tried out only, as one that denies everything it is for")
            }
            Self::AuthorizationPolicy(policy) if policy.is_unusable() => {
                Some("until it is mended, everything it is for is denied")
            }
            Self::PeerAuthentication(policy) if policy.unusable => {
                Some("until it is mended, it counts as STRICT")
            }
            _ => None,
        }
    }
}
