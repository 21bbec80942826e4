use std::collections::BTreeSet;

use super::*;

const START: SystemTime = SystemTime::UNIX_EPOCH;
const HOUR: Duration = Duration::from_secs(3600);

fn identity(name: &str) -> Arc<Identity> {
    Arc::new(Identity::new("cluster.local", "shop", name))
}

fn schedule(concurrency: usize, names: &[&str]) -> Schedule {
    let backoff = (Duration::from_secs(1), Duration::from_secs(60));
    let mut schedule = Schedule::new(concurrency, backoff, fastrand::Rng::with_seed(7));
    let identities: Vec<_> = names.iter().map(|name| identity(name)).collect();
    schedule.set(identities.iter(), START);
    schedule
}

/// Starts all that may start at `now` and says whose they are, in order.
fn start_all(schedule: &mut Schedule, now: SystemTime) -> Vec<(String, Ticket)> {
    let mut started = Vec::new();
    while let Next::Ask(identity, ticket) = schedule.next(now, started.len()) {
        started.push((identity.service_account().to_string(), ticket));
    }
    started
}

fn names(started: &[(String, Ticket)]) -> Vec<&str> {
    started.iter().map(|(name, _)| name.as_str()).collect()
}

fn end(schedule: &mut Schedule, started: &[(String, Ticket)], outcome: Outcome, now: SystemTime) {
    for (name, ticket) in started {
        schedule.ended(&identity(name), *ticket, outcome, now).unwrap();
    }
}

#[test]
fn those_without_a_certificate_come_first_then_those_whose_ends_soonest() {
    let mut schedule = schedule(10, &["a", "b", "c"]);
    let started = start_all(&mut schedule, START);
    for ((name, ticket), hours) in started.iter().zip([3, 1, 2]) {
        let outcome = Outcome::Certified(START + HOUR * hours);
        let renewal = schedule.ended(&identity(name), *ticket, outcome, START).unwrap();
        let part = renewal.duration_since(START).unwrap().as_secs_f64() / (HOUR * hours).as_secs_f64();
        assert!(RENEW_AFTER.contains(&part), "{name} is renewed after {part} of its life");
    }
    let everybody: Vec<_> = ["a", "b", "c", "new"].map(identity).into();
    let all_due = START + HOUR * 3 / 2;
    schedule.set(everybody.iter(), all_due);
    // The certificate of b is over by now; it has waited for longer than the new one.
    assert_eq!(names(&start_all(&mut schedule, all_due)), ["b", "new", "c", "a"]);
}

#[test]
fn only_so_many_are_under_way() {
    let mut schedule = schedule(2, &["a", "b", "c"]);
    let started = start_all(&mut schedule, START);
    assert_eq!(names(&started), ["a", "b"]);
    assert_eq!(schedule.next(START, 2), Next::Wait(None));
    end(&mut schedule, &started, Outcome::Certified(START + HOUR), START);
    assert_eq!(names(&start_all(&mut schedule, START)), ["c"]);
}

#[test]
fn one_that_is_refused_waits_alone_and_ever_longer() {
    let mut schedule = schedule(10, &["good", "refused"]);
    let started = start_all(&mut schedule, START);
    let (good, refused) = started.split_at(1);
    end(&mut schedule, good, Outcome::Certified(START + HOUR * 24), START);

    let (mut now, mut ticket, mut longest) = (START, refused[0].1, Duration::ZERO);
    for _ in 0..20 {
        let again = schedule.ended(&identity("refused"), ticket, Outcome::Refused, now).unwrap();
        longest = longest.max(again.duration_since(now).unwrap());
        let expected = if again > now { Next::Wait(Some(again)) } else { schedule.next(now, 1) };
        assert_eq!(schedule.next(now, 0), expected);
        now = again;
        let Next::Ask(_, next) = schedule.next(now, 0) else { panic!("it is due") };
        ticket = next;
    }
    assert!(longest > Duration::from_secs(20), "{longest:?}");
    assert!(longest <= Duration::from_secs(60), "{longest:?}");
}

#[test]
fn while_the_authority_is_away_one_request_at_a_time_looks_for_it() {
    let mut schedule = schedule(10, &["a", "b", "c", "d"]);
    let mut now = START;
    let mut started = start_all(&mut schedule, now);
    assert_eq!(started.len(), 4);
    let mut asked = BTreeSet::new();
    for _ in 0..10 {
        end(&mut schedule, &started, Outcome::Unreachable, now);
        while let Next::Wait(until) = schedule.next(now, 0) {
            assert!(until.unwrap() > now);
            now = until.unwrap();
        }
        // The loop above has started one.
        assert_eq!(schedule.next(now, 1), Next::Wait(None));
        let under_way =
            schedule.jobs.iter().find_map(|(identity, job)| Some((identity.clone(), job.ticket?)));
        let (identity, ticket) = under_way.unwrap();
        started = vec![(identity.service_account().to_string(), ticket)];
        asked.insert(identity);
    }
    assert_eq!(asked.len(), 4, "each in turn");
    end(&mut schedule, &started, Outcome::Certified(now + HOUR), now);
    let later = now + Duration::from_secs(60);
    assert_eq!(start_all(&mut schedule, later).len(), 3, "all others at once");
}

#[test]
fn the_end_of_a_request_for_what_is_no_longer_wanted_means_nothing() {
    let mut schedule = schedule(10, &["a"]);
    let started = start_all(&mut schedule, START);
    schedule.set([].into_iter(), START);
    schedule.set([identity("a")].iter(), START);
    let outcome = Outcome::Certified(START + HOUR);
    assert_eq!(schedule.ended(&identity("a"), started[0].1, outcome, START), None);
    assert_eq!(start_all(&mut schedule, START).len(), 1, "it is asked for anew");
}
