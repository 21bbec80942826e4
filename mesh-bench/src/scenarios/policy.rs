//! What an authorization check costs by the number of policies that are there, and a change of one.
//!
//! In this process, with the agent's own library. Every policy has ten rules of four kinds for clients and ports of its own,
//! all in the workload's namespace, so that all of them apply. Measured are a connection that the last rule of a policy in
//! the middle allows (`check_us`), and one that no rule matches (`check_denied_us`).

mod generated;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use mesh_agent::policy::{Policy, PolicyStore, Request, Strings};
use mesh_xds::identity::Identity;
use mesh_xds::proto::security::Action;

use crate::bench::Bench;
use crate::metric::Metric;
use generated::{RULES, client, first_port, policy, workload};

const SCENARIO: &str = "policy";
const AGENT: &str = "mesh-agent";
/// Checks of a round.
const CHECKS: u32 = 20_000;
/// Changes of a round, each of which replaces a policy twice.
const CHANGES: usize = 100;

/// The names of what is measured with a number of policies.
struct Size {
    policies: usize,
    allowed: Metric,
    denied: Metric,
    change: Metric,
}

macro_rules! size {
    ($policies:expr, $name:literal) => {
        Size {
            policies: $policies,
            allowed: Metric::lower(concat!("check_us_at_", $name, "_policies"), "µs"),
            denied: Metric::lower(concat!("check_denied_us_at_", $name, "_policies"), "µs"),
            change: Metric::lower(concat!("change_us_at_", $name, "_policies"), "µs"),
        }
    };
}

const SIZES: [Size; 3] = [size!(10, "10"), size!(1_000, "1k"), size!(10_000, "10k")];

pub(super) fn run(bench: &mut Bench) -> Result<()> {
    if !bench.wants_contender(AGENT) {
        return Ok(());
    }
    let mut prepared = Vec::new();
    for size in &SIZES {
        prepared.push((size, Policies::new(size.policies)?));
    }
    for round in 0..bench.rounds() {
        bench.turn(AGENT, round)?;
        for (size, policies) in &mut prepared {
            let middle = client(size.policies / 2, RULES - 1);
            let port = first_port() + u16::try_from(RULES - 1)?;
            bench.record(SCENARIO, AGENT, size.allowed, round, policies.check(&middle, port, true)?);
            let stranger = Identity::new("cluster.local", "nowhere", "nobody");
            bench.record(SCENARIO, AGENT, size.denied, round, policies.check(&stranger, 80, false)?);
            bench.record(SCENARIO, AGENT, size.change, round, policies.change());
        }
    }
    Ok(())
}

/// A number of policies, and what is changed about them.
struct Policies {
    store: PolicyStore,
    /// Two versions of some of them.
    versions: Vec<[Arc<Policy>; 2]>,
}

impl Policies {
    fn new(count: usize) -> Result<Self> {
        let mut strings = Strings::default();
        let mut store = PolicyStore::default();
        store.insert_workload(None, &workload());
        for number in 0..count {
            store.insert(policy(number, Action::Allow, &mut strings)?);
        }
        let versions = (0..count.min(CHANGES)).map(|number| {
            Ok([policy(number, Action::Deny, &mut strings)?, policy(number, Action::Allow, &mut strings)?])
        });
        Ok(Self { versions: versions.collect::<Result<_>>()?, store })
    }

    /// Time of a check, in microseconds.
    fn check(&self, source: &Identity, port: u16, allowed: bool) -> Result<f64> {
        let workload = workload();
        let request = Request {
            source: Some(source),
            source_ip: [10, 200, 0, 1].into(),
            destination: ([10, 0, 0, 1], port).into(),
            workload: &workload,
        };
        let decided = self.store.policies().authorize(&request);
        ensure!(decided.is_ok() == allowed, "the generated policies say something else: {decided:?}");
        let began = Instant::now();
        for _ in 0..CHECKS {
            black_box(self.store.policies().authorize(black_box(&request)).is_ok());
        }
        Ok(began.elapsed().as_secs_f64() * 1e6 / f64::from(CHECKS))
    }

    /// Time in which a policy is replaced while connections hold the version before, in microseconds.
    fn change(&mut self) -> f64 {
        let began = Instant::now();
        let mut changes = 0;
        for version in self.versions.iter().flatten() {
            let snapshot = self.store.policies().clone();
            self.store.insert(Arc::clone(version));
            drop(snapshot);
            changes += 1;
        }
        began.elapsed().as_secs_f64() * 1e6 / f64::from(changes.max(1))
    }
}
