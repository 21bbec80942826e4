use std::sync::Barrier;
use std::thread;

use super::super::testing::{record, workload};
use super::*;

fn labels(client: u32) -> TrafficLabels {
    let mut record = record(1);
    record.source.workload = Some(workload(&format!("client-{client}"), "10.0.1.1"));
    TrafficLabels::of(&record)
}

fn metrics(count: usize, idle: Duration) -> TrafficMetrics {
    TrafficMetrics::new(SeriesLimits { count, idle })
}

#[test]
fn label_sets_are_bounded_and_the_rest_is_counted_in_one() {
    let metrics = metrics(10, Duration::from_secs(3600));
    for client in 0..25 {
        let series = metrics.enter(labels(client));
        series.opened();
        series.closed(ResponseFlag::None);
    }
    assert_eq!(metrics.len(), 10);
    assert_eq!(metrics.overflowed(), 15);
    // A known one is still known.
    metrics.enter(labels(3)).opened();
    assert_eq!(metrics.overflowed(), 15);
}

#[test]
fn unused_label_sets_make_room_and_used_ones_stay() {
    let metrics = metrics(2, Duration::ZERO);
    let held = metrics.enter(labels(0));
    held.opened();
    drop(metrics.enter(labels(1)));
    // The table is full; the sweep finds the set that nobody uses.
    metrics.enter(labels(2)).opened();
    assert_eq!((metrics.len(), metrics.overflowed()), (2, 0));
    assert!(metrics.known.load().contains_key(&labels(0)));
    assert!(!metrics.known.load().contains_key(&labels(1)));

    metrics.drop_idle();
    assert_eq!(metrics.len(), 1);
    drop(held);
    metrics.drop_idle();
    assert_eq!(metrics.len(), 0);
}

#[test]
fn a_set_that_was_used_lately_is_kept() {
    let metrics = metrics(10, Duration::from_secs(3600));
    drop(metrics.enter(labels(0)));
    metrics.drop_idle();
    assert_eq!(metrics.len(), 1);
}

#[test]
fn no_connection_is_lost_between_workers_and_sweeps() {
    const WORKERS: u32 = 4;
    const ROUNDS: u32 = 200;
    let metrics = metrics(1000, Duration::ZERO);
    let start = Barrier::new(usize::try_from(WORKERS).unwrap() + 1);
    let counted = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    let mut held = Vec::new();
                    for round in 0..ROUNDS {
                        let series = metrics.enter(labels(round % 7));
                        series.opened();
                        held.push(series);
                    }
                    held
                })
            })
            .collect();
        start.wait();
        for _ in 0..50 {
            metrics.drop_idle();
        }
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    // What is held is in the table: nobody counts in a series that is no longer shown.
    let shown: u64 = metrics.known.load().values().map(|series| series.opened.load(Ordering::Relaxed)).sum();
    assert_eq!(shown, u64::from(WORKERS * ROUNDS));
    drop(counted);
}
