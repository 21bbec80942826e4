//! The kernel's side of passage: verdicts, and the connections that pass on them.
//!
//! What may pass is decided in [`crate::passage`]; here it is written down so that the kernel never acts on what no
//! longer holds. To take a verdict back is two writes: the verdict goes, so that no connection opens on it, and then
//! its generation ends, so that none lives on it, not even one that opened between the two.
//!
//! A verdict can also be *suspended*: no new connection opens on it, those there are go on. That is what becomes of it
//! when something else than policy changes, such as the redirection rules of a pod.

mod flows;
mod provoke;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, RingBuf};
use mesh_common::{Address, FlowKey, FlowState, Pod, Verdict, VerdictKey, capacity, name};

use super::SteeringError;
use super::maps::{collect, ignore_missing, take};

pub use flows::{FlowEvents, FlowId, FlowReader};
pub(super) use provoke::Provocation;

/// The connections that one verdict is about: from an address to a port of another. One at least is a pod's of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PassageKey {
    /// Who opens them.
    pub source: IpAddr,
    /// Where they lead.
    pub destination: SocketAddr,
}

impl From<PassageKey> for VerdictKey {
    fn from(key: PassageKey) -> Self {
        Self::new(key.source.into(), key.destination.ip().into(), key.destination.port())
    }
}

impl From<VerdictKey> for PassageKey {
    fn from(key: VerdictKey) -> Self {
        Self { source: key.source.into(), destination: SocketAddr::new(key.destination.into(), key.port) }
    }
}

/// Verdicts and flows in the kernel's maps.
pub(super) struct Passages {
    verdicts: HashMap<MapData, VerdictKey, Verdict>,
    generations: Array<MapData, u32>,
    flows: HashMap<MapData, FlowKey, FlowState>,
    /// Until somebody listens.
    events: Option<RingBuf<MapData>>,
    /// Every verdict whose generation may hold.
    known: BTreeMap<VerdictKey, Known>,
    slots: BTreeSet<u32>,
    /// Where the search for a slot goes on; so a slot rests before it is used again.
    next_slot: u32,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    verdict: Verdict,
    /// Whether new connections open on it.
    in_force: bool,
}

impl Passages {
    /// Takes the maps out of the loaded object, with what an agent before left in them.
    pub(super) fn adopt(object: &mut Ebpf) -> Result<Self, SteeringError> {
        let mut passages = Self {
            verdicts: take(object, name::VERDICTS)?,
            generations: take(object, name::GENERATIONS)?,
            flows: take(object, name::FLOWS)?,
            events: Some(take(object, name::FLOW_EVENTS)?),
            known: BTreeMap::new(),
            slots: BTreeSet::new(),
            next_slot: 0,
        };
        for (key, verdict) in collect(passages.verdicts.iter(), name::VERDICTS)? {
            if passages.holds(verdict)? {
                passages.remember(key, Known { verdict, in_force: true });
            } else {
                passages.remove_verdict(&key)?;
            }
        }
        // Verdicts that were suspended live on in their flows only.
        for (key, flow) in flows::all(&passages.flows)? {
            let verdict = Verdict { slot: flow.slot, generation: flow.generation };
            let key = FlowId::new(key, &flow).passage().into();
            if !passages.known.contains_key(&key) && passages.holds(verdict)? {
                passages.remember(key, Known { verdict, in_force: false });
            }
        }
        Ok(passages)
    }

    /// Lets new connections pass; says whether there was room for another verdict.
    pub(super) fn allow(&mut self, key: PassageKey) -> Result<bool, SteeringError> {
        let key = key.into();
        let known = match self.known.get(&key) {
            Some(known) if known.in_force => return Ok(true),
            Some(known) => *known,
            None => {
                let Some(slot) = self.free_slot() else { return Ok(false) };
                let generation = match self.generation(slot)? {
                    // A slot that was never used.
                    0 => self.next_generation(slot)?,
                    generation => generation,
                };
                Known { verdict: Verdict { slot, generation }, in_force: false }
            }
        };
        self.remember(key, Known { in_force: true, ..known });
        self.verdicts.insert(key, known.verdict, 0).map_err(SteeringError::map(name::VERDICTS))?;
        Ok(true)
    }

    /// Lets no new connections pass; those there are go on.
    pub(super) fn suspend(&mut self, key: PassageKey) -> Result<(), SteeringError> {
        self.suspend_verdict(&key.into())
    }

    /// Takes the verdict back, and lets no packet pass any more on the strength of it.
    pub(super) fn revoke(&mut self, key: PassageKey) -> Result<(), SteeringError> {
        self.revoke_verdict(&key.into())
    }

    /// Every verdict whose connections may pass, and whether new ones may open.
    pub(super) fn list(&self) -> Vec<(PassageKey, bool)> {
        self.known.iter().map(|(key, known)| ((*key).into(), known.in_force)).collect()
    }

    /// To be told before what is known of an address changes: whose it is must not be mistaken. An address without a pod
    /// is elsewhere.
    pub(super) fn address_changes(
        &mut self,
        address: &Address,
        former: Option<&Pod>,
        next: Option<&Pod>,
    ) -> Result<(), SteeringError> {
        let place = |pod: &Pod| (pod.id, pod.device);
        let same_pod = former.map(place) == next.map(place);
        let concerned: Vec<VerdictKey> = self
            .known
            .keys()
            .filter(|key| key.source == *address || key.destination == *address)
            .copied()
            .collect();
        concerned
            .iter()
            .try_for_each(|key| if same_pod { self.suspend_verdict(key) } else { self.revoke_verdict(key) })
    }

    /// Removes a flow. To be told of those only that carry nothing any more.
    pub(super) fn forget(&mut self, flow: &FlowId) -> Result<(), SteeringError> {
        if self.flow(flow).is_none() {
            return Ok(());
        }
        ignore_missing(self.flows.remove(&flow.key)).map_err(SteeringError::map(name::FLOWS))
    }

    /// Ends one flow, whatever its verdict: no generation is 0. What its packets count at this moment may be lost.
    pub(super) fn condemn(&mut self, flow: &FlowId) -> Result<(), SteeringError> {
        /// `BPF_EXIST`: what ended meanwhile stays gone.
        const EXISTING: u64 = 2;
        let Some(state) = self.flow(flow) else { return Ok(()) };
        let condemned = FlowState { generation: 0, ..state };
        ignore_missing(self.flows.insert(flow.key, condemned, EXISTING))
            .map_err(SteeringError::map(name::FLOWS))
    }

    /// The state of a flow, while there is one.
    pub(super) fn flow(&self, flow: &FlowId) -> Option<FlowState> {
        self.flows.get(&flow.key, 0).ok().filter(|state| state.opened == flow.opened)
    }

    /// Whether packets of a flow pass.
    pub(super) fn passes(&self, flow: &FlowState) -> Result<bool, SteeringError> {
        self.holds(Verdict { slot: flow.slot, generation: flow.generation })
    }

    /// How many verdicts there are, and flows.
    pub(super) fn entries(&self) -> Result<[(&'static str, usize); 2], SteeringError> {
        let verdicts = self.known.values().filter(|known| known.in_force).count();
        Ok([(name::VERDICTS, verdicts), (name::FLOWS, flows::all(&self.flows)?.len())])
    }

    /// The ring of events; once.
    pub(super) fn take_events(&mut self) -> Option<RingBuf<MapData>> {
        self.events.take()
    }

    fn suspend_verdict(&mut self, key: &VerdictKey) -> Result<(), SteeringError> {
        let Some(known) = self.known.get_mut(key) else { return Ok(()) };
        known.in_force = false;
        self.remove_verdict(key)
    }

    fn revoke_verdict(&mut self, key: &VerdictKey) -> Result<(), SteeringError> {
        let Some(known) = self.known.get(key).copied() else { return Ok(()) };
        self.remove_verdict(key)?;
        self.next_generation(known.verdict.slot)?;
        self.known.remove(key);
        self.slots.remove(&known.verdict.slot);
        Ok(())
    }

    fn remove_verdict(&mut self, key: &VerdictKey) -> Result<(), SteeringError> {
        ignore_missing(self.verdicts.remove(key)).map_err(SteeringError::map(name::VERDICTS))
    }

    fn remember(&mut self, key: VerdictKey, known: Known) {
        self.slots.insert(known.verdict.slot);
        self.known.insert(key, known);
    }

    fn free_slot(&mut self) -> Option<u32> {
        let mut candidates = (self.next_slot..capacity::VERDICTS).chain(0..self.next_slot);
        let slot = candidates.find(|slot| !self.slots.contains(slot))?;
        self.next_slot = (slot + 1) % capacity::VERDICTS;
        Some(slot)
    }

    fn generation(&self, slot: u32) -> Result<u32, SteeringError> {
        self.generations.get(&slot, 0).map_err(SteeringError::map(name::GENERATIONS))
    }

    fn next_generation(&mut self, slot: u32) -> Result<u32, SteeringError> {
        let next = self.generation(slot)?.checked_add(1).unwrap_or(1);
        self.generations.set(slot, next, 0).map_err(SteeringError::map(name::GENERATIONS))?;
        Ok(next)
    }

    fn holds(&self, verdict: Verdict) -> Result<bool, SteeringError> {
        Ok(verdict.slot < capacity::VERDICTS && self.generation(verdict.slot)? == verdict.generation)
    }
}
