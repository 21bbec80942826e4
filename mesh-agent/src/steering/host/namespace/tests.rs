use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::*;
use crate::steering::host::testing::{AGENT, CAPTURE, Namespace, in_namespace_async, shell};

fn settings() -> HostSettings {
    HostSettings::new(CAPTURE, AGENT, "/nonexistent")
}

#[test]
fn the_node_has_two_devices_more_and_nothing_else() {
    in_namespace_async(async || {
        let listings = ["ip rule", "ip -6 rule", "ip route show table all", "ip -o link"];
        let before = listings.map(shell);
        let namespace =
            AgentNamespace::connect(NamespaceThread::start().unwrap(), &settings()).await.unwrap();
        assert_eq!(missing().await.unwrap(), [] as [&str; 0]);
        let after = listings.map(shell);
        assert_eq!(after[..2], before[..2]);
        // Every device that is up has a route for multicast.
        let others: Vec<_> = after[2].lines().filter(|line| !line.contains(" dev mesh-")).collect();
        assert_eq!(others, before[2].lines().collect::<Vec<_>>());
        assert_eq!(after[3].lines().count(), before[3].lines().count() + 2);
        assert_ne!(namespace.steered_device(), namespace.around_device());

        // One that comes after takes their place, while the former still has its namespace.
        let next = AgentNamespace::connect(NamespaceThread::start().unwrap(), &settings()).await.unwrap();
        assert_ne!(next.id(), namespace.id());
        assert_ne!(next.steered_device(), namespace.steered_device());
        assert_eq!(missing().await.unwrap(), [] as [&str; 0]);
        drop((namespace, next));
        // The kernel takes its time.
        while listings.map(shell) != before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(remove().await.unwrap(), 0);
    });
}

#[test]
fn what_fits_through_pods_fits_through_the_agent() {
    in_namespace_async(async || {
        let namespace =
            AgentNamespace::connect(NamespaceThread::start().unwrap(), &settings()).await.unwrap();
        let (pods, mtu) = watch::channel(Some(1380));
        let following = namespace.follow_mtu(mtu);
        let changing = async {
            for expected in [1380, 9000] {
                pods.send_replace(Some(expected));
                while !shell("ip -o link show mesh-steered").contains(&format!(" mtu {expected} ")) {
                    tokio::task::yield_now().await;
                }
            }
            // Nobody to fit for: as it was.
            pods.send_replace(None);
            drop(pods);
        };
        tokio::join!(following, changing);
        assert!(shell("ip -o link show mesh-steered").contains(" mtu 9000 "));
        let inside = namespace.thread().run(|| shell("ip -o link show steered")).unwrap();
        assert!(inside.contains(" mtu 9000 "), "{inside}");
    });
}

#[test]
fn whoever_tunes_the_node_tunes_the_agent() {
    in_namespace_async(async || {
        shell("sysctl -qw net.core.somaxconn=777 net.ipv4.tcp_syncookies=2");
        let namespace =
            AgentNamespace::connect(NamespaceThread::start().unwrap(), &settings()).await.unwrap();
        let inside = namespace.thread().run(|| shell("sysctl -n net.core.somaxconn net.ipv4.tcp_syncookies"));
        assert_eq!(inside.unwrap(), "777\n2\n");
        let of_node = shell("sysctl -n net.ipv4.tcp_congestion_control");
        assert_eq!(
            namespace.network_congestion_control(),
            Some(of_node.trim()).filter(|name| *name != "reno")
        );
        let of_pods = namespace.thread().run(|| shell("sysctl -n net.ipv4.tcp_congestion_control"));
        assert_eq!(of_pods.unwrap(), "reno\n");
    });
}

#[test]
fn work_that_panics_is_an_error() {
    let thread = NamespaceThread::start().unwrap();
    assert_eq!(thread.run(|| 1).unwrap(), 1);
    assert!(thread.run(|| panic!("as it should")).is_err());
    assert!(thread.run(|| 1).is_err());
}

/// What comes out of the namespace is routed by the node, whatever its source, with strict reverse path filtering too.
#[test]
fn connections_from_any_address_go_out_and_their_answers_come_in() {
    in_namespace_async(async || {
        let pod = Namespace::new();
        shell(
            "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1 net.ipv4.ip_forward=1 \
             net.ipv6.conf.all.forwarding=1 \
             && ip link add pod0 type veth peer name eth0 && ip link set pod0 up \
             && ip address add 10.7.0.1/24 dev pod0 && ip address add fd07::1/64 dev pod0 nodad \
             && ip route add 10.8.0.0/24 dev pod0 && ip -6 route add fd08::/64 dev pod0",
        );
        pod.take_device("eth0");
        pod.run(|| {
            shell(
                "ip link set eth0 up && ip address add 10.7.0.2/24 dev eth0 \
                 && ip address add fd07::2/64 dev eth0 nodad \
                 && ip route add default via 10.7.0.1 && ip -6 route add default via fd07::1",
            )
        });
        let namespace =
            AgentNamespace::connect(NamespaceThread::start().unwrap(), &settings()).await.unwrap();
        // In the place of `steer`, which knows what is the agent's: all that is for the clients.
        shell(
            "ip route replace 10.8.0.0/24 via 169.254.9.9 dev mesh-steered onlink && ip -6 route replace fd08::/64 via fe80::9 dev mesh-steered",
        );
        shell(
            "ip neigh add 169.254.9.9 lladdr 02:6d:65:73:68:02 dev mesh-steered \
             && ip -6 neigh add fe80::9 lladdr 02:6d:65:73:68:02 dev mesh-steered",
        );
        for (client, server) in [("10.8.0.7", "10.7.0.2"), ("fd08::7", "fd07::2")] {
            let (client, server): (IpAddr, IpAddr) = (client.parse().unwrap(), server.parse().unwrap());
            let listener = pod.run(|| TcpListener::bind((server, 0))).unwrap();
            let to = listener.local_addr().unwrap();
            let mut stream: TcpStream =
                namespace.thread().run(move || connect_from(client, to)).unwrap().into();
            let (mut accepted, seen) = listener.accept().unwrap();
            assert_eq!(seen.ip(), client);
            accepted.write_all(b"hello").unwrap();
            let mut greeting = [0; 5];
            stream.read_exact(&mut greeting).unwrap();
            assert_eq!(&greeting, b"hello");
        }
    });
}

fn connect_from(client: IpAddr, server: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_ip_transparent_v4(true).unwrap();
    socket.bind(&SocketAddr::new(client, 0).into()).unwrap();
    socket.connect_timeout(&server.into(), Duration::from_secs(5)).unwrap();
    socket
}
