use std::net::{IpAddr, Ipv4Addr};

use mesh_common::{Capture, Gate, Pod, Tables, gate, judge};
use proptest::prelude::*;

use super::*;

/// One pod that follows one rule set, as the kernel would look it up.
struct Model {
    set: RuleSet,
    pod: (Address, Pod),
}

impl Tables for Model {
    fn pod(&self, address: &Address) -> Option<Pod> {
        (*address == self.pod.0).then_some(self.pod.1)
    }

    fn is_host_address(&self, _: &Address) -> bool {
        false
    }

    fn port_rule(&self, key: &PortRule) -> Option<Action> {
        let direction = if key.direction == 0 { Direction::Outbound } else { Direction::Inbound };
        self.set.ports.get(&(direction, key.port)).copied()
    }

    fn cidr_rule(&self, key: &CidrRule) -> Option<Action> {
        let longest = self
            .set
            .ranges
            .iter()
            .filter(|((bits, range), _)| {
                CidrRule::new(1, *range).family == key.family
                    && prefix(range, *bits) == prefix(&key.address, *bits)
            })
            .max_by_key(|((bits, _), _)| *bits);
        longest.map(|(_, action)| *action)
    }
}

/// The first `bits` of an address, the way the kernel's trie compares.
fn prefix(address: &Address, bits: u8) -> u128 {
    let [a, b, c, d] = address.words.map(|word| u128::from(u32::from_be(word)));
    let number = (a << 96) | (b << 64) | (c << 32) | d;
    number.checked_shr(128 - u32::from(bits)).unwrap_or(0)
}

fn captured(redirection: &Redirection, from: IpAddr, to: IpAddr, port: u16, pod: IpAddr) -> Option<Capture> {
    let (set, flags) = RuleSet::compile(redirection);
    let entry = Pod {
        id: 1,
        flags: flags.with(PodFlags::ENROLLED, true),
        device: 0,
        rules: u32::from(!set.is_empty()),
    };
    let model = Model { set, pod: (pod.into(), entry) };
    let (source, destination) = (Address::from(from), Address::from(to));
    let flow = mesh_common::Flow { source: &source, destination: &destination, device: 0, owner: 0 };
    match gate(&model, &flow) {
        Gate::Candidate { source, destination: to } => judge(&model, &source, &to, &destination, port),
        _ => None,
    }
}

/// Addresses, ranges and ports from small sets, so that they meet.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 2]>().prop_map(|[a, b]| IpAddr::from(Ipv4Addr::new(10, a & 3, b & 3, 1))),
        any::<[u8; 2]>().prop_map(|[a, b]| IpAddr::from([
            0xfd00,
            0,
            u16::from(a & 3),
            u16::from(b & 3),
            0,
            0,
            0,
            1
        ])),
    ]
}

fn ranges() -> impl Strategy<Value = BTreeSet<IpNet>> {
    let range = (address(), 0..=128_u8).prop_map(|(address, bits)| {
        IpNet::new(address, if address.is_ipv4() { bits / 4 } else { bits }).unwrap()
    });
    proptest::collection::btree_set(range, 0..6)
}

fn ports() -> impl Strategy<Value = BTreeSet<u16>> {
    proptest::collection::btree_set(80..84_u16, 0..3)
}

fn redirection() -> impl Strategy<Value = Redirection> {
    (proptest::option::of(ports()), ports(), ports(), ports(), proptest::option::of(ranges()), ranges())
        .prop_map(
            |(
                include_inbound,
                exclude_inbound,
                include_outbound,
                exclude_outbound,
                include_ranges,
                exclude_ranges,
            )| {
                Redirection {
                    include_inbound_ports: include_inbound.map_or(PortSelection::All, PortSelection::Only),
                    exclude_inbound_ports: exclude_inbound,
                    include_outbound_ports: include_outbound,
                    exclude_outbound_ports: exclude_outbound,
                    include_outbound_cidrs: include_ranges.map_or(CidrSelection::All, CidrSelection::Only),
                    exclude_outbound_cidrs: exclude_ranges,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// What `meshctl explain` says of a pod's rules is what the kernel does by them.
    #[test]
    fn the_kernel_decides_as_the_rules_say(
        rules in redirection(), pod in address(), other in address(), port in 79..85_u16,
    ) {
        prop_assume!(pod != other);
        let outbound = captured(&rules, pod, other, port, pod);
        prop_assert_eq!(outbound.is_some(), rules.outbound(other, port).captured, "outbound {:?}", outbound);
        let inbound = captured(&rules, other, pod, port, pod);
        prop_assert_eq!(inbound.is_some(), rules.inbound(port).captured, "inbound {:?}", inbound);
    }
}

#[test]
fn a_pod_without_rules_needs_no_set() {
    let (set, flags) = RuleSet::compile(&Redirection::default());
    assert!(set.is_empty());
    assert!(flags.has(PodFlags::CAPTURE_INBOUND) && flags.has(PodFlags::CAPTURE_OUTBOUND));
}

#[test]
fn host_bits_of_a_range_do_not_matter() {
    let rules = Redirection {
        exclude_outbound_cidrs: ["10.1.2.3/16".parse().unwrap()].into(),
        ..Redirection::default()
    };
    let (set, _) = RuleSet::compile(&rules);
    let range = (96 + 16, Address::from(IpAddr::from([10, 1, 0, 0])));
    assert_eq!(set.ranges.into_iter().collect::<Vec<_>>(), [(range, Action::PASS)]);
}
