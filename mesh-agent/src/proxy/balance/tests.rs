use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::{ProptestConfig, prop, prop_assert, prop_assert_eq, prop_assume, proptest};

use super::super::fixtures::{ip, service, snapshot, workload};
use super::*;
use crate::config::{BalanceMode, RoutingScope, Snapshot};

/// A service with an endpoint of each weight, on the nodes given in turn.
fn mesh(weights: &[u32], nodes: &[&str]) -> std::sync::Arc<Snapshot> {
    let mut web = service("web", &["10.96.0.1"]);
    web.load_balancing.mode = BalanceMode::Failover;
    web.load_balancing.preference = vec![RoutingScope::Node];
    let workloads = weights.iter().enumerate().map(|(index, weight)| {
        let name = format!("w{index}");
        let node = nodes[index % nodes.len()];
        let mut endpoint = workload(&name, &[&format!("10.2.0.{}", index + 1)], node, &["web"]);
        endpoint.weight = *weight;
        endpoint
    });
    snapshot([web], workloads)
}

/// Which endpoint each of `count` clients gets that has none yet.
fn sticky(entry: &ServiceEntry, count: u32) -> Vec<String> {
    let choose = |number: u32| {
        choose_sticky(entry, &Tried::default(), Instant::now(), IpAddr::V4(number.into()), None, |_| true)
    };
    (0..count).map(|number| name(choose(number).unwrap().1)).collect()
}

#[test]
fn clients_that_keep_their_endpoints_share_them_by_weight_and_move_only_if_theirs_goes() {
    let all = mesh(&[1, 2, 5], &["n1"]);
    let drawn = sticky(entry(&all), 4000);
    assert_eq!(drawn, sticky(entry(&all), 4000), "the same again");
    for (endpoint, weight) in [("w0", 1.0), ("w1", 2.0), ("w2", 5.0)] {
        let share = drawn.iter().filter(|drawn| *drawn == endpoint).count() as f64 / 4000.0;
        assert!((share - weight / 8.0).abs() < 0.03, "{endpoint}: {share}");
    }
    let fewer = mesh(&[1, 2], &["n1"]);
    for (before, after) in drawn.iter().zip(sticky(entry(&fewer), 4000)) {
        assert!(*before == after || before == "w2", "{before} -> {after}");
    }
}

#[test]
fn a_client_keeps_the_endpoint_it_had_as_long_as_that_may_be_chosen() {
    let near = mesh(&[1, 1, 1, 1], &["n1", "n2"]);
    let (entry, now, client) = (entry(&near), Instant::now(), ip("10.1.0.3"));
    let uid = |name: &str| {
        entry.endpoints.iter().find(|known| known.workload.name() == name).unwrap().workload.uid.clone()
    };
    let chosen = |last: &str, tried: &Tried, usable: &dyn Fn(&Endpoint) -> bool| {
        choose_sticky(entry, tried, now, client, Some(&uid(last)), usable)
            .map(|(place, endpoint)| (place, name(endpoint)))
    };
    for mine in ["w0", "w2"] {
        assert_eq!(chosen(mine, &Tried::default(), &|_| true).unwrap().1, mine);
    }
    // A farther one is not kept while there are nearer ones, nor one that is tried, unusable or ejected.
    assert!(["w0", "w2"].contains(&&*chosen("w1", &Tried::default(), &|_| true).unwrap().1));
    let mut tried = Tried::default();
    tried.add(chosen("w0", &Tried::default(), &|_| true).unwrap().0);
    assert_eq!(chosen("w0", &tried, &|_| true).unwrap().1, "w2");
    assert_eq!(chosen("w0", &Tried::default(), &|other| name(other) != "w0").unwrap().1, "w2");
    near.load(&uid("w0")).unwrap().eject(now);
    assert_eq!(chosen("w0", &Tried::default(), &|_| true).unwrap().1, "w2");
}

fn entry(snapshot: &Snapshot) -> &ServiceEntry {
    snapshot.service_by_address(ip("10.96.0.1")).unwrap()
}

fn name(endpoint: &Endpoint) -> String {
    endpoint.workload.name().to_owned()
}

/// Chooses `count` times, without a connection staying open.
fn shares(entry: &ServiceEntry, count: usize, now: Instant) -> HashMap<String, f64> {
    let mut rng = Rng::with_seed(7);
    let mut chosen = HashMap::new();
    for _ in 0..count {
        let (_, endpoint) = choose(entry, &Tried::default(), now, &mut rng, |_| true, |_| false).unwrap();
        *chosen.entry(name(endpoint)).or_insert(0.0) += 1.0 / count as f64;
    }
    chosen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn idle_endpoints_share_by_weight(weights in prop::collection::vec(0_u32..100, 1..12)) {
        let total: u32 = weights.iter().sum();
        prop_assume!(total > 0);
        let snapshot = mesh(&weights, &["n1"]);
        let shares = shares(entry(&snapshot), 20_000, Instant::now());
        for (index, weight) in weights.iter().enumerate() {
            let expected = f64::from(*weight) / f64::from(total);
            let found = shares.get(&format!("w{index}")).copied().unwrap_or_default();
            // Four standard deviations of a share of one half, the widest.
            prop_assert!((found - expected).abs() < 0.015, "w{index}: {found} instead of {expected} of {weights:?}");
        }
    }

    #[test]
    fn connections_that_stay_open_settle_by_weight(weights in prop::collection::vec(1_u32..10, 2..8)) {
        let snapshot = mesh(&weights, &["n1"]);
        let mut rng = Rng::with_seed(3);
        let mut open = Vec::new();
        let total: u32 = weights.iter().sum();
        for _ in 0..total * 50 {
            let (_, endpoint) =
                choose(entry(&snapshot), &Tried::default(), Instant::now(), &mut rng, |_| true, |_| false).unwrap();
            open.push(endpoint.load().enter());
        }
        for endpoint in entry(&snapshot).endpoints.iter() {
            let fair = f64::from(endpoint.workload.weight) * 50.0;
            let found = f64::from(endpoint.load().active());
            prop_assert!((found - fair).abs() <= (fair * 0.2).max(8.0), "{found} instead of {fair} of {weights:?}");
        }
    }

    #[test]
    fn no_endpoint_is_tried_twice(count in 1_usize..12, seed: u64) {
        let snapshot = mesh(&vec![1; count], &["n1", "n2"]);
        let mut rng = Rng::with_seed(seed);
        let mut tried = Tried::default();
        let mut seen = Vec::new();
        while let Some((position, endpoint)) =
            choose(entry(&snapshot), &tried, Instant::now(), &mut rng, |_| true, |_| false)
        {
            tried.add(position);
            seen.push(name(endpoint));
            if seen.len() == MAX_ATTEMPTS {
                break;
            }
        }
        prop_assert_eq!(seen.len(), count.min(MAX_ATTEMPTS));
        seen.sort();
        seen.dedup();
        prop_assert_eq!(seen.len(), count.min(MAX_ATTEMPTS));
    }
}

#[test]
fn a_busy_endpoint_is_left_alone() {
    let snapshot = mesh(&[1, 1, 1], &["n1"]);
    let busy = entry(&snapshot).endpoints.iter().next().unwrap();
    let _open: Vec<_> = (0..100).map(|_| busy.load().enter()).collect();
    let shares = shares(entry(&snapshot), 1000, Instant::now());
    assert_eq!(shares.get(&name(busy)), None);
}

#[test]
fn the_nearest_tier_is_used_up_before_the_next() {
    let snapshot = mesh(&[1, 1, 1, 1], &["n1", "n2"]);
    let mut rng = Rng::with_seed(1);
    let mut tried = Tried::default();
    let mut nodes = Vec::new();
    while let Some((position, endpoint)) =
        choose(entry(&snapshot), &tried, Instant::now(), &mut rng, |_| true, |_| false)
    {
        tried.add(position);
        nodes.push(endpoint.workload.node.to_string());
    }
    assert_eq!(nodes, ["n1", "n1", "n2", "n2"]);
}

#[test]
fn what_failed_is_avoided_for_a_while_even_for_a_farther_one() {
    let snapshot = mesh(&[1, 1], &["n1", "n2"]);
    let entry = entry(&snapshot);
    let now = Instant::now();
    let near = entry.endpoints.iter().find(|endpoint| endpoint.workload.node.as_ref() == "n1").unwrap();
    note_failure(entry, near, now);
    assert_eq!(shares(entry, 100, now).get(&name(near)), None);
    assert!(shares(entry, 100, now + Duration::from_secs(2))[&name(near)] > 0.99);
}

#[test]
fn never_more_than_half_of_a_service_is_ejected() {
    let snapshot = mesh(&[1; 5], &["n1", "n2"]);
    let entry = entry(&snapshot);
    let now = Instant::now();
    for endpoint in entry.endpoints.iter() {
        note_failure(entry, endpoint, now);
    }
    let ejected = entry.endpoints.iter().filter(|endpoint| endpoint.load().is_ejected(now)).count();
    assert_eq!(ejected, 2);
}

#[test]
fn a_lone_endpoint_is_chosen_though_it_failed() {
    let snapshot = mesh(&[1], &["n1"]);
    let entry = entry(&snapshot);
    let now = Instant::now();
    note_failure(entry, entry.endpoints.iter().next().unwrap(), now);
    assert_eq!(shares(entry, 10, now).len(), 1);
}
