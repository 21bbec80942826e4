use netlink_packet_route::AddressFamily;

use super::*;

fn message(index: u32, name: &str, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Unspec;
    message.header.index = index;
    message.header.link_layer_type = LinkLayerType::Ether;
    message.header.flags = LinkFlags::Up;
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    message.attributes.extend(attributes);
    message
}

fn kind(kind: InfoKind) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])
}

#[test]
fn pods_uplinks_and_tunnels_are_steered() {
    for attributes in
        [vec![], vec![kind(InfoKind::Veth)], vec![kind(InfoKind::Vxlan)], vec![kind(InfoKind::Wireguard)]]
    {
        let link = Link::parse(&message(2, "device", attributes));
        assert!(link.is_steered(), "{link:?}");
    }
}

#[test]
fn what_never_brings_a_packet_is_not() {
    for kind_of_device in [InfoKind::Bridge, InfoKind::Dummy, InfoKind::Ifb, InfoKind::Vrf] {
        let link = Link::parse(&message(2, "device", vec![kind(kind_of_device)]));
        assert!(!link.is_steered(), "{link:?}");
    }
    let mut loopback = message(1, "lo", vec![]);
    loopback.header.link_layer_type = LinkLayerType::Loopback;
    assert!(!Link::parse(&loopback).is_steered());
    let mut down = message(3, "veth", vec![kind(InfoKind::Veth)]);
    down.header.flags = LinkFlags::empty();
    assert!(!Link::parse(&down).is_steered());
}

#[test]
fn a_port_of_a_bridge_is_steered_but_a_member_of_a_bond_is_not() {
    let port = |kind| {
        Link::parse(&message(
            2,
            "port",
            vec![
                LinkAttribute::Controller(9),
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::PortKind(kind)]),
            ],
        ))
    };
    let bridge = port(InfoPortKind::Bridge);
    assert!(bridge.is_steered());
    assert_eq!(bridge.bridge, Some(9));
    assert!(!port(InfoPortKind::Bond).is_steered());
    let vrf = port(InfoPortKind::Vrf);
    assert!(vrf.is_steered());
    assert_eq!(vrf.bridge, None);
}
