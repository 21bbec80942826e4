//! A node that drops what conntrack knows nothing of, as kube-proxy has it, and marks as `deliver` does.

use super::*;
use crate::steering::host::testing::{CAPTURE, Namespace, in_namespace, shell};

#[test]
fn the_table_comes_and_goes() {
    in_namespace(|| {
        assert!(!installed().unwrap());
        assert!(!remove().unwrap());
        for _ in 0..2 {
            install(CAPTURE).unwrap();
            assert!(installed().unwrap());
        }
        assert!(remove().unwrap());
        assert!(!installed().unwrap());
    });
}

#[test]
fn marked_packets_are_untracked_and_no_others() {
    in_namespace(|| {
        let pod = Namespace::new();
        shell(
            "ip link add pod0 type veth peer name eth0 && ip link set pod0 up && ip address add 10.7.0.1/24 dev pod0",
        );
        pod.take_device("eth0");
        pod.run(|| shell("ip link set eth0 up && ip address add 10.7.0.2/24 dev eth0"));
        install(CAPTURE).unwrap();
        // Before ours packets are marked, each kind by its port; behind it they are counted.
        shell(
            "nft -f - <<'END'
table inet test {
    counter untracked {}
    counter tracked {}
    chain marking {
        type filter hook prerouting priority -310;
        udp dport 2 meta mark set 0x1080
        udp dport 3 meta mark set 0x1040
    }
    chain counting {
        type filter hook prerouting priority 0;
        udp dport 2-4 ct state untracked counter name untracked
        udp dport 2-4 ct state new counter name tracked
    }
}
END",
        );
        pod.run(|| {
            let socket = std::net::UdpSocket::bind("10.7.0.2:0").unwrap();
            for port in [2, 3, 4] {
                for _ in 0..port {
                    // What comes back, that nobody listens, is an error of the next packet's.
                    while socket.send_to(b"one", ("10.7.0.1", port)).is_err() {}
                }
            }
        });
        let counted = |name: &str| shell(&format!("nft list counter inet test {name}"));
        assert!(counted("untracked").contains("packets 2 "), "{}", counted("untracked"));
        assert!(counted("tracked").contains("packets 7 "), "{}", counted("tracked"));
    });
}
