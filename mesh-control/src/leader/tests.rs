//! Candidates on one API server, with the clock in the test's hand.

use mesh_lab::api_server::{ApiServer, Trouble};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;

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
        let client = Client::new(server.router(), "default");
        let election = Election::new(client, name, identity.to_owned(), Arc::default());
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

fn lease(server: &ApiServer) -> Value {
    server.object("Lease", "mesh-system", "mesh-control").unwrap()
}

fn holder(server: &ApiServer) -> String {
    lease(server)["spec"]["holderIdentity"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn one_of_two_leads_and_the_other_follows_when_it_stops() {
    let server = ApiServer::without_socket();
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
    assert_eq!(lease(&server)["spec"]["leaseTransitions"], 1);
    second.stop().await;
    assert_eq!(holder(&server), "");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_before_another_begins() {
    let server = ApiServer::without_socket();
    let mut first = Candidate::start(&server, "first");
    first.leads().await;
    for trouble in [Trouble::Silent, Trouble::RefusesWrites(500)] {
        let since = Instant::now();
        server.set_trouble(trouble);
        first.writes.wait_for(|writes| !writes).await.unwrap();
        assert!(
            since.elapsed() <= RENEW_DEADLINE,
            "{trouble:?}: it writes no more, well before the lease is over"
        );
        assert!(!first.status.borrow().leading);
        server.set_trouble(Trouble::None);
        first.leads().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_lease_of_a_leader_that_died_is_taken_after_its_duration_by_ones_own_clock() {
    let server = ApiServer::without_socket();
    // The clock of the one that died was an hour ahead, or behind: nobody compares it.
    let far = jiff::Timestamp::from_second(4_000_000_000).unwrap().to_string();
    let spec = json!({
        "holderIdentity": "dead", "leaseDurationSeconds": 15, "leaseTransitions": 4, "renewTime": far, "acquireTime": far,
    });
    server.apply(json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "mesh-control", "namespace": "mesh-system"}, "spec": spec,
    }));
    let began = Instant::now();
    let mut heir = Candidate::start(&server, "heir");
    sleep(Duration::from_secs(10)).await;
    // Somebody labels it, which is no sign of life.
    let mut labelled = lease(&server);
    labelled["metadata"]["labels"] = json!({"a": "b"});
    server.apply(labelled);
    heir.leads().await;
    assert!(began.elapsed() > LEASE_DURATION && began.elapsed() < LEASE_DURATION + RETRY * 3);
    assert_eq!(lease(&server)["spec"]["leaseTransitions"], 5);
    assert_eq!(lease(&server)["metadata"]["labels"]["a"], "b", "what others have put there stays");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_taken_away_is_not_written_for_any_more() {
    let server = ApiServer::without_socket();
    let mut first = Candidate::start(&server, "first");
    first.leads().await;
    let mut taken = lease(&server);
    taken["spec"]["holderIdentity"] = json!("usurper");
    server.apply(taken);
    first.writes.wait_for(|writes| !writes).await.unwrap();
    first.status.wait_for(|status| status.holder == "usurper").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_it_may_not_do_is_said_with_what_to_allow() {
    let server = ApiServer::without_socket();
    server.set_trouble(Trouble::RefusesWrites(403));
    let mut candidate = Candidate::start(&server, "first");
    let status = candidate.status.wait_for(|status| status.problem.is_some()).await.unwrap().clone();
    assert!(status.problem.unwrap().contains("allow the service account of mesh-control"));
    server.set_trouble(Trouble::None);
    candidate.leads().await;
    assert_eq!(candidate.status.borrow().problem, None);
}

#[tokio::test(start_paused = true)]
async fn of_many_that_begin_together_one_leads() {
    let server = ApiServer::without_socket();
    let candidates: Vec<_> = (0..10).map(|number| Candidate::start(&server, &format!("c{number}"))).collect();
    sleep(LEASE_DURATION * 4).await;
    let leading = candidates.iter().filter(|candidate| *candidate.writes.borrow()).count();
    assert_eq!(leading, 1);
}
