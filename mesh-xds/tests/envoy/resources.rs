//! The few Envoy messages that the test needs, with the field numbers of envoyproxy/data-plane-api.

use mesh_xds::proto::Any;
use mesh_xds::server::StoredResource;
use prost::Message;

pub(crate) const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub(crate) const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

/// `DiscoveryType.EDS`.
const EDS: i32 = 3;
/// `ApiVersion.V3`.
const V3: i32 = 2;

/// A cluster whose endpoints are discovered on the same stream.
pub(crate) fn cluster(name: &str) -> StoredResource {
    stored(name, CLUSTER, &eds_cluster(name))
}

/// A cluster that Envoy cannot use: it is not told where its endpoints come from. (Of a response with a resource
/// that cannot even be decoded or fails its validation rules, Envoy uses nothing at all.)
pub(crate) fn unusable_cluster(name: &str) -> StoredResource {
    stored(name, CLUSTER, &Cluster { eds: None, ..eds_cluster(name) })
}

/// The endpoints of a cluster: one, on the loopback interface.
pub(crate) fn endpoints(cluster: &str, port: u16) -> StoredResource {
    let socket = SocketAddress { address: "127.0.0.1".to_owned(), port: port.into() };
    let endpoint = Endpoint { address: Some(Address { socket: Some(socket) }) };
    let locality = LocalityEndpoints { endpoints: vec![LbEndpoint { endpoint: Some(endpoint) }] };
    let assignment = ClusterLoadAssignment { cluster: cluster.to_owned(), localities: vec![locality] };
    stored(cluster, ENDPOINTS, &assignment)
}

fn eds_cluster(name: &str) -> Cluster {
    let source = ConfigSource { ads: Some(()), resource_api_version: V3 };
    Cluster { name: name.to_owned(), discovery_type: EDS, eds: Some(EdsConfig { source: Some(source) }) }
}

fn stored(name: &str, type_url: &str, message: &impl Message) -> StoredResource {
    let body = Any { type_url: type_url.to_owned(), value: message.encode_to_vec().into() };
    StoredResource::with_aliases(name, [], body)
}

#[derive(Clone, PartialEq, Message)]
struct Cluster {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, tag = "2")]
    discovery_type: i32,
    #[prost(message, optional, tag = "3")]
    eds: Option<EdsConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct EdsConfig {
    #[prost(message, optional, tag = "1")]
    source: Option<ConfigSource>,
}

#[derive(Clone, PartialEq, Message)]
struct ConfigSource {
    #[prost(message, optional, tag = "3")]
    ads: Option<()>,
    #[prost(int32, tag = "6")]
    resource_api_version: i32,
}

#[derive(Clone, PartialEq, Message)]
struct ClusterLoadAssignment {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(message, repeated, tag = "2")]
    localities: Vec<LocalityEndpoints>,
}

#[derive(Clone, PartialEq, Message)]
struct LocalityEndpoints {
    #[prost(message, repeated, tag = "2")]
    endpoints: Vec<LbEndpoint>,
}

#[derive(Clone, PartialEq, Message)]
struct LbEndpoint {
    #[prost(message, optional, tag = "1")]
    endpoint: Option<Endpoint>,
}

#[derive(Clone, PartialEq, Message)]
struct Endpoint {
    #[prost(message, optional, tag = "1")]
    address: Option<Address>,
}

#[derive(Clone, PartialEq, Message)]
struct Address {
    #[prost(message, optional, tag = "1")]
    socket: Option<SocketAddress>,
}

#[derive(Clone, PartialEq, Message)]
struct SocketAddress {
    #[prost(string, tag = "2")]
    address: String,
    #[prost(uint32, tag = "3")]
    port: u32,
}
