//! Session affinity: which endpoint a client's last connection to a service went to (`sessionAffinity: ClientIP`).
//!
//! Shared by the workers, since the connections of one client come to all of them. Asked only for services that want it; a
//! lock of one of some shards is held for a look-up, never over a wait.
//!
//! The table is bounded. What it does not remember, because it is full or the agent was restarted, is drawn by a hash
//! of client and endpoint ([`super::balance::choose_sticky`]), which comes to the same endpoint again as long as the same may be
//! chosen: so forgetting shows only where endpoints have come since.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::ServiceName;

const SHARDS: usize = 16;

/// Clients and services remembered, of each shard: 65,536 together, 10 MB at most.
const CLIENTS_PER_SHARD: usize = 4096;

/// Where clients were sent.
#[derive(Debug, Default)]
pub(super) struct Affinity {
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    sent: HashMap<Client, Sent>,
    /// Nothing is forgotten before: while a full shard has nobody to forget, new clients need not look through it.
    next_end: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Client {
    address: IpAddr,
    service: ServiceName,
}

#[derive(Debug)]
struct Sent {
    /// Uid of the workload.
    endpoint: Arc<str>,
    until: Instant,
}

impl Affinity {
    /// The workload that the last connection of `client` to `service` went to, while that is remembered.
    pub(super) fn last(&self, client: IpAddr, service: &ServiceName, now: Instant) -> Option<Arc<str>> {
        let client = Client { address: client, service: service.clone() };
        let shard = self.shard(&client)?.lock().unwrap_or_else(PoisonError::into_inner);
        shard.sent.get(&client).filter(|sent| now < sent.until).map(|sent| Arc::clone(&sent.endpoint))
    }

    /// Remembers where a connection went, for `time` from `now` on.
    pub(super) fn remember(
        &self,
        client: IpAddr,
        service: &ServiceName,
        endpoint: &Arc<str>,
        time: Duration,
        now: Instant,
    ) {
        let client = Client { address: client, service: service.clone() };
        let Some(shard) = self.shard(&client) else { return };
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let until = now + time;
        if shard.sent.len() >= CLIENTS_PER_SHARD && !shard.sent.contains_key(&client) && !shard.make_room(now)
        {
            return;
        }
        shard.next_end = Some(shard.next_end.map_or(until, |end| end.min(until)));
        shard.sent.insert(client, Sent { endpoint: Arc::clone(endpoint), until });
    }

    fn shard(&self, client: &Client) -> Option<&Mutex<Shard>> {
        let mut hasher = DefaultHasher::new();
        client.hash(&mut hasher);
        self.shards.get(usize::try_from(hasher.finish()).unwrap_or_default() % SHARDS)
    }
}

impl Shard {
    /// Forgets those whose time is over; whether there were any.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.next_end.is_some_and(|end| now < end) {
            return false;
        }
        self.sent.retain(|_, sent| now < sent.until);
        self.next_end = self.sent.values().map(|sent| sent.until).min();
        self.sent.len() < CLIENTS_PER_SHARD
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::fixtures::{ip, service_name};

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_client_is_remembered_for_its_time_after_the_last_connection() {
        let (affinity, start) = (Affinity::default(), Instant::now());
        let (web, client) = (service_name("web"), ip("10.1.0.3"));
        assert_eq!(affinity.last(client, &web, start), None);
        affinity.remember(client, &web, &"a".into(), MINUTE, start);
        affinity.remember(client, &web, &"a".into(), MINUTE, start + MINUTE / 2);
        assert_eq!(affinity.last(client, &web, start + MINUTE).as_deref(), Some("a"));
        assert_eq!(affinity.last(client, &web, start + MINUTE * 3 / 2), None);
        // Nobody else, and no other service.
        assert_eq!(affinity.last(ip("fd00::3"), &web, start), None);
        assert_eq!(affinity.last(client, &service_name("cart"), start), None);
    }

    #[test]
    fn the_table_does_not_grow_without_end_and_makes_room_for_who_comes_later() {
        let (affinity, start) = (Affinity::default(), Instant::now());
        let web = service_name("web");
        let count = |now| {
            let of = |shard: &Mutex<Shard>| {
                shard.lock().unwrap().sent.values().filter(|sent| now < sent.until).count()
            };
            affinity.shards.iter().map(of).sum::<usize>()
        };
        let come =
            |number: u32, now| affinity.remember(IpAddr::V4(number.into()), &web, &"a".into(), MINUTE, now);
        (0..100_000).for_each(|number| come(number, start));
        assert!(count(start) <= SHARDS * CLIENTS_PER_SHARD);
        let later = start + MINUTE * 2;
        (200_000..210_000).for_each(|number| come(number, later));
        assert_eq!(count(later), 10_000);
    }
}
