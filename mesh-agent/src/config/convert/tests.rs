use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn workload_message() -> wire::Workload {
    wire::Workload {
        uid: "c//Pod/shop/web".into(),
        name: "web".into(),
        namespace: "shop".into(),
        addresses: vec![
            Bytes::from_static(&[10, 0, 0, 1]),
            Bytes::from_static(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ],
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        services: BTreeMap::from([(
            "shop/web.shop.svc.cluster.local".into(),
            wire::PortList {
                ports: vec![wire::Port { service_port: 80, target_port: 8080, ..Default::default() }],
            },
        )]),
        ..Default::default()
    }
}

fn resource(workload: wire::Workload) -> wire::Address {
    wire::Address { r#type: Some(wire::address::Type::Workload(workload)) }
}

fn read(workload: wire::Workload) -> Result<Arc<Workload>, InvalidResource> {
    match change(&workload.uid.clone(), resource(workload), &mut Pools::default())? {
        Change::Workload(workload) => Ok(workload),
        other => panic!("not a workload: {other:?}"),
    }
}

#[test]
fn a_workload_is_read_with_its_defaults() {
    let workload = read(workload_message()).unwrap();
    assert_eq!(*workload.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    assert_eq!(workload.tunnel, TunnelProtocol::Hbone);
    assert_eq!((&*workload.trust_domain, &*workload.service_account), ("cluster.local", "default"));
    assert!(workload.healthy);
    assert_eq!(workload.weight, 1);
    assert_eq!(workload.services[0].1, [PortMapping { service_port: 80, target_port: 8080 }]);
    assert_eq!(workload.redirection, Redirection::default());
}

#[test]
fn redirection_rules_travel_with_the_workload() {
    let mut message = workload_message();
    message.set_traffic_redirection(&mesh::TrafficRedirection {
        include_inbound_ports: Some(mesh::Ports { ports: vec![8080] }),
        exclude_outbound_ports: vec![5432],
        exclude_outbound_cidrs: vec![mesh::Cidr { address: Bytes::from_static(&[10, 9, 8, 7]), length: 16 }],
        failure_mode: mesh::FailureMode::Closed.into(),
        ..Default::default()
    });
    let workload = read(message).unwrap();
    assert_eq!(workload.failure_mode, Some(FailureMode::Closed));
    assert_eq!(workload.redirection.include_inbound_ports, PortSelection::Only([8080].into()));
    assert_eq!(workload.redirection.exclude_outbound_ports, [5432].into());
    assert_eq!(workload.redirection.exclude_outbound_cidrs, ["10.9.0.0/16".parse().unwrap()].into());
}

#[test]
fn a_workload_that_ends_is_a_last_resort_and_a_service_may_keep_its_clients() {
    let mut message = workload_message();
    message.set_terminating();
    assert!(!read(message.clone()).unwrap().terminating, "one that is healthy needs no last resort");
    message.status = wire::WorkloadStatus::Unhealthy.into();
    assert!(read(message).unwrap().terminating);

    let mut web = wire::Service { namespace: "shop".into(), hostname: "web".into(), ..Default::default() };
    web.set_session_affinity(&mesh::SessionAffinity { timeout_seconds: 10_800 });
    let address = wire::Address { r#type: Some(wire::address::Type::Service(web)) };
    let Change::Service(service) = change("shop/web", address, &mut Pools::default()).unwrap() else {
        panic!("not a service")
    };
    assert_eq!(service.load_balancing.session_affinity, Some(Duration::from_secs(10_800)));
}

#[test]
fn what_cannot_be_used_is_refused_with_the_field() {
    let refused = |edit: fn(&mut wire::Workload)| {
        let mut message = workload_message();
        edit(&mut message);
        read(message).unwrap_err().to_string()
    };
    assert_eq!(refused(|w| w.uid.clear()), "uid is empty");
    assert_eq!(
        refused(|w| w.addresses.push(Bytes::from_static(b"xyz"))),
        "addresses: an address has 4 or 16 bytes, this one has 3"
    );
    assert_eq!(refused(|w| w.status = 77), "status: 77 is unknown to this agent");
    assert_eq!(
        refused(|w| {
            w.services.insert("nonsense".into(), wire::PortList::default());
        }),
        "services: \"nonsense\" is not of the form <namespace>/<hostname>"
    );
    assert_eq!(
        refused(|w| {
            let port = wire::Port { service_port: 70_000, target_port: 1, ..Default::default() };
            w.services.insert("a/b".into(), wire::PortList { ports: vec![port] });
        }),
        "services.service_port: 70000 is not a TCP port"
    );
    assert_eq!(
        refused(|w| {
            let address = Bytes::from_static(&[10, 0, 0, 0]);
            w.set_traffic_redirection(&mesh::TrafficRedirection {
                exclude_outbound_cidrs: vec![mesh::Cidr { address, length: 33 }],
                ..Default::default()
            });
        }),
        "exclude_outbound_cidrs: a prefix of 33 bits is longer than the address"
    );
}

#[test]
fn a_resource_is_called_what_it_holds() {
    let error = change("c//Pod/shop/other", resource(workload_message()), &mut Pools::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the resource is named \"c//Pod/shop/other\" but holds \"c//Pod/shop/web\""
    );
    assert_eq!(
        change("x", wire::Address { r#type: None }, &mut Pools::default()).unwrap_err(),
        InvalidResource::Empty
    );
}

proptest! {
    /// Whatever bytes arrive, reading them ends in a change or an error.
    #[test]
    fn no_bytes_crash_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(address) = <wire::Address as prost::Message>::decode(&*bytes) {
            let _ = change("name", address, &mut Pools::default());
        }
    }

    /// A valid message with some bytes changed.
    #[test]
    fn no_mutation_crashes_the_reader(edits in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..8)) {
        let mut bytes = prost::Message::encode_to_vec(&resource(workload_message()));
        for (at, value) in edits {
            let at = usize::from(at) % bytes.len();
            bytes[at] = value;
        }
        if let Ok(address) = <wire::Address as prost::Message>::decode(&*bytes) {
            let _ = change("c//Pod/shop/web", address, &mut Pools::default());
        }
    }
}
