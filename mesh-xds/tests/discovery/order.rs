//! Types whose resources name each other: nothing is named that the client does not hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use fastrand::Rng;
use mesh_xds::client::{Client, ClientConfig, Rejection, Subscription, Update};
use mesh_xds::proto::Name;
use mesh_xds::proto::discovery::Node;
use mesh_xds::proto::security::Authorization;
use mesh_xds::proto::workload::Workload;
use mesh_xds::server::{ResourceStore, ServerConfig, StoredResource, Transaction};

use super::support::*;

const ROUNDS: u32 = 300;

#[derive(Debug, Default)]
struct Held {
    policies: BTreeSet<String>,
    /// The policy that each workload names.
    named: BTreeMap<String, String>,
    dangling: Vec<String>,
    updates: usize,
}

impl Held {
    fn apply(&mut self, update: &Update) {
        let mut malformed = Vec::new();
        if *update.type_url == *Authorization::type_url() {
            let held = update.decode::<Authorization>(&mut malformed);
            self.policies.extend(held.into_iter().map(|(resource, _)| resource.name.clone()));
            self.policies.retain(|name| !update.removed.contains(name));
        } else {
            let held = update.decode::<Workload>(&mut malformed);
            let named = held.into_iter().map(|(resource, workload)| {
                (resource.name.clone(), workload.authorization_policies[0].clone())
            });
            self.named.extend(named.collect::<Vec<_>>());
            self.named.retain(|name, _| !update.removed.contains(name));
        }
        let policies = &self.policies;
        self.dangling.extend(self.named.values().filter(|name| !policies.contains(*name)).cloned());
        self.updates += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_named_comes_first_and_goes_last() {
    // One resource or two to a response, so that the types overtake each other wherever they can.
    let config = ServerConfig {
        response_bytes: 200,
        coalesce: std::time::Duration::from_millis(1),
        order: vec![Authorization::type_url().into(), Workload::type_url().into()],
        ..ServerConfig::default()
    };
    let store = ResourceStore::new();
    let mut rng = Rng::with_seed(4);
    let mut named = BTreeMap::new();
    change(&store, &mut named, &mut rng, 0);
    let server = TestServer::start_with(&store, config, "127.0.0.1:0", None).await;

    let held = Arc::new(Mutex::new(Held::default()));
    let sink = Arc::clone(&held);
    let node = Node::new("ztunnel~127.0.0.1~agent.test~test.svc.cluster.local", [("NODE_NAME", "n1")]);
    let subscriptions = vec![Subscription::wildcard::<Authorization>(), Subscription::wildcard::<Workload>()];
    let config = ClientConfig::new(vec![server.uri()], node, subscriptions);
    let handler = move |update: &Update| -> Vec<Rejection> {
        sink.lock().unwrap().apply(update);
        Vec::new()
    };
    let (client, _handle) = Client::new(config, handler).unwrap();
    let task = tokio::spawn(client.run());

    for round in 1..=ROUNDS {
        change(&store, &mut named, &mut rng, round);
        if rng.u8(0..3) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(rng.u64(0..4))).await;
        }
    }
    eventually("the client holds what there is", || {
        let held = held.lock().unwrap();
        held.named == named && held.policies == named.values().cloned().collect()
    })
    .await;
    let held = held.lock().unwrap();
    assert!(held.dangling.is_empty(), "named but not held: {:?}", held.dangling);
    assert!(held.updates > 50, "{} updates are too few to say anything", held.updates);
    task.abort();
}

/// Some workloads name other, new policies, and the policies that nobody names any more go.
fn change(store: &ResourceStore, named: &mut BTreeMap<String, String>, rng: &mut Rng, round: u32) {
    let mut transaction = Transaction::new();
    let before: BTreeSet<String> = named.values().cloned().collect();
    for number in 0..rng.u8(1..6) {
        let (workload, policy) = (format!("w{}", rng.u8(0..12)), format!("p{}-{number}", round % 7));
        let message = Workload { authorization_policies: vec![policy.clone()], ..Default::default() };
        transaction.upsert(&Workload::type_url(), StoredResource::new(&workload, &message));
        named.insert(workload, policy);
    }
    let after: BTreeSet<String> = named.values().cloned().collect();
    for policy in &after {
        let message = Authorization { name: policy.clone(), ..Default::default() };
        transaction.upsert(&Authorization::type_url(), StoredResource::new(policy, &message));
    }
    for policy in before.difference(&after) {
        transaction.remove(&Authorization::type_url(), policy.as_str());
    }
    store.update(transaction);
}
