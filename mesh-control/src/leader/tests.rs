//! Candidates on one API server, with the clock in the test's hand.

use tokio::task::JoinHandle;

use super::*;
use crate::api_server::{ApiServer, Trouble};

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/mesh-system/leases/mesh-control";

/// A candidate that runs, and whether it writes now.
struct Candidate {
    writes: watch::Receiver<bool>,
    status: watch::Receiver<LeaderStatus>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Candidate {
    fn start(server: &ApiServer, identity: &str) -> Self {
        let name = ObjectName::new("mesh-system", "mesh-control");
        let election = Election::new(server.client(), name, identity.to_owned(), Arc::default());
        let (status, stop) = (election.status(), CancellationToken::new());
        let (writing, writes) = watch::channel(false);
        let task = tokio::spawn(election.run(stop.clone(), move || {
            let writing = writing.clone();
            async move {
                writing.send_replace(true);
                let _until_dropped = Writes(writing);
                std::future::pending().await
            }
        }));
        Self { writes, status, stop, task }
    }

    async fn leads(&mut self) {
        self.writes.wait_for(|writes| *writes).await.unwrap();
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

struct Writes(watch::Sender<bool>);

impl Drop for Writes {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

fn holder(server: &ApiServer) -> String {
    server.get(LEASE).unwrap()["spec"]["holderIdentity"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn one_of_two_leads_and_the_other_follows_when_it_stops() {
    let server = ApiServer::new();
    let mut first = Candidate::start(&server, "first");
    first.leads().await;
    let mut second = Candidate::start(&server, "second");
    second.status.wait_for(|status| status.holder == "first").await.unwrap();
    sleep(LEASE_DURATION * 10).await;
    assert!(*first.writes.borrow() && !*second.writes.borrow(), "a lease that is renewed stays where it is");
    assert!(first.status.borrow().leading && !second.status.borrow().leading);

    let asked = Instant::now();
    first.stop().await;
    second.leads().await;
    assert!(asked.elapsed() < LEASE_DURATION, "it was given back");
    assert_eq!(holder(&server), "second");
    assert_eq!(server.get(LEASE).unwrap()["spec"]["leaseTransitions"], 1);
    second.stop().await;
    assert_eq!(holder(&server), "");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_before_another_begins() {
    let server = ApiServer::new();
    let mut first = Candidate::start(&server, "first");
    first.leads().await;
    for trouble in [Trouble::Away, Trouble::Refuses(500)] {
        let since = Instant::now();
        server.trouble(trouble);
        first.writes.wait_for(|writes| !writes).await.unwrap();
        assert!(
            since.elapsed() <= RENEW_DEADLINE,
            "{trouble:?}: it writes no more, well before the lease is over"
        );
        assert!(!first.status.borrow().leading);
        server.trouble(Trouble::None);
        first.leads().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_lease_of_a_leader_that_died_is_taken_after_its_duration_by_ones_own_clock() {
    let server = ApiServer::new();
    // The clock of the one that died was an hour ahead, or behind: nobody compares it.
    let far = jiff::Timestamp::from_second(4_000_000_000).unwrap().to_string();
    let spec = serde_json::json!({
        "holderIdentity": "dead", "leaseDurationSeconds": 15, "leaseTransitions": 4, "renewTime": far, "acquireTime": far,
    });
    server.put(
        LEASE,
        serde_json::json!({"metadata": {"name": "mesh-control", "namespace": "mesh-system"}, "spec": spec}),
    );
    let began = Instant::now();
    let mut heir = Candidate::start(&server, "heir");
    sleep(Duration::from_secs(10)).await;
    // Somebody labels it, which is no sign of life.
    let mut labelled = server.get(LEASE).unwrap();
    labelled["metadata"]["labels"] = serde_json::json!({"a": "b"});
    server.put(LEASE, labelled);
    heir.leads().await;
    assert!(began.elapsed() > LEASE_DURATION && began.elapsed() < LEASE_DURATION + RETRY * 3);
    assert_eq!(server.get(LEASE).unwrap()["spec"]["leaseTransitions"], 5);
    assert_eq!(
        server.get(LEASE).unwrap()["metadata"]["labels"]["a"],
        "b",
        "what others have put there stays"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_taken_away_is_not_written_for_any_more() {
    let server = ApiServer::new();
    let mut first = Candidate::start(&server, "first");
    first.leads().await;
    let mut lease = server.get(LEASE).unwrap();
    lease["spec"]["holderIdentity"] = serde_json::json!("usurper");
    server.put(LEASE, lease);
    first.writes.wait_for(|writes| !writes).await.unwrap();
    first.status.wait_for(|status| status.holder == "usurper").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_it_may_not_do_is_said_with_what_to_allow() {
    let server = ApiServer::new();
    server.trouble(Trouble::Refuses(403));
    let mut candidate = Candidate::start(&server, "first");
    let status = candidate.status.wait_for(|status| status.problem.is_some()).await.unwrap().clone();
    assert!(status.problem.unwrap().contains("allow the service account of mesh-control"));
    server.trouble(Trouble::None);
    candidate.leads().await;
    assert_eq!(candidate.status.borrow().problem, None);
}

#[tokio::test(start_paused = true)]
async fn of_many_that_begin_together_one_leads() {
    let server = ApiServer::new();
    let candidates: Vec<_> = (0..10).map(|number| Candidate::start(&server, &format!("c{number}"))).collect();
    sleep(LEASE_DURATION * 4).await;
    let leading = candidates.iter().filter(|candidate| *candidate.writes.borrow()).count();
    assert_eq!(leading, 1);
}
