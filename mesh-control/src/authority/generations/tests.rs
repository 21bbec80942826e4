use super::*;
use crate::authority::signer::Signer;
use crate::authority::tests::{hours, lifetimes, sign, start, verify};

const DOMAIN: &str = "cluster.local";

/// The state as the next process finds it.
fn restarted(state: &Generations) -> Generations {
    let state = Generations::read(&state.write()).unwrap();
    state.check_trust_domain(DOMAIN).unwrap();
    state
}

fn begun() -> Generations {
    Generations::begin(DOMAIN, &lifetimes(), start()).unwrap()
}

fn advance(state: &mut Generations, after: Duration) -> bool {
    state.advance(&lifetimes(), start() + after).unwrap()
}

/// Names of the signing certificate and of all roots.
fn names(state: &Generations, after: Duration) -> (String, Vec<String>) {
    let signer = Signer::new(&state.material().unwrap(), start() + after).unwrap();
    let roots = signer.roots().iter().map(|root| root.subject.clone()).collect();
    (signer.certificate().subject.clone(), roots)
}

#[test]
fn a_rotation_goes_through_its_phases_in_time_and_over_restarts() {
    let mut state = begun();
    assert!(!advance(&mut state, hours(0)), "nothing is due");
    let (first_issuer, first_roots) = names(&state, hours(0));

    assert_eq!(state.request_rotation(), Ok(true));
    assert_eq!(state.request_rotation(), Ok(false), "once is enough");
    state = restarted(&state);
    assert!(advance(&mut state, hours(1)));
    assert_eq!(state.phase(), Phase::Announced);
    assert_eq!(state.until(&lifetimes()), Some(start() + hours(5)));
    assert_eq!(state.request_rotation(), Err(StateError::Rotating));
    let (issuer, roots) = names(&state, hours(1));
    assert_eq!(
        (&issuer, &roots[..1]),
        (&first_issuer, &first_roots[..]),
        "the old root signs and comes first"
    );
    assert_eq!(roots.len(), 2);

    state = restarted(&state);
    assert!(!advance(&mut state, hours(3) - Duration::from_secs(1)), "not yet");
    assert!(advance(&mut state, hours(3)));
    assert_eq!(state.phase(), Phase::Retiring);
    assert_eq!(state.until(&lifetimes()), Some(start() + hours(5)));
    let (second_issuer, mut second_roots) = names(&state, hours(3));
    assert_ne!(second_issuer, first_issuer);
    second_roots.reverse();
    assert_eq!(second_roots, roots, "both are trusted");

    state = restarted(&state);
    assert!(!advance(&mut state, hours(5) - Duration::from_secs(1)), "not yet");
    assert!(advance(&mut state, hours(5)));
    assert_eq!((state.phase(), state.until(&lifetimes())), (Phase::Steady, None));
    assert_eq!(names(&state, hours(5)), (second_issuer, vec![roots[1].clone()]));
}

/// What a rotation is for: whoever asked for its certificate within the longest life of one knows the root of
/// everybody else's.
#[test]
fn every_certificate_is_trusted_by_every_agent_all_its_life() {
    let step = Duration::from_secs(20 * 60);
    let life = lifetimes().leaf;
    let mut state = begun();
    let (mut history, mut phases) = (Vec::new(), Vec::new());
    for number in 0..(hours(60).as_secs() / step.as_secs()) {
        let after = step * u32::try_from(number).unwrap();
        let now = start() + after;
        state = restarted(&state);
        advance(&mut state, after);
        phases.push(state.phase());
        let signer = Signer::new(&state.material().unwrap(), now).unwrap();
        let signed = sign(&signer, life, now);
        assert_eq!(signed.not_after, now + life, "not cut short");
        history.push((now, signed.chain, signer.bundle().to_owned()));

        let recent = history.iter().filter(|(then, ..)| *then + life > now);
        for (_, chain, _) in recent.clone() {
            for (_, _, bundle) in recent.clone() {
                verify(chain, bundle, now).unwrap();
            }
        }
    }
    phases.dedup();
    use Phase::{Announced, Retiring, Steady};
    assert_eq!(phases, [Steady, Announced, Retiring, Steady], "the root was replaced before its end");
}

#[test]
fn a_server_that_was_away_goes_on_where_it_can() {
    // Past the time to announce: both overlaps still count from now.
    let mut state = begun();
    assert!(advance(&mut state, hours(45)));
    assert_eq!(state.phase(), Phase::Announced);
    // Past the end of the signing root: the next one signs at once, waiting would help nobody.
    let mut state = begun();
    let (old, _) = names(&state, hours(0));
    assert!(advance(&mut state, hours(100)));
    assert_eq!(state.phase(), Phase::Retiring);
    assert_ne!(names(&state, hours(100)).0, old);
    assert!(!advance(&mut state, hours(100)));
    assert!(advance(&mut state, hours(102)));
    assert_eq!(state.phase(), Phase::Steady);
}

#[test]
fn issuers_are_renewed_below_the_same_root() {
    let mut state = begun();
    let (first, roots) = names(&state, hours(0));
    assert!(!advance(&mut state, hours(7)));
    assert!(advance(&mut state, hours(9)));
    let (second, same_roots) = names(&state, hours(9));
    assert_ne!(first, second);
    assert_eq!(roots, same_roots);
    // One that ends with its root cannot be renewed, and nobody tries again and again.
    let short = Lifetimes { renew_root: hours(0), ..lifetimes() };
    let mut state = begun();
    assert!(state.advance(&short, start() + hours(47)).unwrap());
    assert!(!state.advance(&short, start() + hours(47)).unwrap());
}

#[test]
fn states_that_cannot_be_used_are_told_apart() {
    let text = String::from_utf8(begun().write()).unwrap();
    let read = |text: &str| Generations::read(text.as_bytes()).unwrap_err();
    assert!(matches!(read(&text[..text.len() / 2]), StateError::Damaged(_)));
    assert!(matches!(read(""), StateError::Damaged(_)));
    assert_eq!(read(&text.replace("\"format\": 1", "\"format\": 2")), StateError::Format(2));
    let unsigned = text.replace(&format!("\"signs\": {}", unix(start())), "\"signs\": null");
    assert!(matches!(read(&unsigned), StateError::Damaged(_)));
    let error = begun().check_trust_domain("elsewhere").unwrap_err().to_string();
    assert!(error.contains("\"cluster.local\", not \"elsewhere\""), "{error}");
    let mut broken = Generations::read(text.replace("BEGIN CERT", "begin cert").as_bytes()).unwrap();
    assert!(matches!(broken.advance(&lifetimes(), start()), Err(StateError::Damaged(_))));
}

#[test]
fn keys_are_not_shown() {
    let shown = format!("{:?}", begun());
    assert!(shown.contains("BEGIN CERTIFICATE") && !shown.contains("PRIVATE KEY"), "{shown}");
}
