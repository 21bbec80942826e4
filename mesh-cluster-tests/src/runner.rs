//! Runs the tests in their order and says how they went.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anstream::println;
use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result, anyhow};
use mesh_lab::cluster::{Chart, Cluster};

use crate::Arguments;
use crate::tests;
use crate::world::World;

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const DIM: Style = Style::new().dimmed();
/// Tests that run beside each other: their time is spent waiting, mostly, but every pod that starts costs the machine.
const ABREAST: usize = 3;

/// What a test does to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// It keeps to a namespace of its own.
    Namespace,
    /// It disturbs the mesh or the cluster.
    Cluster,
    /// It takes the mesh away.
    Last,
}

/// A test.
#[derive(Clone, Copy)]
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) reach: Reach,
    pub(crate) run: fn(&World) -> Result<()>,
}

/// Runs all tests, or those that the filter chooses; false if one has failed.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let cluster = Cluster::open(&arguments.cluster)?;
    let world = World::new(cluster, Chart::new(&arguments.helm, &arguments.chart));
    let filter = &arguments.filter;
    let wanted =
        |test: &Test| filter.is_empty() || filter.iter().any(|part| test.name.contains(part.as_str()));
    let chosen: Vec<Test> = tests::all().into_iter().filter(wanted).collect();
    println!("{} tests on {} ({})", chosen.len(), arguments.cluster, world.cluster().settings().cni.name());

    let installed = one(&world, &Test { name: "install", reach: Reach::Cluster, run: World::install });
    if !installed {
        println!("{BAD}nothing else can be tested{BAD:#}");
        return Ok(false);
    }
    let part = |reach| chosen.iter().filter(move |test| test.reach == reach).copied().collect::<Vec<_>>();
    let mut failed = abreast(&world, &part(Reach::Namespace));
    if arguments.pause {
        println!("paused");
        io::copy(&mut io::stdin(), &mut io::sink()).context("cannot wait for the end of standard input")?;
    }
    for test in part(Reach::Cluster).iter().chain(&part(Reach::Last)) {
        failed += usize::from(!one(&world, test));
    }
    let style = if failed == 0 { GOOD } else { BAD };
    println!("{style}{} passed, {failed} failed{style:#}", chosen.len() - failed);
    Ok(failed == 0)
}

/// Runs tests beside each other; returns how many have failed.
fn abreast(world: &World, tests: &[Test]) -> usize {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(0));
    thread::scope(|scope| {
        for _ in 0..ABREAST {
            scope.spawn(|| {
                while let Some(test) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if !one(world, test)
                        && let Ok(mut failed) = failed.lock()
                    {
                        *failed += 1;
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or(tests.len())
}

fn one(world: &World, test: &Test) -> bool {
    let started = Instant::now();
    let result = panic::catch_unwind(AssertUnwindSafe(|| (test.run)(world)));
    let result = result.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        Err(anyhow!(said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned()))
    });
    let took = seconds(started.elapsed());
    match &result {
        Ok(()) => println!("{GOOD}ok{GOOD:#}     {:<60} {DIM}{took}{DIM:#}", test.name),
        Err(error) => {
            println!("{BAD}FAILED{BAD:#} {:<60} {DIM}{took}{DIM:#}\n{error:#}\n{}", test.name, world.state());
        }
    }
    result.is_ok()
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
