use super::*;
use crate::proto::Any;
use crate::proto::discovery::{DeltaDiscoveryResponse, Resource};
use bytes::Bytes;
use prost::Message;

mod model;

const NO_LIMIT: usize = usize::MAX;

struct Fixture {
    table: Table,
    sequence: u64,
    subscription: Subscription,
    shared: ContentsOfType,
    /// As if another client had each response on its way all the time.
    on_their_way: Vec<Arc<Content>>,
}

impl Fixture {
    fn new(resources: &[(&str, &'static str)]) -> Self {
        let mut fixture = Self {
            table: Table::default(),
            sequence: 0,
            subscription: Subscription::default(),
            shared: ContentsOfType::default(),
            on_their_way: Vec::new(),
        };
        for (name, content) in resources {
            fixture.put(name, &[], content);
        }
        fixture
    }

    fn put(&mut self, name: &str, aliases: &[&str], content: &'static str) -> String {
        self.sequence += 1;
        let resource = stored(name, aliases, content);
        let version = resource.version().to_owned();
        self.table.upsert(resource, self.sequence);
        version
    }

    fn remove(&mut self, name: &str) {
        self.sequence += 1;
        self.table.remove(name, self.sequence);
    }

    fn express(&mut self, subscribe: &[&str], unsubscribe: &[&str], held: &[(&str, &str)]) {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let held = held.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned())).collect();
        let interest = Interest { subscribe: owned(subscribe), unsubscribe: owned(unsubscribe), held };
        self.subscription.express(interest, &self.table);
    }

    fn batch(&mut self, limit: usize) -> Result<Option<Batch>, TooFarBehind> {
        let batch = self.subscription.next_batch(&self.table, limit, Removals::Announced, &self.shared)?;
        self.on_their_way.extend(batch.iter().map(|batch| Arc::clone(&batch.content)));
        Ok(batch)
    }

    /// Names sent and names removed in the next response.
    fn next(&mut self) -> Option<(Vec<String>, Vec<String>)> {
        let batch = self.batch(NO_LIMIT).unwrap()?;
        assert!(!batch.more);
        Some((names(&batch), fields(&batch).removed_resources))
    }

    /// All that is sent until there is nothing to say.
    fn drain(&mut self, limit: usize) -> Vec<(Vec<String>, bool)> {
        let mut batches = Vec::new();
        while let Some(batch) = self.batch(limit).unwrap() {
            batches.push((names(&batch), batch.more));
        }
        batches
    }
}

fn stored(name: &str, aliases: &[&str], content: &'static str) -> StoredResource {
    let body = Any { type_url: "t".to_owned(), value: Bytes::from_static(content.as_bytes()) };
    StoredResource::with_aliases(name, aliases.iter().copied(), body)
}

fn fields(batch: &Batch) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse::decode(batch.content.encoded.clone()).unwrap()
}

fn names(batch: &Batch) -> Vec<String> {
    fields(batch).resources.into_iter().map(|bytes| Resource::decode(bytes).unwrap().name).collect()
}

fn said(resources: &[&str], removed: &[&str]) -> Option<(Vec<String>, Vec<String>)> {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Some((owned(resources), owned(removed)))
}

#[test]
fn a_wildcard_client_gets_everything_once_and_then_changes() {
    let mut it = Fixture::new(&[("a", "1"), ("b", "1"), ("gone", "1")]);
    it.remove("gone");
    it.express(&["*"], &[], &[]);
    assert_eq!(it.next(), said(&["a", "b"], &[]));
    assert_eq!(it.next(), None);

    it.put("a", &[], "2");
    it.put("a", &[], "3");
    it.remove("b");
    assert_eq!(it.next(), said(&["a"], &["b"]));
    assert_eq!(it.next(), None);
}

#[test]
fn a_first_request_without_names_is_a_wildcard_and_is_answered_even_with_nothing() {
    let mut it = Fixture::new(&[]);
    it.express(&[], &[], &[]);
    assert_eq!(it.next(), said(&[], &[]));
    assert_eq!(it.next(), None);
}

#[test]
fn a_client_that_returns_gets_the_differences() {
    let mut it = Fixture::new(&[("changed", "1"), ("gone", "1")]);
    let same = it.put("same", &[], "1");
    it.put("changed", &[], "2");
    it.put("new", &[], "1");
    it.remove("gone");
    it.express(
        &["*"],
        &[],
        &[("same", &same), ("changed", "old"), ("gone", "old"), ("never-heard-of", "old")],
    );
    let (resources, mut removed) = it.next().unwrap();
    removed.sort();
    assert_eq!((resources, removed), said(&["changed", "new"], &["gone", "never-heard-of"]).unwrap());
    assert!(it.subscription.held.is_empty());
    // What it holds at the same version is sent again once it changes.
    it.put("same", &[], "2");
    assert_eq!(it.next(), said(&["same"], &[]));
}

#[test]
fn names_are_answered_whether_they_exist_or_not() {
    let mut it = Fixture::new(&[("a", "1"), ("b", "1")]);
    it.express(&["a", "x"], &[], &[]);
    assert_eq!(it.next(), said(&["a"], &["x"]));
    it.put("b", &[], "2");
    assert_eq!(it.next(), None, "not its business");
    it.put("x", &[], "1");
    assert_eq!(it.next(), said(&["x"], &[]));
    // Asked again, answered again: the client may have dropped it.
    it.express(&["a"], &[], &[]);
    assert_eq!(it.next(), said(&["a"], &[]));
    it.express(&[], &["a"], &[]);
    assert_eq!(it.next(), said(&[], &["a"]));
    it.put("a", &[], "2");
    it.remove("x");
    assert_eq!(it.next(), said(&[], &["x"]));
}

#[test]
fn both_subscribing_and_leaving_the_wildcard_means_on_demand() {
    let mut it = Fixture::new(&[("a", "1"), ("b", "1")]);
    it.express(&["*"], &["*"], &[]);
    assert_eq!(it.next(), None);
    it.express(&["b"], &[], &[]);
    assert_eq!(it.next(), said(&["b"], &[]));
}

#[test]
fn an_alias_stands_for_its_resources() {
    let mut it = Fixture::new(&[]);
    it.put("pod", &["net/10.0.0.1"], "1");
    it.express(&["net/10.0.0.1"], &[], &[]);
    assert_eq!(it.next(), said(&["pod"], &[]));
    it.put("pod", &["net/10.0.0.1"], "2");
    assert_eq!(it.next(), said(&["pod"], &[]));

    // The address goes over to another pod.
    it.put("pod", &["net/10.0.0.2"], "2");
    assert_eq!(it.next(), said(&[], &["pod", "net/10.0.0.1"]));
    it.put("other", &["net/10.0.0.1"], "1");
    assert_eq!(it.next(), said(&["other"], &[]));
    it.remove("other");
    assert_eq!(it.next(), said(&[], &["other", "net/10.0.0.1"]));
}

#[test]
fn a_returning_on_demand_client_is_subscribed_to_what_it_holds() {
    let mut it = Fixture::new(&[]);
    let same = it.put("same", &["net/10.0.0.1"], "1");
    it.put("changed", &[], "2");
    it.express(&["*"], &["*"], &[("same", &same), ("changed", "1"), ("gone", "1")]);
    assert_eq!(it.next(), said(&["changed"], &["gone"]));
    it.put("same", &["net/10.0.0.1"], "2");
    assert_eq!(it.next(), said(&["same"], &[]));
}

#[test]
fn a_wildcard_can_be_left_for_names() {
    let mut it = Fixture::new(&[("a", "1"), ("b", "1")]);
    it.express(&["*"], &[], &[]);
    assert_eq!(it.next(), said(&["a", "b"], &[]));
    it.express(&["a"], &["*"], &[]);
    assert_eq!(it.next(), said(&["a"], &[]));
    it.put("b", &[], "2");
    assert_eq!(it.next(), None);
    it.express(&["*"], &[], &[]);
    assert_eq!(it.next(), said(&["a", "b"], &[]));
}

#[test]
fn a_large_change_is_cut_into_responses_and_its_end_is_known() {
    let mut it = Fixture::new(&[("a", "1"), ("b", "1"), ("c", "1")]);
    it.express(&["*"], &[], &[]);
    let one = |name: &str, more| (vec![name.to_owned()], more);
    assert_eq!(it.drain(1), [one("a", true), one("b", true), one("c", false)]);

    // What changes while it is being sent comes after it, and does not make it endless.
    it.put("a", &[], "2");
    it.put("b", &[], "2");
    let first = it.batch(1).unwrap().unwrap();
    assert!(first.more && names(&first) == ["a"]);
    it.put("a", &[], "3");
    assert_eq!(it.drain(1), [one("b", false), one("a", false)]);
}

#[test]
fn who_missed_forgotten_removals_has_to_reconnect() {
    let mut it = Fixture::new(&[("a", "1")]);
    it.express(&["*"], &[], &[]);
    it.next().unwrap();
    for number in 0..2000 {
        let name = format!("r{number}");
        it.put(&name, &[], "1");
        it.remove(&name);
    }
    assert_eq!(it.batch(NO_LIMIT).unwrap_err(), TooFarBehind);
    // Who comes new needs none of them.
    it.subscription = Subscription::default();
    it.express(&["*"], &[], &[]);
    assert_eq!(it.next(), said(&["a"], &[]));
}

#[test]
fn what_was_removed_is_sent_again_though_the_client_came_with_it() {
    let mut it = Fixture::new(&[("b", "1"), ("d", "1")]);
    let held = [it.put("b", &[], "2"), it.put("d", &[], "2")];
    it.remove("d");
    it.express(&["*"], &[], &[("b", &held[0]), ("d", &held[1])]);
    it.express(&["b"], &[], &[]);
    // The response is full once the removal is told.
    let first = it.batch(1).unwrap().unwrap();
    assert_eq!(fields(&first).removed_resources, ["d"]);
    it.put("d", &[], "2");
    let sent: Vec<String> = it.drain(NO_LIMIT).into_iter().flat_map(|(names, _)| names).collect();
    assert!(sent.iter().any(|name| name == "d"), "{sent:?}");
}
