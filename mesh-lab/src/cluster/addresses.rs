//! Which addresses a cluster uses. Each is an island of namespaces, so all clusters use the same.
//!
//! | what              | IPv4             | IPv6                       |
//! |-------------------|------------------|----------------------------|
//! | nodes             | as in every lab  |                            |
//! | pods of node *n*  | `10.244.n.0/24`  | `fd4d:4553:4844:n::/64`    |
//! | services          | `10.96.0.0/16`   | `fd4d:4553:4896::/112`     |
//! | API server, DNS   | `.1`, `.10` of the services                  ||

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The ranges of all pods.
pub(super) fn all_pods() -> [IpNet; 2] {
    [
        Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16).into(),
        Ipv6Net::new_assert(Ipv6Addr::new(0xfd4d, 0x4553, 0x4844, 0, 0, 0, 0, 0), 48).into(),
    ]
}

/// The ranges of the pods of a node, which is counted from 1.
pub(super) fn pod_ranges(node: u8) -> [IpNet; 2] {
    [
        Ipv4Net::new_assert(Ipv4Addr::new(10, 244, node, 0), 24).into(),
        Ipv6Net::new_assert(Ipv6Addr::new(0xfd4d, 0x4553, 0x4844, node.into(), 0, 0, 0, 0), 64).into(),
    ]
}

/// The ranges of the services.
pub(super) fn services() -> [IpNet; 2] {
    [
        Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16).into(),
        Ipv6Net::new_assert(Ipv6Addr::new(0xfd4d, 0x4553, 0x4896, 0, 0, 0, 0, 0), 112).into(),
    ]
}

/// The API server's own service, in both families.
pub(super) fn api_server_service() -> [IpAddr; 2] {
    [Ipv4Addr::new(10, 96, 0, 1).into(), Ipv6Addr::new(0xfd4d, 0x4553, 0x4896, 0, 0, 0, 0, 1).into()]
}

/// The service of the cluster's DNS.
pub(super) fn dns() -> IpAddr {
    Ipv4Addr::new(10, 96, 0, 10).into()
}

/// Ranges or addresses as Kubernetes' flags take them.
pub(super) fn listed<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(",")
}
