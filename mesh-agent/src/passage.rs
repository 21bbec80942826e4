//! Lets the kernel pass connections that need nothing done with their bytes, between pods of this node, or between one and
//! somebody elsewhere, in plain text; and answers for them as if the agent had relayed them.
//!
//! The proxy *proposes*: a connection it has just authorized was one that needs no proxy. From then on everything is
//! decided here, by the same pure functions the proxy uses ([`decide`]), and kept true:
//!
//! - a verdict is written for a proposal that may pass, and the next such connection passes;
//! - whenever the configuration or the pods change, every verdict is decided again; those that are denied are taken back
//!   first, all of them, and only then are the connections ended that live on them;
//! - what the kernel tells of connections becomes records like those of the proxy (`live`);
//! - once a second all flows are gone through (`sweep`): for their counts, for what was not told because the ring was
//!   full, and for connections that nobody uses any more;
//! - verdicts that no connection lives on are given up after a while (`unused`).
//!
//! While no agent is there, verdicts hold: they are the last good policy, as the cached configuration is. A pod that
//! fails closed is as closed as that policy says. The next agent decides all of them again before it does anything else.
//!
//! Passed connections do not count for the limits of the proxy, which guard its descriptors and memory. What guards the
//! kernel's memory is the size of the table of flows; beyond it connections go through the proxy and count there.

pub mod decide;
mod live;
mod pace;
mod sweep;
mod unused;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::config::SharedSnapshot;
use crate::pods::LocalPods;
use crate::policy::{Denied, SETTLING_TIME};
use crate::steering::{FlowEvents, FlowReader, OpenedTo, PassageKey, Steering, SteeringError};
use crate::telemetry::{ConnectionEnd, ConnectionObserver};
use decide::{Ruling, rule};
use live::Live;
use pace::Pace;
use sweep::Waiting;
use unused::Unused;

/// Proposals that wait to be decided. One that finds no room is made again by the next connection.
const PROPOSALS: usize = 1024;
/// Events taken at a time, so that nothing else waits for long.
const EVENTS: usize = 1024;
/// How long events may gather: the kernel wakes who waits for one with the first, and not again until all are taken.
const GATHER: Duration = Duration::from_millis(20);
/// How often all flows are gone through.
const SWEEP: Duration = Duration::from_secs(1);

/// What passage needs from the rest of the agent.
pub struct PassageInputs {
    /// The kernel.
    pub steering: Steering,
    /// The mesh's configuration.
    pub snapshot: Arc<SharedSnapshot>,
    /// The pods of this node.
    pub pods: Arc<ArcSwap<LocalPods>>,
    /// Who hears of connections.
    pub observer: Arc<dyn ConnectionObserver>,
    /// What the proxy proposes.
    pub proposals: ProposalQueue,
    /// A connection on which nothing moves for this long is ended.
    pub idle_timeout: Duration,
}

/// Where the proxy leaves its proposals. Cheap to clone, and to use on the way of a connection.
#[derive(Debug, Clone)]
pub struct PassageProposals {
    queue: Option<mpsc::Sender<PassageKey>>,
    counts: Arc<PassageCounts>,
    flows: SharedFlows,
}

/// The kernel's flows, once somebody has opened them.
type SharedFlows = Arc<OnceLock<Arc<FlowReader>>>;

/// Where they are taken from.
#[derive(Debug)]
pub struct ProposalQueue {
    queue: Option<mpsc::Receiver<PassageKey>>,
    counts: Arc<PassageCounts>,
    flows: SharedFlows,
}

/// The way from the proxy to [`Passages`]. If it is not `enabled`, nothing is proposed and no new connection passes; those
/// that an agent before let pass are looked after in any case.
pub fn proposals(enabled: bool) -> (PassageProposals, ProposalQueue) {
    let (sender, receiver) = mpsc::channel(PROPOSALS);
    let counts = Arc::new(PassageCounts::default());
    let flows = SharedFlows::default();
    let proposals = PassageProposals {
        queue: enabled.then_some(sender),
        counts: Arc::clone(&counts),
        flows: Arc::clone(&flows),
    };
    (proposals, ProposalQueue { queue: enabled.then_some(receiver), counts, flows })
}

impl PassageProposals {
    /// Proposes that connections like this one pass: from `client` to the server's own address and port, one of them a pod of
    /// this node.
    /// Whether they do is decided elsewhere; nothing is waited for here.
    pub fn propose(&self, client: IpAddr, server: SocketAddr) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(PassageKey { source: client, destination: server }).is_err() {
            self.counts.unheard.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether a connection of `client` to `server` passes in the kernel at this moment. One system call that does not
    /// wait, and none where nothing passes.
    pub fn passes(&self, client: SocketAddr, server: SocketAddr) -> bool {
        self.flows.get().is_some_and(|flows| flows.contains(client, server))
    }

    /// What has become of all proposals.
    pub fn counts(&self) -> &PassageCounts {
        &self.counts
    }
}

impl ProposalQueue {
    /// The next proposal; never resolves where there is no more.
    async fn next(&mut self) -> PassageKey {
        let next = match &mut self.queue {
            Some(queue) => queue.recv().await,
            None => None,
        };
        match next {
            Some(proposal) => proposal,
            None => std::future::pending().await,
        }
    }
}

/// What passage does, counted.
#[derive(Debug, Default)]
pub struct PassageCounts {
    /// Proposals for which there is a verdict since.
    pub allowed: AtomicU64,
    /// Verdicts taken back because policy denies what they allowed.
    pub revoked: AtomicU64,
    /// Connections ended because they may no longer be, or were idle for too long.
    pub cut: AtomicU64,
    /// Connections that are open now.
    pub open: AtomicU64,
    /// Proposals that found no room in the queue.
    pub unheard: AtomicU64,
}

/// What keeps verdicts, connections and their records true. Runs on the control runtime, in the network namespace of
/// the node.
pub struct Passages {
    inputs: PassageInputs,
    events: FlowEvents,
    reader: Arc<FlowReader>,
    opened_to: OpenedTo,
    live: Live,
    waiting: Waiting,
    unused: Unused,
    counts: Arc<PassageCounts>,
    /// Since when connections are looked after here, on the kernel's clock.
    since: Duration,
    /// The pods that the last decisions were taken from.
    decided: Option<Arc<LocalPods>>,
    /// When connections that wait for a policy have waited long enough.
    settled_at: Option<Instant>,
    /// Whether the kernel had no flow the last time.
    idle: bool,
    pace: Pace,
}

impl Passages {
    /// Takes over what an agent before left in the kernel. To be called on the runtime it will run on.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn new(inputs: PassageInputs) -> Result<Self, SteeringError> {
        let counts = Arc::clone(&inputs.proposals.counts);
        let reader = Arc::new(inputs.steering.flow_reader()?);
        let reader = Arc::clone(inputs.proposals.flows.get_or_init(|| reader));
        Ok(Self {
            events: inputs.steering.flow_events()?,
            reader,
            opened_to: inputs.steering.opened_to(),
            live: Live::new(Arc::clone(&inputs.observer), Arc::clone(&counts)),
            waiting: Waiting::default(),
            unused: Unused::default(),
            since: monotonic(),
            inputs,
            counts,
            decided: None,
            settled_at: None,
            idle: false,
            pace: Pace::begin(),
        })
    }

    /// Keeps everything true until `stop`. What passes then goes on passing.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut snapshots = self.inputs.snapshot.subscribe();
        let mut sweeping = interval(SWEEP);
        sweeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut gathered = Instant::now();
        self.decide_again(false);
        loop {
            let step = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = snapshots.changed() => if changed.is_ok() { Step::Configured } else { return },
                () = at(self.settled_at) => Step::Decide { settled: true },
                () = at(self.pace.due_at()) => Step::Decide { settled: false },
                _ = sweeping.tick() => Step::Sweep,
                proposal = self.inputs.proposals.next() => Step::Consider(proposal),
                events = async { sleep_until(gathered).await; self.events.next(EVENTS).await } => Step::Hear(events),
            };
            let result = match step {
                Step::Configured => {
                    self.configured();
                    Ok(())
                }
                Step::Decide { settled } => {
                    self.decide_again(settled);
                    Ok(())
                }
                Step::Sweep => self.sweep().await,
                Step::Consider(proposal) => self.consider(proposal),
                Step::Hear(Ok(events)) => {
                    self.hear(events);
                    gathered = Instant::now() + GATHER;
                    Ok(())
                }
                Step::Hear(Err(error)) => {
                    gathered = Instant::now() + SWEEP;
                    Err(SteeringError::Watch(error.to_string()))
                }
            };
            if let Err(error) = result {
                warn!(%error, "connections in the kernel may be shown late");
            }
        }
    }

    /// Decides a proposal.
    fn consider(&mut self, key: PassageKey) -> Result<(), SteeringError> {
        let (snapshot, pods) = (self.inputs.snapshot.load(), self.inputs.pods.load());
        let Ruling::Pass(parties) = rule(&snapshot, &pods, key) else { return Ok(()) };
        if self.inputs.steering.allow_passage(key, parties.client.uid(), parties.server.uid())? {
            debug!(source = %key.source, destination = %key.destination, "connections pass in the kernel");
            self.counts.allowed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Decides every verdict again, and ends the connections that are no longer allowed. `settled` says that policies
    /// that are missing had their time to come.
    fn decide_again(&mut self, settled: bool) {
        let (snapshot, pods) = (self.inputs.snapshot.load(), self.inputs.pods.load_full());
        let (began, revision) = (Instant::now(), snapshot.policy_revision());
        let mut denied: HashMap<PassageKey, Denied> = HashMap::new();
        let (mut unsettled, mut failed) = (false, false);
        let enabled = self.inputs.proposals.queue.is_some();

        // First, no connection opens any more, or lives on, on a verdict that does not hold:
        for (key, in_force) in self.inputs.steering.passages() {
            let result = match rule(&snapshot, &pods, key) {
                Ruling::Pass(_) if enabled => Ok(()),
                Ruling::Denied(reason) if settled || !reason.may_settle() => {
                    let revoked = self.inputs.steering.revoke_passage(key);
                    denied.insert(key, reason);
                    revoked
                }
                Ruling::Denied(_) => {
                    unsettled = true;
                    self.inputs.steering.suspend_passage(key)
                }
                Ruling::Pass(_) | Ruling::Through(_) if in_force => self.inputs.steering.suspend_passage(key),
                Ruling::Pass(_) | Ruling::Through(_) => Ok(()),
            };
            if let Err(error) = result {
                failed = true;
                error!(%error, source = %key.source, destination = %key.destination, "connections may still pass");
            }
        }
        // then those that nobody sends anything on are told.
        for (key, reason) in &denied {
            info!(source = %key.source, destination = %key.destination, %reason, "connections no longer pass");
            self.counts.revoked.fetch_add(1, Ordering::Relaxed);
        }
        let concerned =
            if denied.is_empty() { Vec::new() } else { self.live.on(|key| denied.contains_key(key)) };
        for (flow, reason) in concerned.iter().filter_map(|flow| Some((flow, denied.get(&flow.passage())?))) {
            let detail = format!("ended by a change of policy: {reason}");
            let end = ConnectionEnd { flag: reason.flag(), detail: Some(detail) };
            self.live.cut(&self.inputs.steering, flow, &end);
        }
        let wait = || Instant::now() + SETTLING_TIME;
        self.settled_at = unsettled.then(|| self.settled_at.filter(|_| !settled).unwrap_or_else(wait));
        // What failed is tried again with the next sweep.
        self.decided = (!failed).then_some(pods);
        self.pace = Pace::after(began, Instant::now(), revision);
    }

    /// Takes in that the configuration has changed. What policy says is carried out at once; a change of anything else can
    /// only let new connections pass, or not, and waits if there are so many verdicts and changes that nothing else would
    /// be done.
    fn configured(&mut self) {
        let revision = self.inputs.snapshot.load().policy_revision();
        if !self.pace.waits(revision, Instant::now()) {
            self.decide_again(false);
        }
    }

    /// Whether the last decisions were taken from other pods, or not all were carried out.
    fn is_undecided(&self) -> bool {
        let pods = self.inputs.pods.load();
        self.decided.as_ref().is_none_or(|decided| !Arc::ptr_eq(decided, &pods))
    }
}

/// What comes next.
enum Step {
    Configured,
    Decide { settled: bool },
    Sweep,
    Consider(PassageKey),
    Hear(std::io::Result<Vec<mesh_common::FlowEvent>>),
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// The clock that the kernel has flows opened on.
fn monotonic() -> Duration {
    // Cannot fail for this clock.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}
