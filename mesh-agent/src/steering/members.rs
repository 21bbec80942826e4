//! The pods in the kernel's maps.
//!
//! Every change is a sequence of single map writes, ordered so that between any two of them no packet meets a wrong
//! verdict: rules before the pod that follows them, a pod before the device that admits no other source; on the way
//! out the reverse. Before anything changes about an address, the verdicts about its connections end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::{Address, Pod, PodFlags};
use tracing::debug;

use super::SteeringError;
use super::devices::Devices;
use super::maps::Maps;
use super::passage::Passages;
use super::rules::{RuleSet, RuleSets};
use crate::pods::{FailureMode, LocalPod};

/// What the maps hold of pods, by pod.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Whose addresses are known by uid.
    by_uid: BTreeMap<Arc<str>, Member>,
    /// Every entry of the map. Those of an agent before belong to no uid until the pod source names their pod.
    addresses: BTreeMap<Address, Pod>,
    rules: RuleSets,
}

#[derive(Debug)]
struct Member {
    id: u32,
    addresses: BTreeSet<Address>,
}

impl Members {
    /// Reads what an agent before left.
    pub(super) fn adopt(maps: &Maps) -> Result<Self, SteeringError> {
        Ok(Self {
            by_uid: BTreeMap::new(),
            addresses: maps.all_pods()?.into_iter().collect(),
            rules: RuleSets::adopt(maps)?,
        })
    }

    /// The uid of a pod by its number in the kernel.
    pub(super) fn uid(&self, id: u32) -> Option<&Arc<str>> {
        self.by_uid.iter().find(|(_, member)| member.id == id).map(|(uid, _)| uid)
    }

    /// Whether the address is this pod's; without a pod, whether it is none's of this node.
    pub(super) fn owns(&self, uid: Option<&str>, address: IpAddr) -> bool {
        let address = address.into();
        match uid {
            Some(uid) => self.by_uid.get(uid).is_some_and(|member| member.addresses.contains(&address)),
            None => !self.addresses.contains_key(&address),
        }
    }

    /// The devices of the pods that are, or were, enrolled.
    pub(super) fn guarded_devices(&self) -> BTreeSet<u32> {
        let pods = self.addresses.values().filter(|pod| pod.may_have_captured() && pod.device != 0);
        pods.map(|pod| pod.device).collect()
    }

    /// Brings the maps to what `pod` is now.
    pub(super) fn upsert(
        &mut self,
        maps: &mut Maps,
        passages: &mut Passages,
        devices: &mut Devices,
        pod: &LocalPod,
    ) -> Result<(), SteeringError> {
        let wanted: BTreeSet<Address> = pod.addresses.iter().map(|address| Address::from(*address)).collect();
        let id = self.id(&pod.uid, &wanted);
        let (rules, defaults) = RuleSet::compile(&pod.redirection);
        let rules = if pod.enrolled { self.rules.intern(maps, rules)? } else { 0 };
        let entry = Pod {
            id,
            flags: self.flags(pod, id, defaults),
            device: pod.device.as_ref().map_or(0, |device| device.index),
            rules,
        };
        debug!(uid = %pod.uid, ?entry, "pod");

        let former = self.by_uid.get(&pod.uid).map(|member| member.addresses.clone()).unwrap_or_default();
        let owner = if pod.enrolled { entry.device } else { 0 };
        if owner == 0 {
            devices.disown(maps, id)?;
        }
        // Known before it is written: should a write fail, `withdraw` still finds what was.
        self.by_uid
            .insert(Arc::clone(&pod.uid), Member { id, addresses: former.union(&wanted).copied().collect() });
        for address in &wanted {
            let former = self.addresses.get(address);
            if former != Some(&entry) {
                passages.address_changes(address, former, Some(&entry))?;
                maps.set_pod(address, entry)?;
                self.addresses.insert(*address, entry);
            }
        }
        if owner != 0 {
            devices.own(maps, owner, id)?;
        }
        for address in former.difference(&wanted) {
            self.release(maps, passages, id, address)?;
        }
        self.by_uid.insert(Arc::clone(&pod.uid), Member { id, addresses: wanted });
        self.remove_unused_rules(maps)
    }

    /// Removes a pod.
    pub(super) fn withdraw(
        &mut self,
        maps: &mut Maps,
        passages: &mut Passages,
        devices: &mut Devices,
        uid: &str,
    ) -> Result<(), SteeringError> {
        let Some(member) = self.by_uid.remove(uid) else { return Ok(()) };
        devices.disown(maps, member.id)?;
        for address in &member.addresses {
            self.release(maps, passages, member.id, address)?;
        }
        self.remove_unused_rules(maps)
    }

    /// Makes `pods` all there are.
    pub(super) fn reconcile<'a>(
        &mut self,
        maps: &mut Maps,
        passages: &mut Passages,
        devices: &mut Devices,
        pods: impl IntoIterator<Item = &'a LocalPod>,
    ) -> Result<(), SteeringError> {
        let mut first_error = Ok(());
        let mut keep = |result: Result<(), SteeringError>| {
            if first_error.is_ok() {
                first_error = result;
            }
        };
        let mut named: BTreeSet<Arc<str>> = BTreeSet::new();
        for pod in pods {
            named.insert(Arc::clone(&pod.uid));
            keep(self.upsert(maps, passages, devices, pod));
        }
        let gone: Vec<_> = self.by_uid.keys().filter(|uid| !named.contains(*uid)).cloned().collect();
        for uid in gone {
            keep(self.withdraw(maps, passages, devices, &uid));
        }
        // What is left without a uid was an agent's before; the pods died while none was here.
        let claimed: BTreeSet<Address> =
            self.by_uid.values().flat_map(|member| &member.addresses).copied().collect();
        let stale: Vec<_> = self
            .addresses
            .iter()
            .filter(|(address, _)| !claimed.contains(address))
            .map(|(a, p)| (*a, p.id))
            .collect();
        for (address, id) in stale {
            keep(devices.disown(maps, id));
            keep(self.release(maps, passages, id, &address));
        }
        keep(self.remove_unused_rules(maps));
        first_error
    }

    /// The pod's number: what it had, what an agent before gave to its addresses, or a new one.
    fn id(&self, uid: &str, addresses: &BTreeSet<Address>) -> u32 {
        if let Some(member) = self.by_uid.get(uid) {
            return member.id;
        }
        let taken: BTreeSet<u32> = self.by_uid.values().map(|member| member.id).collect();
        let adopted = addresses.iter().filter_map(|address| self.addresses.get(address)).map(|pod| pod.id);
        if let Some(id) = adopted.into_iter().find(|id| !taken.contains(id)) {
            return id;
        }
        let known: BTreeSet<u32> = self.addresses.values().map(|pod| pod.id).chain(taken).collect();
        (1..).find(|id| !known.contains(id)).unwrap_or_default()
    }

    fn flags(&self, pod: &LocalPod, id: u32, defaults: PodFlags) -> PodFlags {
        if pod.enrolled {
            return defaults
                .with(PodFlags::ENROLLED, true)
                .with(PodFlags::FAIL_CLOSED, pod.failure_mode == FailureMode::Closed);
        }
        let was_enrolled = self.addresses.values().any(|entry| entry.id == id && entry.may_have_captured());
        PodFlags::default().with(PodFlags::LEFT, was_enrolled)
    }

    /// Removes an address, unless another pod has taken it over.
    fn release(
        &mut self,
        maps: &mut Maps,
        passages: &mut Passages,
        id: u32,
        address: &Address,
    ) -> Result<(), SteeringError> {
        if let Some(pod) = self.addresses.get(address).filter(|pod| pod.id == id) {
            passages.address_changes(address, Some(pod), None)?;
            maps.remove_pod(address)?;
            self.addresses.remove(address);
        }
        Ok(())
    }

    fn remove_unused_rules(&mut self, maps: &mut Maps) -> Result<(), SteeringError> {
        let in_use = self.addresses.values().map(|pod| pod.rules).collect();
        self.rules.retain(maps, &in_use)
    }
}
