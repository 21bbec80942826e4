//! What the control server says: workloads, services and where they are.
//!
//! [`Snapshot`] is immutable and replaced as a whole; a connection takes one and keeps it to its end. Only the
//! [`Store`] makes new ones, out of the control server's updates or the last good state on disk.

pub mod cache;
pub mod client;
mod convert;
mod intern;
mod load;
mod model;
mod snapshot;
mod store;
mod table;

pub use convert::InvalidResource;
pub use load::{ActiveConnection, EndpointLoad, SharedLoad};
pub use model::{
    BalanceMode, Gateway, GatewayAddress, HealthPolicy, LoadBalancing, Locality, MutualTls, MutualTlsMode,
    NetworkAddress, PortMapping, RoutingScope, Service, ServiceName, ServicePort, Template, TunnelProtocol,
    Workload,
};
pub use snapshot::{Endpoint, Endpoints, LocalNode, ServiceEntry, Snapshot, Tier};
pub use store::{Change, SharedSnapshot, Store};
