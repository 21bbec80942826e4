//! Reading the kernel's flows: as they are, and what it tells of them.

use std::io;
use std::net::SocketAddr;

use aya::maps::{HashMap, MapData, MapError, RingBuf};
use mesh_common::{Address, End, FlowEvent, FlowKey, FlowState, capacity, name};
use tokio::io::unix::AsyncFd;

use super::PassageKey;
use crate::steering::{Steering, SteeringError};

/// One connection among all that ever passed: the same addresses and ports may be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowId {
    /// What the kernel finds it by.
    pub key: FlowKey,
    /// When it was opened, on the monotonic clock, in nanoseconds.
    pub opened: u64,
    /// Who opened it.
    pub client: SocketAddr,
    /// To whom.
    pub server: SocketAddr,
}

impl FlowId {
    /// Of a flow as the kernel has it.
    pub fn new(key: FlowKey, state: &FlowState) -> Self {
        let end = |end: End| {
            let (address, port) = key.end(end);
            SocketAddr::new(address.into(), port)
        };
        let client = state.client();
        Self { key, opened: state.opened, client: end(client), server: end(client.other()) }
    }

    /// The verdict it is a matter of.
    pub fn passage(&self) -> PassageKey {
        PassageKey { source: self.client.ip(), destination: self.server }
    }
}

/// Reads flows without holding up anybody: another handle of the map.
#[derive(Debug)]
pub struct FlowReader {
    flows: HashMap<MapData, FlowKey, FlowState>,
}

impl FlowReader {
    pub(in crate::steering) fn open(directory: &std::path::Path) -> Result<Self, SteeringError> {
        let failed = SteeringError::map(name::FLOWS);
        let pinned = MapData::from_pin(directory.join(name::FLOWS)).map_err(&failed)?;
        let flows = HashMap::try_from(aya::maps::Map::HashMap(pinned)).map_err(&failed)?;
        Ok(Self { flows })
    }

    /// All flows there are.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn all(&self) -> Result<Vec<(FlowKey, FlowState)>, SteeringError> {
        all(&self.flows)
    }

    /// Whether there is a flow with these ends, whoever has opened it. One system call that does not wait.
    pub fn contains(&self, one: SocketAddr, other: SocketAddr) -> bool {
        let end = |address: SocketAddr| (Address::from(address.ip()), address.port());
        let (key, _) = FlowKey::of(end(one), end(other));
        self.flows.get(&key, 0).is_ok()
    }
}

/// Flows that come and go meanwhile may be among them twice, or not at all; but it comes to an end.
pub(super) fn all(
    flows: &HashMap<MapData, FlowKey, FlowState>,
) -> Result<Vec<(FlowKey, FlowState)>, SteeringError> {
    /// When the entry it stands at is removed, the kernel begins anew.
    const MOST: usize = 2 * capacity::FLOWS as usize;
    let all: Result<Vec<_>, MapError> = flows.iter().take(MOST).collect();
    all.map_err(SteeringError::map(name::FLOWS))
}

/// What the kernel tells of flows, in order.
pub struct FlowEvents {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl FlowEvents {
    /// Begins to listen; there can be one listener. To be called on a runtime.
    pub(in crate::steering) fn listen(steering: &Steering) -> Result<Self, SteeringError> {
        let ring = steering.lock().passages.take_events().ok_or(SteeringError::Missing(name::FLOW_EVENTS))?;
        // SAFETY: the ring owns its descriptor, opens no other, and is not taken out of here.
        let ring = unsafe { AsyncFd::register(ring) };
        let ring = ring.map_err(|error| SteeringError::Watch(error.to_string()))?;
        Ok(Self { ring })
    }

    /// Waits until there is something, and hands out all there is, but no more than `most`.
    ///
    /// # Errors
    /// If the ring cannot be waited for.
    pub async fn next(&mut self, most: usize) -> io::Result<Vec<FlowEvent>> {
        loop {
            let mut guard = self.ring.readable_mut().await?;
            let events = read_events(guard.get_inner_mut(), most);
            if events.is_empty() {
                guard.clear_ready();
            } else {
                return Ok(events);
            }
        }
    }

    /// Hands out what there is, without waiting.
    pub fn take(&mut self) -> Vec<FlowEvent> {
        read_events(self.ring.get_mut(), usize::MAX)
    }
}

fn read_events(ring: &mut RingBuf<MapData>, most: usize) -> Vec<FlowEvent> {
    let mut events = Vec::new();
    while events.len() < most
        && let Some(bytes) = ring.next()
    {
        // Another version of the programs may have left something else.
        if bytes.len() == size_of::<FlowEvent>() {
            // SAFETY: as long as the type, any bytes are a value of it (`aya::Pod`), and no alignment is asked for.
            events.push(unsafe { bytes.as_ptr().cast::<FlowEvent>().read_unaligned() });
        }
    }
    events
}
