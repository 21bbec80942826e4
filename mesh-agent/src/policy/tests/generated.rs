//! The index against [`reference`](super::reference), over generated policies, workloads and connections.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::Config;

use super::*;

/// Worlds, changes of each, connections asked about after each change: 100,000 cases together.
const WORLDS: u32 = 250;
const STEPS: usize = 10;
const REQUESTS: usize = 40;

const NAMES: [&str; 6] = ["shop/a", "shop/b", "web/a", "web/b", "root/a", "root/b"];
const NAMESPACES: [&str; 4] = ["web", "we", "db", "shop"];

#[derive(Debug, Clone)]
enum Step {
    Put(Authorization),
    Remove(&'static str),
    /// The policies that the workload names.
    Select(Vec<&'static str>),
}

fn string_match(texts: &'static [&'static str]) -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        6 => select(texts).prop_map(exact),
        2 => select(texts).prop_map(|text| prefix(&text[..text.len() / 2 + 1])),
        2 => select(texts).prop_map(|text| suffix(&text[text.len() / 2..])),
        1 => Just(presence()),
        1 => Just(StringMatch { match_type: None }),
    ]
}

fn identity() -> impl Strategy<Value = Identity> {
    (select(&["td", "td2"][..]), select(&NAMESPACES[..]), select(&["a", "b"][..]))
        .prop_map(|(trust_domain, namespace, account)| Identity::new(trust_domain, namespace, account))
}

const PRINCIPALS: &[&str] =
    &["td/ns/web/sa/a", "td/ns/web/sa/b", "td2/ns/web/sa/a", "td/ns/db/sa/a", "td/ns/we/sa/b"];
const RANGES: &[&str] =
    &["10.1.1.1/32", "10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0", "fd00::1/128", "fd00::/8", "::/0"];
const ADDRESSES: &[&str] = &["10.1.1.1", "10.1.2.3", "10.2.0.1", "192.0.2.1", "fd00::1", "2001:db8::1"];

/// A list that is usually empty: fields of a match are conditions on each other.
fn few<S: Strategy>(values: S) -> impl Strategy<Value = Vec<S::Value>>
where
    S::Value: Clone,
{
    prop_oneof![4 => Just(Vec::new()), 1 => proptest::collection::vec(values, 1..3)]
}

fn one_match() -> impl Strategy<Value = Match> {
    let texts = (
        few(string_match(PRINCIPALS)),
        few(string_match(PRINCIPALS)),
        few(string_match(&NAMESPACES)),
        few(string_match(&NAMESPACES)),
    );
    let ranges = || few(select(RANGES).prop_map(range));
    let ports = || few(select(&[80_u32, 443, 8080][..]));
    let accounts =
        || few((select(&NAMESPACES[..]), select(&["a", "b"][..])).prop_map(|(ns, name)| account(ns, name)));
    let extension = proptest::bool::weighted(0.05);
    (texts, (ranges(), ranges(), ranges(), ranges()), (ports(), ports()), (accounts(), accounts()), extension)
        .prop_map(|(texts, ranges, ports, accounts, extension)| Match {
            principals: texts.0,
            not_principals: texts.1,
            namespaces: texts.2,
            not_namespaces: texts.3,
            source_ips: ranges.0,
            not_source_ips: ranges.1,
            destination_ips: ranges.2,
            not_destination_ips: ranges.3,
            destination_ports: ports.0,
            not_destination_ports: ports.1,
            service_accounts: accounts.0,
            not_service_accounts: accounts.1,
            extensions: extension.then(Extension::default).into_iter().collect(),
        })
}

fn policy() -> impl Strategy<Value = Authorization> {
    let clause = proptest::collection::vec(one_match(), 0..3).prop_map(|matches| Clause { matches });
    let rule = proptest::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let usually = |values: [i32; 3], strange| prop_oneof![20 => select(values.to_vec()), 1 => Just(strange)];
    (
        select(&NAMES[..]),
        usually([0, 1, 2], 9),
        usually([0, 1, 1], 7),
        proptest::collection::vec(rule, 0..4),
        proptest::bool::weighted(0.1),
    )
        .prop_map(|(name, scope, action, rules, dry_run)| {
            let (namespace, name) = name.split_once('/').unwrap();
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            Authorization { name, namespace, scope, action, rules, dry_run, ..Default::default() }
        })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => policy().prop_map(Step::Put),
        2 => select(&NAMES[..]).prop_map(Step::Remove),
        2 => subsequence(NAMES.to_vec(), 0..4).prop_map(Step::Select),
    ]
}

type Asked = (Option<Identity>, IpAddr, SocketAddr);

fn asked() -> impl Strategy<Value = Asked> {
    let address = || select(ADDRESSES).prop_map(|text| text.parse::<IpAddr>().unwrap());
    let destination = (address(), select(&[80_u16, 443, 9090][..])).prop_map(SocketAddr::from);
    (proptest::option::weighted(0.8, identity()), address(), destination)
}

fn take(step: Step, store: &mut PolicyStore, held: &mut BTreeMap<String, Authorization>, own: &mut Workload) {
    match step {
        Step::Put(message) => {
            store.insert(compiled(&message));
            held.insert(format!("{}/{}", message.namespace, message.name), message);
        }
        Step::Remove(name) => {
            store.remove(name);
            held.remove(name);
        }
        Step::Select(names) => {
            let new = workload("shop", &names);
            store.insert_workload(Some(own), &new);
            *own = new;
        }
    }
}

proptest! {
    #![proptest_config(Config { cases: WORLDS, ..Config::default() })]

    #[test]
    fn the_index_decides_like_the_plain_evaluator(
        steps in proptest::collection::vec(step(), STEPS),
        asked in proptest::collection::vec(asked(), REQUESTS),
    ) {
        let (mut store, mut held, mut own) = (PolicyStore::default(), BTreeMap::new(), workload("shop", &[]));
        store.insert_workload(None, &own);
        let mut before: Option<(u64, Vec<bool>)> = None;
        for step in steps {
            take(step, &mut store, &mut held, &mut own);
            let (policies, messages) = (store.policies(), held.values().cloned().collect::<Vec<_>>());
            let mut decisions = Vec::new();
            for (source, source_ip, destination) in &asked {
                let (source, source_ip, destination) = (source.as_ref(), *source_ip, *destination);
                let request = Request { source, source_ip, destination, workload: &own };
                let expected = reference::verdict(&messages, &request);
                let found = policies.authorize(&request);
                decisions.push(found.is_ok());
                let text = match &found {
                    Ok(allowed) => Ok(allowed.to_string()),
                    Err(denied) => Err(denied.to_string()),
                };
                let agrees = match (&text, &expected) {
                    (Ok(text), Ok(expected)) => text == expected,
                    (Err(text), Err(expected)) => text.starts_with(expected.as_str()),
                    _ => false,
                };
                prop_assert!(agrees, "{request:?}: found {text:?}, expected {expected:?}");
                // The same without what is kept ready for local workloads.
                let stranger = Workload { uid: "elsewhere".into(), ..own.clone() };
                let same = policies.authorize(&Request { workload: &stranger, ..request });
                prop_assert_eq!(same.is_ok(), found.is_ok());
            }
            let revision = policies.revision();
            if let Some((old, was)) = before.replace((revision, decisions.clone())) {
                prop_assert!(old != revision || was == decisions, "decisions changed unannounced");
            }
        }
        NAMES.iter().for_each(|name| store.remove(name));
        store.remove_workload(&own);
        prop_assert!(store.is_pristine(), "something is left: {store:?}");
    }
}
