//! The maps, typed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, SockMap};
use mesh_common::{
    Action, Address, Arrival, CidrRule, Config, Device, Family, LISTENER_SLOTS, MAX_LISTENERS, Pod, PortRule,
    Tables, can_pass, judge, listener_slot, name,
};

use super::{CoreListeners, SteeringError};

/// Length of a whole [`CidrRule`], the prefix to look up with.
const WHOLE_CIDR_RULE: u32 = mesh_common::CIDR_RULE_PREFIX + 128;

/// All maps that the agent writes or reads.
pub(super) struct Maps {
    pods: HashMap<MapData, Address, Pod>,
    devices: HashMap<MapData, u32, Device>,
    host_addresses: HashMap<MapData, Address, u32>,
    port_rules: HashMap<MapData, PortRule, Action>,
    cidr_rules: LpmTrie<MapData, CidrRule, Action>,
    listeners: SockMap<MapData>,
    counters: PerCpuArray<MapData, u64>,
    config: Array<MapData, Config>,
    kubelets: HashMap<MapData, u64, u32>,
}

/// A range of a rule set: the length of the range in the bits of an [`Address`], and its rule key.
pub(super) type Range = (u8, CidrRule);

impl Maps {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, SteeringError> {
        Ok(Self {
            pods: take(object, name::PODS)?,
            devices: take(object, name::DEVICES)?,
            host_addresses: take(object, name::HOST_ADDRS)?,
            port_rules: take(object, name::PORT_RULES)?,
            cidr_rules: take(object, name::CIDR_RULES)?,
            listeners: take(object, name::LISTENERS)?,
            counters: take(object, name::COUNTERS)?,
            config: take(object, name::CONFIG)?,
            kubelets: take(object, name::KUBELETS)?,
        })
    }

    pub(super) fn config(&self) -> Result<Config, SteeringError> {
        self.config.get(&0, 0).map_err(SteeringError::map(name::CONFIG))
    }

    pub(super) fn set_config(&mut self, config: Config) -> Result<(), SteeringError> {
        self.config.set(0, config, 0).map_err(SteeringError::map(name::CONFIG))
    }

    /// Replaces the listeners slot by slot, so that there is one to pick at any moment.
    pub(super) fn set_listeners(&mut self, listeners: &[CoreListeners<'_>]) -> Result<(), SteeringError> {
        let failed = SteeringError::map(name::LISTENERS);
        let cores = u32::try_from(listeners.len())
            .ok()
            .filter(|cores| *cores <= MAX_LISTENERS)
            .ok_or(SteeringError::TooManyListeners(listeners.len()))?;
        for (core, pair) in (0..).zip(listeners) {
            let CoreListeners { steered, around } = pair;
            for (family, arrival, socket) in [
                (Family::V4, Arrival::Steered, steered.v4),
                (Family::V6, Arrival::Steered, steered.v6),
                (Family::V4, Arrival::Around, around.v4),
                (Family::V6, Arrival::Around, around.v6),
            ] {
                let slot = listener_slot(core, family, arrival);
                match socket {
                    Some(socket) => self.listeners.set(slot, &socket, 0).map_err(&failed)?,
                    None => ignore_missing(self.listeners.clear_index(&slot)).map_err(&failed)?,
                }
            }
        }
        self.set_config(Config { listeners: cores, ..self.config()? })?;
        for slot in listener_slot(cores, Family::V4, Arrival::Steered)..LISTENER_SLOTS {
            ignore_missing(self.listeners.clear_index(&slot)).map_err(&failed)?;
        }
        Ok(())
    }

    pub(super) fn all_pods(&self) -> Result<Vec<(Address, Pod)>, SteeringError> {
        collect(self.pods.iter(), name::PODS)
    }

    pub(super) fn set_pod(&mut self, address: &Address, pod: Pod) -> Result<(), SteeringError> {
        self.pods.insert(address, pod, 0).map_err(SteeringError::map(name::PODS))
    }

    pub(super) fn remove_pod(&mut self, address: &Address) -> Result<(), SteeringError> {
        ignore_missing(self.pods.remove(address)).map_err(SteeringError::map(name::PODS))
    }

    pub(super) fn all_devices(&self) -> Result<Vec<(u32, Device)>, SteeringError> {
        collect(self.devices.iter(), name::DEVICES)
    }

    pub(super) fn set_device(&mut self, index: u32, device: Device) -> Result<(), SteeringError> {
        self.devices.insert(index, device, 0).map_err(SteeringError::map(name::DEVICES))
    }

    pub(super) fn remove_device(&mut self, index: u32) -> Result<(), SteeringError> {
        ignore_missing(self.devices.remove(&index)).map_err(SteeringError::map(name::DEVICES))
    }

    pub(super) fn all_host_addresses(&self) -> Result<Vec<(Address, u32)>, SteeringError> {
        collect(self.host_addresses.iter(), name::HOST_ADDRS)
    }

    pub(super) fn add_host_address(&mut self, address: IpAddr) -> Result<(), SteeringError> {
        self.host_addresses.insert(Address::from(address), 1, 0).map_err(SteeringError::map(name::HOST_ADDRS))
    }

    pub(super) fn remove_host_address(&mut self, address: IpAddr) -> Result<(), SteeringError> {
        ignore_missing(self.host_addresses.remove(&Address::from(address)))
            .map_err(SteeringError::map(name::HOST_ADDRS))
    }

    pub(super) fn all_port_rules(&self) -> Result<Vec<(PortRule, Action)>, SteeringError> {
        collect(self.port_rules.iter(), name::PORT_RULES)
    }

    pub(super) fn set_port_rule(&mut self, key: &PortRule, action: Action) -> Result<(), SteeringError> {
        self.port_rules.insert(key, action, 0).map_err(SteeringError::map(name::PORT_RULES))
    }

    pub(super) fn remove_port_rule(&mut self, key: &PortRule) -> Result<(), SteeringError> {
        ignore_missing(self.port_rules.remove(key)).map_err(SteeringError::map(name::PORT_RULES))
    }

    pub(super) fn all_cidr_rules(&self) -> Result<Vec<(Range, Action)>, SteeringError> {
        let rules = collect(self.cidr_rules.iter(), name::CIDR_RULES)?;
        Ok(rules.into_iter().map(|(key, action)| (range(&key), action)).collect())
    }

    pub(super) fn set_cidr_rule(&mut self, range: &Range, action: Action) -> Result<(), SteeringError> {
        self.cidr_rules.insert(&key(range), action, 0).map_err(SteeringError::map(name::CIDR_RULES))
    }

    pub(super) fn remove_cidr_rule(&mut self, range: &Range) -> Result<(), SteeringError> {
        ignore_missing(self.cidr_rules.remove(&key(range))).map_err(SteeringError::map(name::CIDR_RULES))
    }

    /// How many entries the maps have that grow with pods, devices and rules.
    pub(super) fn entries(&self) -> Result<Vec<(&'static str, usize)>, SteeringError> {
        Ok(vec![
            (name::PODS, self.all_pods()?.len()),
            (name::DEVICES, self.all_devices()?.len()),
            (name::HOST_ADDRS, self.all_host_addresses()?.len()),
            (name::PORT_RULES, self.all_port_rules()?.len()),
            (name::CIDR_RULES, self.all_cidr_rules()?.len()),
        ])
    }

    /// Numbers of the kubelet's cgroups.
    pub(super) fn kubelets(&self) -> Result<BTreeSet<u64>, SteeringError> {
        let entries = collect(self.kubelets.iter(), name::KUBELETS)?;
        Ok(entries.into_iter().map(|(number, _)| number).collect())
    }

    pub(super) fn add_kubelet(&mut self, number: u64) -> Result<(), SteeringError> {
        self.kubelets.insert(number, 1, 0).map_err(SteeringError::map(name::KUBELETS))
    }

    pub(super) fn remove_kubelet(&mut self, number: u64) -> Result<(), SteeringError> {
        ignore_missing(self.kubelets.remove(&number)).map_err(SteeringError::map(name::KUBELETS))
    }

    /// One counter, all CPUs together.
    pub(super) fn count(&self, index: u32) -> Result<u64, SteeringError> {
        let values = self.counters.get(&index, 0).map_err(SteeringError::map(name::COUNTERS))?;
        Ok(values.iter().sum())
    }
}

impl Maps {
    /// Whether a new connection between two ends would go through the agent, and could pass. What the node itself takes
    /// part in is none: it comes in nowhere, or goes no further.
    pub(super) fn steers_between(&self, source: &Address, destination: &Address, port: u16) -> bool {
        let of_pod = |address| self.pod(address).unwrap_or(Pod::UNKNOWN);
        let (from, to) = (of_pod(source), of_pod(destination));
        let of_node = [source, destination].into_iter().any(|address| self.is_host_address(address));
        !of_node && can_pass(&from, &to) && judge(self, &from, &to, destination, port).is_some()
    }
}

/// The decision as user space reads it: from the very maps that the kernel reads.
impl Tables for Maps {
    fn pod(&self, address: &Address) -> Option<Pod> {
        self.pods.get(address, 0).ok()
    }

    fn is_host_address(&self, address: &Address) -> bool {
        self.host_addresses.get(address, 0).is_ok()
    }

    fn port_rule(&self, key: &PortRule) -> Option<Action> {
        self.port_rules.get(key, 0).ok()
    }

    fn cidr_rule(&self, key: &CidrRule) -> Option<Action> {
        self.cidr_rules.get(&Key::new(WHOLE_CIDR_RULE, *key), 0).ok()
    }
}

pub(super) fn take<M: TryFrom<Map, Error = MapError>>(
    object: &mut Ebpf,
    name: &'static str,
) -> Result<M, SteeringError> {
    let map = object.take_map(name).ok_or(SteeringError::Missing(name))?;
    M::try_from(map).map_err(SteeringError::map(name))
}

pub(super) fn collect<K, V>(
    entries: impl Iterator<Item = Result<(K, V), MapError>>,
    name: &'static str,
) -> Result<Vec<(K, V)>, SteeringError> {
    entries.collect::<Result<_, _>>().map_err(SteeringError::map(name))
}

fn key(&(bits, rule): &Range) -> Key<CidrRule> {
    Key::new(mesh_common::CIDR_RULE_PREFIX + u32::from(bits), rule)
}

fn range(key: &Key<CidrRule>) -> Range {
    let bits = key.prefix_len().saturating_sub(mesh_common::CIDR_RULE_PREFIX);
    // At most 128, the bits of an address.
    (u8::try_from(bits).unwrap_or(u8::MAX), key.data())
}

/// What is to be removed may be gone already.
pub(super) fn ignore_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        // A slot of a socket map that holds no socket.
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::InvalidInput => {
            Ok(())
        }
        other => other,
    }
}
