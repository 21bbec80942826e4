//! Random and damaged responses on the client's way of reading: nothing panics, and what was good stays.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::proto::workload::{Address, NetworkAddress, Port, PortList, Service, address};

/// The cases of each of the two mutating tests; together more than a quarter of a million.
const CASES: usize = 140_000;
/// After this many, the client starts anew: damaged names pile up in it.
const CASES_PER_CLIENT: usize = 2_000;
const CANARY: &str = "canary: no damaged response names it";

/// A program that keeps the last good version of everything it was given.
#[derive(Default)]
struct LastGood(BTreeMap<String, Address>);

impl Handler for LastGood {
    fn apply(&mut self, update: &Update) -> Vec<Rejection> {
        let mut rejections = Vec::new();
        for (resource, address) in update.decode::<Address>(&mut rejections) {
            self.0.insert(resource.name.clone(), address);
        }
        for name in &update.removed {
            self.0.remove(name);
        }
        rejections
    }
}

struct Client {
    types: Types,
    good: LastGood,
}

impl Client {
    fn new() -> Self {
        let mut client =
            Self { types: Types::new(vec![Subscription::wildcard::<Address>()]), good: LastGood::default() };
        let answer = client.receive(&of(vec![packed(CANARY, &canary())]).encode_to_vec()).unwrap();
        assert_eq!(answer.error_detail, None);
        client
    }

    /// `None` if the bytes are no response at all: then the stream ends.
    fn receive(&mut self, response: &[u8]) -> Option<DeltaDiscoveryRequest> {
        let response = DeltaDiscoveryResponse::decode(response).ok()?;
        Some(self.types.receive(response, &mut self.good).answer)
    }

    fn assert_intact(&self) {
        assert_eq!(self.good.0.get(CANARY), Some(&canary()));
        // The server is told of exactly what the program has.
        let (_, state) = self.types.iter().next().unwrap();
        assert_eq!(state.held.len(), self.good.0.len());
        assert!(state.held.keys().all(|name| self.good.0.contains_key(&**name)));
    }
}

fn canary() -> Address {
    Address {
        r#type: Some(address::Type::Workload(Workload { uid: CANARY.to_owned(), ..Default::default() })),
    }
}

fn packed(name: &str, address: &Address) -> Resource {
    Resource {
        name: name.to_owned(),
        version: "1".to_owned(),
        resource: Some(Any::pack(address)),
        ..Default::default()
    }
}

fn of(resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse { type_url: Address::type_url(), ..response(resources, &[]) }
}

fn corpus() -> Vec<Vec<u8>> {
    let port = Port { service_port: 80, target_port: 8080, ..Default::default() };
    let mut workload = Workload {
        uid: "cluster//Pod/ns/pod".to_owned(),
        addresses: vec![Bytes::from_static(&[10, 0, 0, 1]), Bytes::from_static(&[0xfd; 16])],
        services: [("ns/svc".to_owned(), PortList { ports: vec![port] })].into(),
        capacity: Some(7),
        ..Default::default()
    };
    workload.set_traffic_redirection(&crate::proto::mesh::TrafficRedirection {
        exclude_inbound_ports: vec![1, 70_000],
        ..Default::default()
    });
    let vip = NetworkAddress { address: Bytes::from_static(&[10, 1, 0, 1]), ..Default::default() };
    let service = Service { hostname: "svc".to_owned(), addresses: vec![vip], ..Default::default() };
    let workload = Address { r#type: Some(address::Type::Workload(workload)) };
    let service = Address { r#type: Some(address::Type::Service(service)) };
    let mut with_removal = of(vec![packed("w", &workload), packed("s", &service)]);
    with_removal.removed_resources = vec!["w".to_owned(), "x".to_owned()];
    [of(vec![]), of(vec![packed("w", &workload)]), of(vec![packed("s", &service)]), with_removal]
        .iter()
        .map(Message::encode_to_vec)
        .collect()
}

fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut fastrand::Rng) {
    for _ in 0..random.usize(1..4) {
        let at = random.usize(..=bytes.len());
        match random.u8(..6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.u8(..)),
            2 => drop(bytes.drain(at..bytes.len().min(at + random.usize(..8)))),
            3 => bytes.extend_from_slice(&other[random.usize(..=other.len())..]),
            4 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = random.u8(..)),
            _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.u8(..8)),
        }
    }
}

/// Runs `damage` on response after response.
fn endure(seed: u64, mut damage: impl FnMut(&mut fastrand::Rng) -> Vec<u8>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut read, mut accepted) = (0, 0);
    for _ in 0..CASES / CASES_PER_CLIENT {
        let mut client = Client::new();
        for _ in 0..CASES_PER_CLIENT {
            if let Some(answer) = client.receive(&damage(&mut random)) {
                read += 1;
                accepted += usize::from(answer.error_detail.is_none());
            }
        }
        client.assert_intact();
    }
    // The damage is of every degree, or the test would show little.
    assert!(
        read > CASES / 100 && accepted > CASES / 1000 && accepted < read,
        "{accepted} of {read} of {CASES}"
    );
}

#[test]
fn damaged_responses_leave_the_last_good_state() {
    let corpus = corpus();
    endure(1, |random| {
        let mut bytes = corpus[random.usize(..corpus.len())].clone();
        mutate(&mut bytes, &corpus[random.usize(..corpus.len())], random);
        bytes
    });
}

#[test]
fn damaged_resources_leave_the_last_good_state() {
    let corpus: Vec<Bytes> = corpus()
        .iter()
        .flat_map(|bytes| DeltaDiscoveryResponse::decode(bytes.as_slice()).unwrap().resources)
        .collect();
    endure(2, |random| {
        let mut bytes = corpus[random.usize(..corpus.len())].to_vec();
        if random.u8(..10) == 0 {
            bytes = vec![0; random.usize(..64)];
            random.fill(&mut bytes);
        }
        mutate(&mut bytes, &corpus[random.usize(..corpus.len())], random);
        DeltaDiscoveryResponse { resources: vec![bytes.into()], ..of(vec![]) }.encode_to_vec()
    });
}

fn any_resource() -> impl Strategy<Value = Resource> {
    let body = prop_oneof![
        4 => Just(Some(Any::pack(&canary()))),
        1 => Just(Some(Any::pack(&Workload::default()))),
        1 => Just(None),
        1 => any::<Vec<u8>>().prop_map(|bytes| Some(Any { type_url: Address::type_url(), value: bytes.into() })),
    ];
    let ttl = prop::option::weighted(0.1, Just(prost_types::Duration::default()));
    ("[a-d]?", "[0-9]?", body, ttl).prop_map(|(name, version, resource, ttl)| Resource {
        name,
        version,
        resource,
        ttl,
        ..Default::default()
    })
}

fn is_sign_of_life(resource: &Resource) -> bool {
    !resource.name.is_empty() && resource.resource.is_none() && resource.ttl.is_some()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever a well-formed response says, the client holds the versions of what was accepted, in order.
    #[test]
    fn holds_what_was_accepted(
        responses in prop::collection::vec(
            (prop::collection::vec(any_resource(), 0..5), prop::collection::vec("[a-e]", 0..3)),
            1..6,
        )
    ) {
        let mut client = Client::new();
        let mut expected: BTreeMap<String, String> = [(CANARY.to_owned(), "1".to_owned())].into();
        for (resources, removed) in responses {
            // Of several with one name the last counts, and any of them counts more than a removal.
            let mut last = BTreeMap::new();
            let mut nameless = false;
            for resource in resources.iter().filter(|resource| !is_sign_of_life(resource)) {
                nameless |= resource.name.is_empty();
                last.insert(resource.name.clone(), resource.clone());
            }
            let refused = |resource: &Resource| {
                resource.resource.as_ref().is_none_or(|body| body.unpack::<Address>().is_err())
            };
            last.remove("");
            removed.iter().filter(|name| !last.contains_key(*name)).for_each(|name| drop(expected.remove(name)));
            let any_refused = nameless || last.values().any(refused);
            for (name, resource) in last.into_iter().filter(|(_, resource)| !refused(resource)) {
                expected.insert(name, resource.version);
            }
            let message = DeltaDiscoveryResponse { removed_resources: removed, ..of(resources) };
            let answer = client.receive(&message.encode_to_vec()).unwrap();
            prop_assert_eq!(answer.error_detail.is_some(), any_refused);
        }
        let mut held: BTreeMap<String, String> = versions(&client.types).into_iter().collect();
        // Named without a version: refused and never accepted.
        held.retain(|_, version| !version.is_empty());
        expected.retain(|_, version| !version.is_empty());
        prop_assert_eq!(held, expected);
        prop_assert_eq!(client.good.0.get(CANARY), Some(&canary()));
    }
}
