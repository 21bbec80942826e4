//! Connections for tests.

use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use mesh_xds::identity::Identity;

use super::record::{ConnectionRecord, ConnectionSecurity, Direction, Peer, Traffic, Transport};
use crate::config::{LoadBalancing, Service, ServiceName, TunnelProtocol, Workload};
use crate::pods::Redirection;

/// The workload of a pod `<app>-1` in namespace `shop`.
pub(crate) fn workload(app: &str, address: &str) -> Arc<Workload> {
    Arc::new(Workload {
        uid: format!("c1//Pod/shop/{app}-1").into(),
        addresses: vec![address.parse().unwrap()].into(),
        node: "node-1".into(),
        healthy: true,
        terminating: false,
        locality: Default::default(),
        own_name: None,
        load: Default::default(),
        template: Arc::new(crate::config::Template {
            namespace: "shop".into(),
            service_account: app.into(),
            trust_domain: "cluster.local".into(),
            hostname: "".into(),
            network: "".into(),
            cluster: "c1".into(),
            host_network: false,
            canonical_name: app.into(),
            canonical_revision: "v1".into(),
            workload_name: app.into(),
            tunnel: TunnelProtocol::None,
            waypoint: None,
            network_gateway: None,
            weight: 1,
            services: Vec::new(),
            authorization_policies: Vec::new(),
            mutual_tls: Default::default(),
            redirection: Redirection::default(),
            failure_mode: None,
        }),
    })
}

/// The service `web.shop`.
pub(crate) fn service() -> Arc<Service> {
    Arc::new(Service {
        id: ServiceName { namespace: "shop".into(), hostname: "web.shop.svc.cluster.local".into() },
        name: "web".into(),
        addresses: Vec::new(),
        ports: Vec::new(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        load_balancing: LoadBalancing::default(),
    })
}

/// The identity of service account `app` in namespace `shop`.
pub(crate) fn identity(app: &str) -> Arc<Identity> {
    Arc::new(Identity::new("cluster.local", "shop", app))
}

/// [`record`] through a tunnel, both ends proven.
pub(crate) fn tunnelled(id: u64) -> ConnectionRecord {
    let mut record = record(id);
    record.transport = Transport::Hbone;
    record.security = ConnectionSecurity::MutualTls;
    record.source.identity = Some(identity("client"));
    if let Some(destination) = &mut record.destination {
        destination.identity = Some(identity("web"));
    }
    record
}

/// A connection from pod `client-1` through service `web.shop` to pod `web-1`, opened an hour after the epoch.
pub(crate) fn record(id: u64) -> ConnectionRecord {
    ConnectionRecord {
        id,
        direction: Direction::Outbound,
        source: Peer {
            address: "10.0.1.1:40000".parse().unwrap(),
            workload: Some(workload("client", "10.0.1.1")),
            identity: None,
        },
        original_destination: "10.96.0.1:80".parse().unwrap(),
        destination: Some(Peer {
            address: "10.0.2.1:8080".parse().unwrap(),
            workload: Some(workload("web", "10.0.2.1")),
            identity: None,
        }),
        service: Some(service()),
        transport: Transport::Plain,
        security: ConnectionSecurity::None,
        attempts: 1,
        worker: 0,
        opened_at: UNIX_EPOCH + Duration::from_secs(3600),
        opened: Instant::now(),
        traffic: Arc::new(Traffic::default()),
    }
}
