#![allow(clippy::unwrap_used, missing_docs, reason = "a measuring program")]
//! What a check costs, by the number of policies that are there: `cargo bench -p mesh-agent --bench authorization`.
//!
//! Every policy has ten rules for clients and ports of its own, all of them in the workload's namespace, or all named by
//! the workload. One connection is allowed by the last rule of a policy in the middle, one is denied because no rule
//! matches, one because a rule of a DENY matches.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_agent::config::{TunnelProtocol, Workload};
use mesh_agent::policy::{Policy, PolicyStore, Request, Strings, read};
use mesh_xds::identity::Identity;
use mesh_xds::proto::Any;
use mesh_xds::proto::security::{
    Action, Address, Authorization, Clause, Match, Rule, Scope, StringMatch, string_match::MatchType,
};

const RULES: usize = 10;
const ROUNDS: usize = 15;
const CHECKS: u32 = 10_000;

fn main() {
    println!("{ROUNDS} rounds of {CHECKS} checks each; median (fastest..slowest) of a check\n");
    for scope in [Scope::Namespace, Scope::WorkloadSelector] {
        for policies in [10, 100, 1_000, 10_000] {
            measure(scope, policies);
        }
    }
}

fn measure(scope: Scope, count: usize) {
    let names: Vec<Arc<str>> = match scope {
        Scope::WorkloadSelector => (0..=count).map(|number| format!("shop/p{number}").into()).collect(),
        Scope::Global | Scope::Namespace => Vec::new(),
    };
    let workload = workload(names);
    let mut strings = Strings::default();
    let resident = resident_kib();
    let mut policies: Vec<Arc<Policy>> =
        (0..count).map(|number| policy(number, scope, Action::Allow, &mut strings)).collect();
    policies.push(policy(count, scope, Action::Deny, &mut strings));
    let mut store = PolicyStore::default();
    store.insert_workload(None, &workload);
    let began = Instant::now();
    policies.iter().for_each(|policy| store.insert(Arc::clone(policy)));
    let built = began.elapsed();
    let kib = resident_kib().saturating_sub(resident);

    let began = Instant::now();
    for number in 0..count.min(1_000) {
        let snapshot = store.policies().clone();
        store.insert(policy(number, scope, Action::Deny, &mut strings));
        store.insert(policy(number, scope, Action::Allow, &mut strings));
        drop(snapshot);
    }
    let change = began.elapsed() / u32::try_from(2 * count.min(1_000)).unwrap();
    println!(
        "{scope:?}: {count} policies x {RULES} rules, built in {built:.0?}, {kib} KiB, a change takes {change:.1?}"
    );

    let middle = client(count / 2, RULES - 1);
    let stranger = Identity::new("cluster.local", "nowhere", "nobody");
    let unwanted = client(count, 0);
    for (what, source, port, allowed) in [
        ("allowed by a rule", Some(&middle), 1_000 + RULES - 1, true),
        ("no rule matches", Some(&stranger), 80, false),
        ("no identity", None, 80, false),
        ("denied by a rule", Some(&unwanted), 1_000, false),
    ] {
        let request = Request {
            source,
            source_ip: [10, 200, 0, 1].into(),
            destination: ([10, 0, 0, 1], u16::try_from(port).unwrap()).into(),
            workload: &workload,
        };
        assert_eq!(store.policies().authorize(&request).is_ok(), allowed, "{what}");
        let mut rounds: Vec<Duration> = (0..ROUNDS)
            .map(|_| {
                let began = Instant::now();
                for _ in 0..CHECKS {
                    black_box(store.policies().authorize(black_box(&request)).is_ok());
                }
                began.elapsed() / CHECKS
            })
            .collect();
        rounds.sort_unstable();
        let (median, last) = (rounds.get(ROUNDS / 2).unwrap(), rounds.last().unwrap());
        println!("    {what:<20} {median:>10.2?} ({:.2?}..{last:.2?})", rounds.first().unwrap());
    }
}

fn client(policy: usize, rule: usize) -> Identity {
    Identity::new("cluster.local", format!("team{policy}"), format!("client{rule}"))
}

/// Rules of four kinds, so that no single lookup finds them all.
fn policy(number: usize, scope: Scope, action: Action, strings: &mut Strings) -> Arc<Policy> {
    let text = |match_type| vec![StringMatch { match_type: Some(match_type) }];
    let rules = (0..RULES).map(|index| {
        let client = client(number, index);
        let from = match index % 5 {
            1 => Match {
                principals: text(MatchType::Prefix(format!("{}-", client.principal()))),
                ..Default::default()
            },
            2 => {
                let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
                let address = vec![172, high, low, u8::try_from(index).unwrap()].into();
                Match { source_ips: vec![Address { address, length: 32 }], ..Default::default() }
            }
            3 => Match {
                namespaces: text(MatchType::Exact(client.namespace().to_string())),
                not_principals: text(MatchType::Suffix("/sa/admin".to_owned())),
                ..Default::default()
            },
            _ => Match { principals: text(MatchType::Exact(client.principal())), ..Default::default() },
        };
        let port = u32::try_from(1_000 + index).unwrap();
        let to = Match { destination_ports: vec![port], ..Default::default() };
        Rule { clauses: [from, to].map(|one| Clause { matches: vec![one] }).into() }
    });
    let message = Authorization {
        name: format!("p{number}"),
        namespace: "shop".to_owned(),
        scope: scope.into(),
        action: action.into(),
        rules: rules.collect(),
        ..Default::default()
    };
    Arc::new(read(&format!("shop/p{number}"), &Any::pack(&message), strings).unwrap())
}

fn workload(authorization_policies: Vec<Arc<str>>) -> Workload {
    Workload {
        uid: "c//Pod/shop/web".into(),
        name: "web".into(),
        namespace: "shop".into(),
        service_account: "web".into(),
        trust_domain: "cluster.local".into(),
        addresses: vec![[10, 0, 0, 1].into()],
        hostname: "".into(),
        network: "".into(),
        cluster: "c".into(),
        node: "n1".into(),
        host_network: false,
        canonical_name: "web".into(),
        canonical_revision: "latest".into(),
        workload_name: "web".into(),
        tunnel: TunnelProtocol::Hbone,
        waypoint: None,
        network_gateway: None,
        healthy: true,
        weight: 1,
        locality: Default::default(),
        services: vec![],
        authorization_policies,
        mutual_tls: Default::default(),
        redirection: Default::default(),
        failure_mode: None,
    }
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
