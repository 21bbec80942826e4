//! The manager with an authority in memory; time flies.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use mesh_lab::certificates as lab;
use mesh_lab::certificates::Leaf;
use tokio::task::{AbortHandle, yield_now};
use tonic::{Code, Status};

use super::super::{Credentials, IdentityState, IdentityStatus, NoCredentials, PeerSide};
use super::*;

const LIFETIME: Duration = Duration::from_secs(60 * 60);
const STEP: Duration = Duration::from_secs(2);

/// A clock that stands until a test moves it.
#[derive(Debug, Clone)]
struct TestClock(watch::Sender<SystemTime>);

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        *self.0.borrow()
    }

    fn sleep(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (mut now, end) = (self.0.subscribe(), self.now() + time);
        Box::pin(async move { drop(now.wait_for(|now| *now >= end).await) })
    }
}

type Answer = dyn Fn(&lab::Authority, &Identity, &str, Leaf) -> Result<Vec<String>, Status> + Send + Sync;

/// Signs what it is asked to, or does what a test wants instead.
struct TestAuthority {
    issuer: Mutex<Arc<lab::Authority>>,
    /// Roots that go with certificates; the issuer's by default.
    roots: Mutex<Option<String>>,
    answer: Mutex<Arc<Answer>>,
    clock: TestClock,
    asked: Mutex<Vec<String>>,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

impl Authority for Arc<TestAuthority> {
    async fn sign(&self, identity: &Identity, csr: &str) -> Result<Vec<String>, AuthorityError> {
        self.asked.lock().unwrap().push(identity.service_account().to_string());
        // The answer of now: one that a test changes while the request is under way is for those that are asked later.
        let answer = self.answer.lock().unwrap().clone();
        let under_way = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_under_way.fetch_max(under_way, Ordering::SeqCst);
        self.clock.sleep(Duration::from_millis(10)).await;
        self.under_way.fetch_sub(1, Ordering::SeqCst);

        let issuer = self.issuer.lock().unwrap().clone();
        let now = self.clock.now();
        let leaf = Leaf { not_before: now, not_after: now + LIFETIME, ..Leaf::workload(identity) };
        let mut parts = answer(&issuer, identity, csr, leaf)
            .map_err(|status| AuthorityError::Status(Box::new(status)))?;
        if parts.is_empty() {
            return Ok(parts);
        }
        let roots = self.roots.lock().unwrap().clone();
        parts.push(roots.unwrap_or_else(|| issuer.root_pem().to_owned()));
        Ok(parts)
    }
}

fn signs(issuer: &lab::Authority, _: &Identity, csr: &str, leaf: Leaf) -> Result<Vec<String>, Status> {
    Ok(issuer.sign(csr, &leaf).unwrap())
}

struct World {
    authority: Arc<TestAuthority>,
    wanted: watch::Sender<Wanted>,
    identities: Identities,
    running: AbortHandle,
}

impl Drop for World {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl World {
    fn new(service_accounts: impl IntoIterator<Item = String>) -> Self {
        let clock = TestClock(watch::Sender::new(SystemTime::now()));
        let authority = Arc::new(TestAuthority {
            issuer: Mutex::new(Arc::new(lab::Authority::root("mesh").unwrap())),
            roots: Mutex::default(),
            answer: Mutex::new(Arc::new(signs)),
            clock: clock.clone(),
            asked: Mutex::default(),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
        });
        let (wanted, receiver) = watch::channel(want(service_accounts));
        let settings = IdentitySettings::new(Vec::new(), Transport::default(), "cluster.local".into());
        let (identities, manager) =
            IdentityManager::with_authority(&settings, Arc::clone(&authority), receiver, Arc::new(clock));
        let running = tokio::spawn(manager.run(std::future::pending())).abort_handle();
        Self { authority, wanted, identities, running }
    }

    fn answers(
        &self,
        answer: impl Fn(&lab::Authority, &Identity, &str, Leaf) -> Result<Vec<String>, Status>
        + Send
        + Sync
        + 'static,
    ) {
        *self.authority.answer.lock().unwrap() = Arc::new(answer);
    }

    /// Lets time pass, in steps in which all that has become due is done.
    async fn pass(&self, time: Duration) {
        let end = self.authority.clock.now() + time;
        while self.authority.clock.now() < end {
            self.authority.clock.0.send_modify(|now| *now += STEP);
            for _ in 0..20 {
                yield_now().await;
            }
        }
    }

    async fn eventually(&self, what: &str, condition: impl Fn(&Identities) -> bool) {
        let limit = self.authority.clock.now() + LIFETIME * 4;
        while !condition(&self.identities) {
            self.pass(STEP).await;
            assert!(self.authority.clock.now() < limit, "{what}: {:#?}", self.identities.list());
        }
    }

    async fn certified(&self, service_account: &str) -> Arc<Credentials> {
        let identity = identity(service_account);
        self.eventually("certified", |identities| identities.current(&identity).is_ok()).await;
        self.identities.current(&identity).unwrap()
    }

    /// What the last request for the only identity failed with.
    async fn fails_with(&self, reason: &str) {
        let failed = |identities: &Identities| {
            let said = |status: &IdentityStatus| {
                status.last_error.as_ref().is_some_and(|error| error.contains(reason))
            };
            identities.list().iter().any(said)
        };
        self.eventually(reason, failed).await;
    }
}

fn want(service_accounts: impl IntoIterator<Item = String>) -> Wanted {
    let entry = |name: String| (identity(&name), vec![format!("c1//Pod/shop/{name}-1").into()]);
    Arc::new(service_accounts.into_iter().map(entry).collect::<BTreeMap<_, _>>())
}

fn identity(service_account: &str) -> Arc<Identity> {
    Arc::new(Identity::new("cluster.local", "shop", service_account))
}

fn web() -> [String; 1] {
    ["web".to_owned()]
}

#[tokio::test]
async fn a_certificate_comes_before_it_is_asked_for_and_is_renewed_before_half_its_life() {
    let world = World::new(web());
    let web = identity("web");
    let pending = world.identities.current(&web).unwrap_err();
    assert!(pending.to_string().contains("no certificate"), "{pending}");
    let waiting = tokio::spawn({
        let (identities, web) = (world.identities.clone(), Arc::clone(&web));
        async move { identities.ready(&web).await }
    });
    world.pass(STEP * 5).await;
    let first = waiting.await.unwrap().unwrap();
    assert_eq!(first.identity(), &web);

    let status = world.identities.list().remove(0);
    assert_eq!((status.state, status.issuer.as_deref()), (IdentityState::Valid, Some("mesh")));
    assert_eq!(status.pods, ["c1//Pod/shop/web-1"]);
    let (begin, end, renewal) =
        (status.not_before.unwrap(), status.expires.unwrap(), status.next_request.unwrap());
    assert!((begin + (end - begin) * 2 / 5 - 2..=begin + (end - begin) / 2 + 2).contains(&renewal));

    world.pass(LIFETIME / 2).await;
    let second = world.identities.current(&web).unwrap();
    assert!(second.generation() > first.generation() && second.expires() > first.expires());
    let summary = world.identities.summary();
    assert_eq!((summary.issued, summary.states[&IdentityState::Valid]), (2, 1));
    assert!(summary.soonest_expiry.unwrap() > LIFETIME / 2);
    assert!(!format!("{second:?}").to_lowercase().contains("key"), "a key has no business in a log");
}

#[tokio::test]
async fn many_identities_are_certified_a_few_at_a_time_and_new_ones_before_renewals() {
    let many = |count: usize| (0..count).map(|index| format!("sa-{index:03}"));
    let world = World::new(many(500));
    let valid = |count| {
        move |identities: &Identities| {
            identities.summary().states.get(&IdentityState::Valid).copied() == Some(count)
        }
    };
    world.eventually("all are certified", valid(500)).await;
    assert_eq!(world.authority.most_under_way.load(Ordering::SeqCst), 8);
    assert_eq!(world.authority.asked.lock().unwrap().len(), 500, "each once");

    // The authority is away while all become due; then a new one comes.
    world.answers(|_, _, _, _| Err(Status::unavailable("gone fishing")));
    world.pass(LIFETIME * 3 / 4).await;
    world.wanted.send_replace(want(many(500).chain(["the-new-one".to_owned()])));
    world.pass(Duration::from_secs(1)).await;
    world.authority.asked.lock().unwrap().clear();
    world.answers(signs);
    world
        .eventually("all are certified again", |identities| {
            identities
                .list()
                .iter()
                .all(|status| status.failures == 0 && status.state == IdentityState::Valid)
        })
        .await;
    let asked = world.authority.asked.lock().unwrap();
    let place = asked.iter().position(|name| name == "the-new-one").unwrap();
    assert!(place < 10, "the new one came as number {place}");
}

#[tokio::test]
async fn while_the_authority_is_away_a_certificate_is_used_to_its_end_and_no_longer() {
    let world = World::new(web());
    let web = identity("web");
    let first = world.certified("web").await;
    world.answers(|_, _, _, _| Err(Status::unavailable("gone fishing")));

    world.pass(LIFETIME * 9 / 10).await;
    assert_eq!(world.identities.current(&web).unwrap().generation(), first.generation());
    world.fails_with("gone fishing").await;
    assert!(world.authority.asked.lock().unwrap().len() < 200, "it is not asked without end");

    world.pass(LIFETIME / 5).await;
    let expired = world.identities.current(&web).unwrap_err();
    assert!(matches!(expired, NoCredentials::Expired { .. }));
    assert!(expired.to_string().contains("gone fishing"), "{expired}");
    assert_eq!(world.identities.ready(&web).await.unwrap_err(), expired);
    assert_eq!(world.identities.summary().states[&IdentityState::Expired], 1);

    world.answers(signs);
    world.eventually("certified again", |identities| identities.current(&web).is_ok()).await;
    assert_eq!(world.identities.list()[0].last_error, None);
}

#[tokio::test]
async fn a_wrong_answer_is_not_used_and_what_was_there_stays() {
    let world = World::new(web());
    let web = identity("web");
    let first = world.certified("web").await;

    world.answers(|issuer, _, csr, leaf| {
        signs(issuer, &identity("db"), csr, Leaf { uris: Leaf::workload(identity("db")).uris, ..leaf })
    });
    world.fails_with("with the certificate of spiffe://cluster.local/ns/shop/sa/db").await;
    world.answers(|issuer, _, _, leaf| Ok(vec![issuer.issue(&leaf).unwrap().chain]));
    world.fails_with("the certificate and the key do not go together").await;
    world.answers(|_, _, csr, leaf| Ok(lab::Authority::root("other").unwrap().sign(csr, &leaf).unwrap()));
    world.fails_with("peers would refuse: the peer's certificate does not lead to a root").await;
    world.answers(|issuer, of, csr, leaf| {
        signs(
            issuer,
            of,
            csr,
            Leaf {
                not_after: leaf.not_before - LIFETIME,
                not_before: leaf.not_before - LIFETIME * 2,
                ..leaf
            },
        )
    });
    world.fails_with("peers would refuse: the peer's certificate expired").await;
    world.answers(|_, _, _, _| Ok(vec!["-----BEGIN CERTIFICATE-----\nAA".to_owned()]));
    world.fails_with("is not PEM").await;
    world.answers(|_, _, _, _| Ok(Vec::new()));
    world.fails_with("holds no certificate").await;
    world.answers(|_, _, _, _| Err(Status::new(Code::PermissionDenied, "not on your node")));
    world.fails_with("not on your node").await;

    assert_eq!(world.identities.current(&web).unwrap().generation(), first.generation());
    let failures = world.identities.summary().failures;
    assert!(failures[&FailureReason::WrongAnswer] >= 6 && failures[&FailureReason::Refused] >= 1);
}

#[tokio::test]
async fn what_is_no_longer_wanted_is_dropped() {
    let world = World::new(web());
    world.answers(|_, _, _, _| Err(Status::unavailable("gone fishing")));
    let waiting = tokio::spawn({
        let identities = world.identities.clone();
        async move { identities.ready(&identity("web")).await.map(|_| ()) }
    });
    world.fails_with("gone fishing").await;
    world.wanted.send_replace(Wanted::default());
    let gone = NoCredentials::NotWanted(Identity::clone(&identity("web")));
    assert_eq!(waiting.await.unwrap().unwrap_err(), gone);
    assert_eq!(world.identities.ready(&identity("web")).await.unwrap_err(), gone);
    assert_eq!(world.identities.list(), []);
}

#[tokio::test]
async fn roots_are_rotated_with_an_overlap() {
    let world = World::new(web());
    world.certified("web").await;
    let trust = Arc::clone(world.identities.trust());
    let mut revision = trust.revision();
    let old = world.authority.issuer.lock().unwrap().clone();
    let new = Arc::new(lab::Authority::root("mesh").unwrap());
    let peer = |authority: &lab::Authority| {
        let leaf = Leaf { not_after: SystemTime::now() + LIFETIME * 24, ..Leaf::workload(identity("peer")) };
        let pem = authority.issue(&leaf).unwrap().chain;
        vec![rustls_pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).unwrap()]
    };
    let (old_peer, new_peer): (Vec<CertificateDer<'static>>, Vec<_>) = (peer(&old), peer(&new));
    let trusted = |chain: &[CertificateDer<'_>]| {
        [PeerSide::Client, PeerSide::Server].map(|side| trust.still_trusted(side, chain).is_ok())
    };
    assert_eq!((trusted(&old_peer), trusted(&new_peer)), ([true; 2], [false; 2]));

    // The new root is made known, then signs, then is the only one.
    *world.authority.roots.lock().unwrap() = Some([old.root_pem(), new.root_pem()].concat());
    world.pass(LIFETIME / 2).await;
    assert_eq!((trusted(&old_peer), trusted(&new_peer)), ([true; 2], [true; 2]));
    *world.authority.issuer.lock().unwrap() = Arc::clone(&new);
    world.pass(LIFETIME / 2).await;
    assert_eq!((trusted(&old_peer), trusted(&new_peer)), ([true; 2], [true; 2]));
    assert!(!revision.has_changed().unwrap(), "nobody has lost anything yet");
    *world.authority.roots.lock().unwrap() = None;
    world.pass(LIFETIME / 2).await;
    assert_eq!((trusted(&old_peer), trusted(&new_peer)), ([false; 2], [true; 2]));
    assert!(revision.has_changed().unwrap());
    revision.mark_unchanged();
    assert!(world.identities.current(&identity("web")).is_ok());

    // That the last pod left says nothing about the peers of its open connections.
    world.wanted.send_replace(Wanted::default());
    world.pass(STEP).await;
    assert_eq!(world.identities.list(), []);
    assert_eq!(trusted(&new_peer), [true; 2]);
    assert!(!revision.has_changed().unwrap());
}
