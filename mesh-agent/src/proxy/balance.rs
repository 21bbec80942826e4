//! Chooses among a service's endpoints: weighted least-request by the power of two choices.
//!
//! Two endpoints of the nearest tier are drawn at random, in proportion to their weights, and the one with fewer
//! open connections for its weight is taken. That comes close to the least busy of all without looking at all,
//! and, as every node sees only its own connections, does not send all nodes to the same endpoint. Endpoints that
//! could not be connected to lately are left out while there are others.
//!
//! Where a service wants session affinity, a client keeps the endpoint it had; a new client's is drawn by a hash of the two
//! instead of at random, so that it would be drawn again ([`choose_sticky`]).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::time::Instant;

use fastrand::Rng;

use crate::config::{Endpoint, ServiceEntry, Tier};

#[cfg(test)]
mod tests;

/// Most endpoints one connection may try.
pub(super) const MAX_ATTEMPTS: usize = 8;

/// Random draws before the tier is walked instead. Fails only where most of a tier is light, tried or ejected.
const DRAWS: usize = 8;

/// Where an endpoint stands in its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    tier: usize,
    index: usize,
}

/// The endpoints that one connection has tried.
#[derive(Debug, Default)]
pub(super) struct Tried {
    positions: [Option<Position>; MAX_ATTEMPTS],
    count: usize,
}

impl Tried {
    /// Adds one; the bound of attempts makes sure there is room.
    pub(super) fn add(&mut self, position: Position) {
        if let Some(free) = self.positions.get_mut(self.count) {
            *free = Some(position);
            self.count += 1;
        }
    }

    fn contains(&self, position: Position) -> bool {
        self.positions.iter().take(self.count).any(|tried| *tried == Some(position))
    }
}

/// Chooses an endpoint that is `usable` and not yet tried, of the first tier that has one; of those in a tier that are
/// `reserved` only if there is no other.
pub(super) fn choose<'a>(
    service: &'a ServiceEntry,
    tried: &Tried,
    now: Instant,
    rng: &mut Rng,
    usable: impl Fn(&Endpoint) -> bool,
    reserved: impl Fn(&Endpoint) -> bool,
) -> Option<(Position, &'a Endpoint)> {
    // Rather a distant endpoint than one that just failed; rather one that just failed than none.
    for with_ejected in [false, true] {
        for (number, tier) in service.tiers.iter().enumerate() {
            let candidate = |index: usize, endpoint: &Endpoint| {
                (with_ejected || !endpoint.load().is_ejected(now))
                    && !tried.contains(Position { tier: number, index })
                    && usable(endpoint)
            };
            let free = |index: usize, endpoint: &Endpoint| candidate(index, endpoint) && !reserved(endpoint);
            let chosen = less_busy_of_two(tier, rng, free);
            if let Some((index, endpoint)) = chosen.or_else(|| less_busy_of_two(tier, rng, candidate)) {
                return Some((Position { tier: number, index }, endpoint));
            }
        }
    }
    None
}

/// Chooses for a client that is to keep its endpoint, which is `last` if that is known: among those that [`choose`] would
/// consider.
pub(super) fn choose_sticky<'a>(
    service: &'a ServiceEntry,
    tried: &Tried,
    now: Instant,
    client: IpAddr,
    last: Option<&str>,
    usable: impl Fn(&Endpoint) -> bool,
) -> Option<(Position, &'a Endpoint)> {
    for with_ejected in [false, true] {
        for (number, tier) in service.tiers.iter().enumerate() {
            let place = |index| Position { tier: number, index };
            let candidates = tier.iter().enumerate().filter(|(index, endpoint)| {
                endpoint.workload.weight > 0
                    && (with_ejected || !endpoint.load().is_ejected(now))
                    && !tried.contains(place(*index))
                    && usable(endpoint)
            });
            let rank =
                |endpoint: &Endpoint| (last == Some(&*endpoint.workload.uid), draw_of(client, endpoint));
            let best = candidates.max_by(|(_, one), (_, other)| {
                let ((one_last, one), (other_last, other)) = (rank(one), rank(other));
                one_last.cmp(&other_last).then(one.total_cmp(&other))
            });
            if let Some((index, endpoint)) = best {
                return Some((place(index), endpoint));
            }
        }
    }
    None
}

/// Weighted rendezvous hashing: of all endpoints the one with the highest number is the client's. Endpoints win in proportion to
/// their weights, and one that comes or goes moves no client but its own.
fn draw_of(client: IpAddr, endpoint: &Endpoint) -> f64 {
    let mut hasher = DefaultHasher::new();
    (client, &*endpoint.workload.uid).hash(&mut hasher);
    // Between 0 and 1, neither included: the upper half of the bits is an exact number.
    let uniform =
        (f64::from(u32::try_from(hasher.finish() >> 32).unwrap_or_default()) + 0.5) / 4_294_967_296.0;
    -f64::from(endpoint.workload.weight) / uniform.ln()
}

/// Notes that `endpoint` could not be connected to. It is ejected for a while, unless half of the service's
/// endpoints already are: then the cause is more likely on this side, and the rest must not carry the load of all.
pub(super) fn note_failure(service: &ServiceEntry, endpoint: &Endpoint, now: Instant) {
    endpoint.load().failed();
    let (mut ejected, mut all) = (0, 0);
    for other in service.tiers.iter().flat_map(|tier| tier.iter()) {
        all += 1;
        if other.load().is_ejected(now) && other.workload.uid != endpoint.workload.uid {
            ejected += 1;
        }
    }
    if (ejected + 1) * 2 <= all {
        let period = endpoint.load().eject(now);
        tracing::debug!(
            service = %service.service.id, endpoint = %endpoint.workload.uid, seconds = period.as_secs(),
            "endpoint ejected"
        );
    }
}

fn less_busy_of_two<'a>(
    tier: &'a Tier,
    rng: &mut Rng,
    candidate: impl Fn(usize, &Endpoint) -> bool,
) -> Option<(usize, &'a Endpoint)> {
    let (first_index, first) = draw(tier, rng, &candidate)?;
    let second = draw(tier, rng, |index, endpoint| index != first_index && candidate(index, endpoint));
    match second {
        Some((index, second)) if is_less_busy(second, first) => Some((index, second)),
        _ => Some((first_index, first)),
    }
}

/// Compares open connections for the weight. Equals keep the order they were drawn in, which is what spreads
/// connections by weight while none stays open.
fn is_less_busy(one: &Endpoint, other: &Endpoint) -> bool {
    let load = |of: &Endpoint, weight: u32| u64::from(of.load().active()) * u64::from(weight);
    load(one, other.workload.weight) < load(other, one.workload.weight)
}

/// Draws one candidate at random, in proportion to the weights. Weight 0 is never drawn.
fn draw<'a>(
    tier: &'a Tier,
    rng: &mut Rng,
    candidate: impl Fn(usize, &Endpoint) -> bool,
) -> Option<(usize, &'a Endpoint)> {
    if tier.heaviest() == 0 {
        return None;
    }
    // Rejection sampling: exact, and mostly one step whatever the size of the tier.
    for _ in 0..DRAWS {
        let index = rng.usize(..tier.len());
        let endpoint = tier.get(index)?;
        if rng.u32(..tier.heaviest()) < endpoint.workload.weight && candidate(index, endpoint) {
            return Some((index, endpoint));
        }
    }
    // Reservoir sampling: exact as well, and sees every candidate there is.
    let mut total = 0_u64;
    let mut drawn = None;
    for (index, endpoint) in tier.iter().enumerate() {
        let weight = u64::from(endpoint.workload.weight);
        if weight > 0 && candidate(index, endpoint) {
            total += weight;
            if rng.u64(..total) < weight {
                drawn = Some((index, endpoint));
            }
        }
    }
    drawn
}
