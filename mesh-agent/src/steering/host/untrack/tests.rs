//! A node with a service whose virtual address is rewritten as kube-proxy does it, and a transparent listener.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::*;
use crate::steering::host::routes::PolicyRouting;
use crate::steering::host::testing::{AROUND, CAPTURE, Namespace, in_namespace, in_namespace_async, shell};

#[test]
fn the_table_comes_and_goes() {
    in_namespace(|| {
        assert!(!installed().unwrap());
        assert!(!remove().unwrap());
        for _ in 0..2 {
            install(CAPTURE, AROUND).unwrap();
            assert!(installed().unwrap());
        }
        assert!(remove().unwrap());
        assert!(!installed().unwrap());
    });
}

#[test]
fn a_service_address_survives_kube_proxys_nat_only_untracked() {
    in_namespace_async(async || {
        let pod = Namespace::new();
        // Strict reverse path filtering, with and without the mark in the look-up, must not matter.
        shell("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1");
        shell(
            "ip link add pod0 type veth peer name eth0 && ip link set pod0 up \
             && ip address add 10.7.0.1/24 dev pod0 && ip address add fd07::1/64 dev pod0 nodad \
             && sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        );
        pod.take_device("eth0");
        pod.run(|| {
            shell(
                "ip link set eth0 up && ip address add 10.7.0.2/24 dev eth0 \
                 && ip address add fd07::2/64 dev eth0 nodad \
                 && ip route add default via 10.7.0.1 && ip -6 route add default via fd07::1",
            )
        });
        let routing = PolicyRouting { mark: CAPTURE, around: AROUND, table: 15_109, preference: 99 };
        routing.install().await.unwrap();
        for (service, backend) in [("10.96.0.10:80", "10.7.1.9:8080"), ("[fd96::10]:80", "[fd07:1::9]:8080")]
        {
            let service: SocketAddr = service.parse().unwrap();
            let name = if service.is_ipv4() { "kube_proxy_4" } else { "kube_proxy_6" };
            kube_proxy(name, service, backend.parse().unwrap());
            let listener = transparent_listener(service);

            assert!(connect(&pod, &listener, service).is_err(), "tracked, it is sent to the backend");
            install(CAPTURE, AROUND).unwrap();
            for valid in ["0", "1"] {
                shell(&format!("sysctl -qw net.ipv4.conf.all.src_valid_mark={valid}"));
                assert_eq!(connect(&pod, &listener, service).unwrap(), service);
            }
            remove().unwrap();
        }
    });
}

/// Connects from the pod and returns the destination that the listener sees.
fn connect(pod: &Namespace, listener: &TcpListener, service: SocketAddr) -> io::Result<SocketAddr> {
    let _client = pod.run(|| TcpStream::connect_timeout(&service, Duration::from_millis(500)))?;
    listener.accept()?.0.local_addr()
}

/// Listens on the service's port of any address, with the mark on all that it sends.
fn transparent_listener(service: SocketAddr) -> TcpListener {
    let any: IpAddr = if service.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = Socket::new(Domain::for_address(service), Type::STREAM, Some(Protocol::TCP)).unwrap();
    if service.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    socket.set_ip_transparent_v4(true).unwrap();
    socket.set_mark(CAPTURE.value).unwrap();
    socket.bind(&SocketAddr::new(any, service.port()).into()).unwrap();
    socket.listen(8).unwrap();
    socket.into()
}

/// A table that marks what comes from outside, as `steer` does, and one that rewrites the service's address.
fn kube_proxy(name: &str, service: SocketAddr, backend: SocketAddr) {
    const META_SOURCE: u16 = 3;
    const META_KEY: u16 = 2;
    const META_CAPTURE: u32 = 3;

    let mut batch = Batch::new();
    batch.add_table(name);
    batch.add_chain(name, "steer", "filter", Hook::PreRouting, PRIORITY_RAW - 10);
    let mut mark = Attributes::new();
    load(&mut mark, 1, &CAPTURE.value.to_ne_bytes());
    nfnetlink::expression(&mut mark, "meta", |meta| {
        meta.number(META_KEY, META_CAPTURE);
        meta.number(META_SOURCE, 1);
    });
    batch.add_rule(name, "steer", mark);

    batch.add_chain(name, "services", "nat", Hook::PreRouting, -100);
    batch.add_rule(name, "services", rewrite(service.ip(), backend));
    batch.commit().unwrap();
}

/// `ip daddr service dnat to backend`
fn rewrite(service: IpAddr, backend: SocketAddr) -> Attributes {
    const META_DESTINATION: u16 = 1;
    const META_KEY: u16 = 2;
    const META_PROTOCOL_FAMILY: u32 = 15;
    const NETWORK_HEADER: u32 = 1;

    let (family, offset, address, target) = match (service, backend.ip()) {
        (IpAddr::V4(service), IpAddr::V4(backend)) => {
            (2, 16, service.octets().to_vec(), backend.octets().to_vec())
        }
        (IpAddr::V6(service), IpAddr::V6(backend)) => {
            (10, 24, service.octets().to_vec(), backend.octets().to_vec())
        }
        _ => panic!("a service and a backend of two families"),
    };
    let mut rule = Attributes::new();
    nfnetlink::expression(&mut rule, "meta", |meta| {
        meta.number(META_KEY, META_PROTOCOL_FAMILY);
        meta.number(META_DESTINATION, 1);
    });
    nfnetlink::match_equal(&mut rule, &[family]);
    nfnetlink::expression(&mut rule, "payload", |payload| {
        let length = u32::try_from(address.len()).unwrap();
        for (kind, value) in [(1, 1), (2, NETWORK_HEADER), (3, offset), (4, length)] {
            payload.number(kind, value);
        }
    });
    nfnetlink::match_equal(&mut rule, &address);
    load(&mut rule, 1, &target);
    load(&mut rule, 2, &backend.port().to_be_bytes());
    nfnetlink::expression(&mut rule, "nat", |nat| {
        // Type (destination), family, register of the address, register of the port.
        for (kind, value) in [(1, 1), (2, family.into()), (3, 1), (5, 2)] {
            nat.number(kind, value);
        }
    });
    rule
}

/// Loads a constant into a register.
fn load(rule: &mut Attributes, register: u32, value: &[u8]) {
    nfnetlink::expression(rule, "immediate", |immediate| {
        immediate.number(1, register);
        immediate.data(2, value);
    });
}
