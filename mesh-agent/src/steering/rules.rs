//! Rule sets: a pod's redirection in the form the kernel looks up.
//!
//! A set is never changed once a pod follows it. New rules are written as a new set, the pod is switched to it in
//! one step, and then the old set is removed: no packet ever meets half of each. Pods with the same rules share a
//! set; the many without rules share none.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use mesh_common::{Action, Address, CidrRule, Direction, PodFlags, PortRule};
use mesh_xds::HBONE_PORT;

use super::SteeringError;
use super::maps::{Maps, Range};
use crate::pods::{CidrSelection, PortSelection, Redirection};

/// The rules of one set, without its number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RuleSet {
    ports: BTreeMap<(Direction, u16), Action>,
    /// By length in the bits of an [`Address`], and address.
    ranges: BTreeMap<(u8, Address), Action>,
}

impl RuleSet {
    /// The rules of a redirection, and the flags that say what holds without one.
    pub(super) fn compile(redirection: &Redirection) -> (Self, PodFlags) {
        let mut set = Self::default();
        // Included first: what is also excluded is then overwritten, for exclusion wins.
        if let PortSelection::Only(ports) = &redirection.include_inbound_ports {
            set.add_ports(Direction::Inbound, ports, Action::CAPTURE);
        }
        set.add_ports(Direction::Outbound, &redirection.include_outbound_ports, Action::CAPTURE);
        if let CidrSelection::Only(ranges) = &redirection.include_outbound_cidrs {
            set.add_ranges(ranges, Action::CAPTURE);
        }
        set.add_ports(Direction::Inbound, &redirection.exclude_inbound_ports, Action::PASS);
        set.add_ports(Direction::Outbound, &redirection.exclude_outbound_ports, Action::PASS);
        set.add_ranges(&redirection.exclude_outbound_cidrs, Action::PASS);
        // Tunnels end at the agent whatever the rules say; where that is the default it takes no rule.
        match redirection.include_inbound_ports {
            PortSelection::All => set.ports.remove(&(Direction::Inbound, HBONE_PORT)),
            PortSelection::Only(_) => set.ports.insert((Direction::Inbound, HBONE_PORT), Action::CAPTURE),
        };

        let flags = PodFlags::default()
            .with(PodFlags::CAPTURE_INBOUND, redirection.include_inbound_ports == PortSelection::All)
            .with(PodFlags::CAPTURE_OUTBOUND, redirection.include_outbound_cidrs == CidrSelection::All);
        (set, flags)
    }

    fn add_ports(&mut self, direction: Direction, ports: &BTreeSet<u16>, action: Action) {
        self.ports.extend(ports.iter().map(|port| ((direction, *port), action)));
    }

    fn add_ranges(&mut self, ranges: &BTreeSet<IpNet>, action: Action) {
        self.ranges.extend(ranges.iter().map(|range| {
            let range = range.trunc();
            let bits = Address::prefix_bits(range.addr().is_ipv4(), range.prefix_len());
            ((bits, Address::from(range.addr())), action)
        }));
    }

    fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.ranges.is_empty()
    }
}

/// All sets in the kernel, by number.
#[derive(Debug, Default)]
pub(super) struct RuleSets {
    sets: BTreeMap<u32, RuleSet>,
}

impl RuleSets {
    /// Reads what the maps hold.
    pub(super) fn adopt(maps: &Maps) -> Result<Self, SteeringError> {
        let mut sets: BTreeMap<u32, RuleSet> = BTreeMap::new();
        for (key, action) in maps.all_port_rules()? {
            let direction = if key.direction == Direction::Inbound as u8 {
                Direction::Inbound
            } else {
                Direction::Outbound
            };
            sets.entry(key.rules).or_default().ports.insert((direction, key.port), action);
        }
        for ((bits, rule), action) in maps.all_cidr_rules()? {
            sets.entry(rule.rules).or_default().ranges.insert((bits, rule.address), action);
        }
        Ok(Self { sets })
    }

    /// The number of a set with these rules: one that exists, or a new one that is completely written when this
    /// returns.
    pub(super) fn intern(&mut self, maps: &mut Maps, wanted: RuleSet) -> Result<u32, SteeringError> {
        if wanted.is_empty() {
            return Ok(0);
        }
        if let Some((number, _)) = self.sets.iter().find(|(_, set)| **set == wanted) {
            return Ok(*number);
        }
        let number = (1..).find(|number| !self.sets.contains_key(number)).unwrap_or_default();
        let result = write(maps, number, &wanted);
        // Also when only a part was written: `retain` then finds it without a user, and removes it.
        self.sets.insert(number, wanted);
        result.map(|()| number)
    }

    /// Removes the sets that nobody follows.
    pub(super) fn retain(&mut self, maps: &mut Maps, in_use: &BTreeSet<u32>) -> Result<(), SteeringError> {
        let unused: Vec<u32> = self.sets.keys().filter(|number| !in_use.contains(number)).copied().collect();
        for number in unused {
            if let Some(set) = self.sets.get(&number) {
                remove(maps, number, set)?;
            }
            self.sets.remove(&number);
        }
        Ok(())
    }
}

fn write(maps: &mut Maps, number: u32, set: &RuleSet) -> Result<(), SteeringError> {
    for (&(direction, port), &action) in &set.ports {
        maps.set_port_rule(&PortRule::new(number, direction, port), action)?;
    }
    for (&range, &action) in &set.ranges {
        maps.set_cidr_rule(&key(number, range), action)?;
    }
    Ok(())
}

fn remove(maps: &mut Maps, number: u32, set: &RuleSet) -> Result<(), SteeringError> {
    for &(direction, port) in set.ports.keys() {
        maps.remove_port_rule(&PortRule::new(number, direction, port))?;
    }
    for &range in set.ranges.keys() {
        maps.remove_cidr_rule(&key(number, range))?;
    }
    Ok(())
}

fn key(rules: u32, (bits, address): (u8, Address)) -> Range {
    (bits, CidrRule::new(rules, address))
}

#[cfg(test)]
mod tests;
