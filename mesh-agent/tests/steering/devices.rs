//! Devices and addresses that come and go.

use crate::node::{Family, Node, Wiring};

#[test]
fn devices_are_followed_as_they_come_and_go() {
    let node = Node::new(Wiring::Routed);
    let agent = node.agent();
    let attached = |name: &str| {
        agent
            .steering
            .attachments()
            .iter()
            .any(|attachment| attachment.device == name && attachment.error.is_none())
    };
    node.shell("ip link add extra type veth peer name peer && ip link set extra up");
    node.until(|| attached("extra"), "a new device is steered");
    assert!(!attached("peer"), "a device that is down may be about to move into a pod");
    assert!(!attached("lo"));

    node.shell("ip link add br0 type bridge && ip link set br0 up && ip link set extra master br0");
    node.until(
        || {
            agent
                .steering
                .attachments()
                .iter()
                .any(|port| port.device == "extra" && port.bridge.as_deref() == Some("br0"))
        },
        "a port of a bridge is known as one",
    );
    assert!(!attached("br0"));
    node.shell("ip link set extra nomaster");
    node.until(
        || agent.steering.attachments().iter().any(|port| port.device == "extra" && port.bridge.is_none()),
        "and stays steered when it leaves the bridge",
    );

    // Links with tcx, notes of filters with clsact.
    let pinned = || {
        let folders = ["links", "clsact-filter"].map(|name| node.pin_directory().join(name));
        folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().count()
    };
    let before = pinned();
    node.shell("ip link del extra");
    node.until(|| !attached("extra") && pinned() == before - 1, "a device that is gone is forgotten");
}

#[test]
fn addresses_of_the_node_are_followed() {
    let node = Node::new(Wiring::Routed);
    let agent = node.agent();
    node.enrol(&agent, &node.pod("a"));
    let node_port = |address: &str| {
        let to = std::net::SocketAddr::new(address.parse().unwrap(), crate::node::PORT);
        node.connect("a", to).map(|connection| connection.who)
    };
    node.shell("ip link add extra type veth peer name peer && ip link set extra up");
    node.shell("ip address add 192.0.2.7/32 dev extra");
    node.until(|| node_port("192.0.2.7").is_ok_and(|who| who == "node"), "a new address is the node's");
    node.shell("ip address del 192.0.2.7/32 dev extra");
    node.until(|| node_port("192.0.2.7").is_ok_and(|who| who == "agent"), "an address that is gone is not");
    assert_eq!(node.call("a", "node", Family::V6).unwrap().who, "node");
}

#[test]
fn a_storm_of_devices_is_survived() {
    let node = Node::new(Wiring::Routed);
    let agent = node.agent();
    // Far more messages than a netlink socket holds.
    node.shell(
        "for i in $(seq 300); do echo link add s$i type veth peer name t$i; echo link set s$i up; echo link set t$i up; \
         echo address add 198.51.100.$((i % 250))/32 dev s$i; done | ip -batch -; \
         for i in $(seq 280); do echo link del s$i; done | ip -batch -",
    );
    node.until(
        || {
            let names: Vec<_> =
                agent.steering.attachments().into_iter().map(|attachment| attachment.device).collect();
            let storm = names.iter().filter(|name| name.starts_with(['s', 't']));
            storm.count() == 40
        },
        "the devices that are left, and no others, are steered",
    );
}
