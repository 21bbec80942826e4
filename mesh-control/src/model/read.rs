//! Objects as the types of their kinds, with the unknown fields and the place of a mistake.

use std::sync::Arc;

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde::de::DeserializeOwned;

use super::findings::{FieldPath, Finding, Findings, Segment};
use super::{
    AuthorizationPolicy, AuthorizationPolicyObject, EndpointSlice, Kind, Namespace, Node, PeerAuthentication,
    PeerAuthenticationObject, Pod, Resource, Service, ServiceEntry, ServiceEntryObject, WorkloadEntry,
    WorkloadEntryObject,
};

/// Reads an object as [`read`] does, and says what a mesh with this root namespace thinks of it.
pub fn judge(
    kind: Kind,
    object: serde_json::Value,
    root_namespace: &str,
) -> (Option<Resource>, Vec<Finding>) {
    let (resource, mut findings) = read(kind, object);
    findings.extend(resource.as_ref().and_then(|resource| resource.misplaced(root_namespace)));
    (resource, findings)
}

/// Reads an object of the Kubernetes API as its kind. No resource comes with at least one refusal.
pub fn read(kind: Kind, object: serde_json::Value) -> (Option<Resource>, Vec<Finding>) {
    match kind {
        Kind::Namespace => read_as(kind, object, |object: core::Namespace, findings| {
            Resource::Namespace(Arc::new(Namespace::read(object, findings)))
        }),
        Kind::Node => read_as(kind, object, |object: core::Node, findings| {
            Resource::Node(Arc::new(Node::read(object, findings)))
        }),
        Kind::Pod => read_as(kind, object, |object: core::Pod, findings| {
            Resource::Pod(Arc::new(Pod::read(object, findings)))
        }),
        Kind::Service => read_as(kind, object, |object: core::Service, findings| {
            Resource::Service(Arc::new(Service::read(object, findings)))
        }),
        Kind::EndpointSlice => read_as(kind, object, |object: discovery::EndpointSlice, findings| {
            Resource::EndpointSlice(Arc::new(EndpointSlice::read(object, findings)))
        }),
        Kind::ServiceEntry => read_as(kind, object, |object: ServiceEntryObject, findings| {
            Resource::ServiceEntry(Arc::new(ServiceEntry::read(object, findings)))
        }),
        Kind::WorkloadEntry => read_as(kind, object, |object: WorkloadEntryObject, findings| {
            Resource::WorkloadEntry(Arc::new(WorkloadEntry::read(object, findings)))
        }),
        Kind::AuthorizationPolicy => read_as(kind, object, |object: AuthorizationPolicyObject, findings| {
            Resource::AuthorizationPolicy(Arc::new(AuthorizationPolicy::read(object, findings)))
        }),
        Kind::PeerAuthentication => read_as(kind, object, |object: PeerAuthenticationObject, findings| {
            Resource::PeerAuthentication(Arc::new(PeerAuthentication::read(object, findings)))
        }),
    }
}

fn read_as<T: DeserializeOwned>(
    kind: Kind,
    object: serde_json::Value,
    read: impl FnOnce(T, &mut Findings) -> Resource,
) -> (Option<Resource>, Vec<Finding>) {
    let mut findings = Findings::default();
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(object, &mut track);
    let object: Result<T, _> =
        serde_ignored::deserialize(deserializer, |field| unknown.push(unknown_path(&field)));
    for field in unknown {
        if kind.is_policy() && field.segments().first() == Some(&Segment::from("spec")) {
            findings.refuse(field, "is not a field of this kind: without it the policy would say less");
        } else {
            findings.warn(field, "is not a field of this kind and has no effect: is it misspelt?");
        }
    }
    let resource = match object {
        Ok(object) => Some(read(object, &mut findings)),
        Err(error) => {
            findings.refuse(error_path(&track.path()), error.to_string());
            None
        }
    };
    let resource = resource.filter(|_| !findings.refused());
    (resource, findings.into_vec())
}

fn unknown_path(path: &serde_ignored::Path<'_>) -> FieldPath {
    use serde_ignored::Path;
    match path {
        Path::Root => FieldPath::default(),
        Path::Seq { parent, index } => unknown_path(parent).then(*index),
        Path::Map { parent, key } => unknown_path(parent).then(key),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            unknown_path(parent)
        }
    }
}

fn error_path(path: &serde_path_to_error::Path) -> FieldPath {
    path.iter()
        .filter_map(|segment| match segment {
            serde_path_to_error::Segment::Seq { index } => Some(Segment::Index(*index)),
            serde_path_to_error::Segment::Map { key } => Some(Segment::from(key)),
            serde_path_to_error::Segment::Enum { .. } | serde_path_to_error::Segment::Unknown => None,
        })
        .collect()
}
