//! Whatever happens to the store and in whatever pieces a client hears of it: in the end it has what it asked for.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const ALIASES: [&str; 3] = ["x", "y", "z"];
const CONTENTS: [&str; 3] = ["1", "2", "3"];

#[derive(Debug, Clone)]
enum Step {
    Put {
        name: usize,
        alias: Option<usize>,
        content: usize,
    },
    Remove(usize),
    /// The client gets a response of about this size.
    Respond(usize),
    Subscribe(&'static str),
    Unsubscribe(&'static str),
    /// The stream breaks; the next one begins with what the client holds.
    Reconnect,
}

/// What a client holds: name to version and aliases.
#[derive(Default)]
struct Client {
    held: BTreeMap<String, Resource>,
    asked: BTreeSet<&'static str>,
    wildcard: bool,
}

impl Client {
    fn take(&mut self, batch: Batch) {
        let fields = fields(&batch);
        let resources: Vec<Resource> =
            fields.resources.into_iter().map(|bytes| Resource::decode(bytes).unwrap()).collect();
        let named: BTreeSet<&str> = resources.iter().map(|resource| resource.name.as_str()).collect();
        assert_eq!(named.len(), resources.len(), "a name occurs once in a response");
        assert!(
            fields.removed_resources.iter().all(|name| !named.contains(name.as_str())),
            "sent or removed, not both"
        );
        for name in fields.removed_resources {
            self.held.remove(&name);
        }
        for resource in resources {
            self.held.insert(resource.name.clone(), resource);
        }
    }

    fn wants(&self, name: &str, aliases: &[String]) -> bool {
        self.wildcard || self.asked.contains(name) || aliases.iter().any(|a| self.asked.contains(a.as_str()))
    }
}

struct World {
    it: Fixture,
    client: Client,
}

impl World {
    fn new(wildcard: bool) -> Self {
        let mut world = Self { it: Fixture::new(&[]), client: Client { wildcard, ..Client::default() } };
        world.connect();
        world
    }

    fn connect(&mut self) {
        self.it.subscription = Subscription::default();
        let mut subscribe = vec!["*"];
        subscribe.extend(&self.client.asked);
        let unsubscribe: &[&str] = if self.client.wildcard { &[] } else { &["*"] };
        let held: Vec<_> = self
            .client
            .held
            .values()
            .map(|resource| (resource.name.as_str(), resource.version.as_str()))
            .collect();
        self.it.express(&subscribe, unsubscribe, &held);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Put { name, alias, content } => {
                let aliases: Vec<&str> = alias.iter().map(|alias| ALIASES[*alias]).collect();
                self.it.put(NAMES[name], &aliases, CONTENTS[content]);
            }
            Step::Remove(name) => self.it.remove(NAMES[name]),
            Step::Respond(limit) => {
                if let Some(batch) = self.it.batch(limit).unwrap() {
                    self.client.take(batch);
                }
            }
            Step::Subscribe(name) => {
                self.client.asked.insert(name);
                self.it.express(&[name], &[], &[]);
            }
            Step::Unsubscribe(name) => {
                self.client.asked.remove(name);
                let mut left = vec![name];
                // A client forgets what it did not ask for otherwise, and says so by name.
                let forgotten: Vec<String> = self
                    .client
                    .held
                    .values()
                    .filter(|resource| !self.client.wants(&resource.name, &resource.aliases))
                    .map(|resource| resource.name.clone())
                    .collect();
                self.client.held.retain(|name, _| !forgotten.contains(name));
                left.extend(forgotten.iter().map(String::as_str));
                self.it.express(&[], &left, &[]);
            }
            Step::Reconnect => self.connect(),
        }
    }

    fn assert_converges(mut self) {
        for round in 0.. {
            let Some(batch) = self.it.batch(40).unwrap() else {
                break;
            };
            self.client.take(batch);
            assert!(round < 100, "there is no end");
        }
        let held: BTreeMap<&str, &str> = self
            .client
            .held
            .values()
            .map(|resource| (resource.name.as_str(), resource.version.as_str()))
            .collect();
        let offered: BTreeMap<&str, &str> = self
            .it
            .table
            .resources()
            .filter(|resource| {
                let aliases: Vec<String> = resource.aliases().iter().map(|alias| alias.to_string()).collect();
                self.client.wants(resource.name(), &aliases)
            })
            .map(|resource| (resource.name().as_ref(), resource.version()))
            .collect();
        assert_eq!(held, offered);
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    let any_name = prop::sample::select([NAMES.as_slice(), ALIASES.as_slice()].concat());
    prop_oneof![
        6 => (0..NAMES.len(), prop::option::of(0..ALIASES.len()), 0..CONTENTS.len())
            .prop_map(|(name, alias, content)| Step::Put { name, alias, content }),
        3 => (0..NAMES.len()).prop_map(Step::Remove),
        4 => (1..200_usize).prop_map(Step::Respond),
        2 => any_name.clone().prop_map(Step::Subscribe),
        1 => any_name.prop_map(Step::Unsubscribe),
        1 => Just(Step::Reconnect),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_wildcard_client_converges(steps in prop::collection::vec(any_step(), 0..40)) {
        let mut world = World::new(true);
        steps.into_iter().for_each(|step| world.step(step));
        world.assert_converges();
    }

    #[test]
    fn an_on_demand_client_converges(steps in prop::collection::vec(any_step(), 0..40)) {
        let mut world = World::new(false);
        steps.into_iter().for_each(|step| world.step(step));
        world.assert_converges();
    }
}
