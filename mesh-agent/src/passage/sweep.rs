//! Follows the kernel's flows: by what it tells of them, and by going through all there are.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_common::{FlowEvent, FlowEventKind, FlowKey, FlowState};
use tracing::debug;

use super::Passages;
use super::decide::{Parties, parties};
use super::live::{self, Origin};
use crate::steering::{FlowId, SteeringError};
use crate::telemetry::{ConnectionEnd, ResponseFlag};

/// How long a flow that is over must have been quiet before it is removed: what comes after that passes unseen.
const QUIET: Duration = Duration::from_secs(2);
/// How long a SYN may go unanswered. Linux repeats it for two minutes by default.
const UNANSWERED: Duration = Duration::from_secs(150);

/// Flows that are over, or have not begun: their packets when they were last seen to change, and when that was.
#[derive(Default)]
pub(super) struct Waiting(HashMap<FlowId, (u64, Instant)>);

impl Waiting {
    fn contains(&self, flow: &FlowId) -> bool {
        self.0.contains_key(flow)
    }

    /// Whether a flow has had no packet for this long, as far as has been looked.
    fn is_quiet(&mut self, flow: FlowId, state: &FlowState, time: Duration) -> bool {
        let packets = live::packets(state);
        let (seen, since) = self.0.entry(flow).or_insert_with(|| (packets, Instant::now()));
        if *seen != packets {
            (*seen, *since) = (packets, Instant::now());
        }
        since.elapsed() >= time
    }
}

impl Passages {
    /// Takes what the kernel tells.
    pub(super) fn hear(&mut self, events: Vec<FlowEvent>) {
        for event in events {
            let flow = FlowId::new(event.key, &event.flow);
            match event.kind() {
                Some(FlowEventKind::Opened) => self.opened(flow, (0, 0)),
                Some(FlowEventKind::Broken | FlowEventKind::Ended) => self.ended(&flow, &event.flow),
                None => {}
            }
            self.idle = false;
        }
    }

    /// Goes through all flows there are.
    pub(super) async fn sweep(&mut self) -> Result<(), SteeringError> {
        if self.is_undecided() {
            self.decide_again(false);
        }
        if self.idle && self.live.is_empty() && self.inputs.steering.passages().is_empty() {
            return Ok(());
        }
        // Two system calls for each flow.
        let reader = Arc::clone(&self.reader);
        let all = tokio::task::spawn_blocking(move || reader.all()).await;
        let all = all.map_err(|error| SteeringError::Watch(error.to_string()))??;
        // What ended while they were read was told.
        let told = self.events.take();
        self.hear(told);
        self.go_through(all)
    }

    fn go_through(&mut self, all: Vec<(FlowKey, FlowState)>) -> Result<(), SteeringError> {
        let mut seen = HashSet::new();
        for (key, state) in all {
            let flow = FlowId::new(key, &state);
            seen.insert(flow);
            if !self.inputs.steering.flow_passes(&state)? {
                self.stopped(flow, &state)?;
            } else if state.is_finished() || state.is_broken() {
                self.ended(&flow, &state);
                self.forget_when_quiet(flow, &state, QUIET)?;
            } else if state.is_open() {
                self.goes_on(flow, &state)?;
            } else if self.forget_when_quiet(flow, &state, UNANSWERED)?
                && let Some((parties, origin)) = self.facts(&flow)
            {
                self.live.unanswered(&flow, &parties, &origin);
            }
        }
        self.waiting.0.retain(|flow, _| seen.contains(flow));
        self.give_up_unused(&seen)?;
        for flow in self.live.missing(&seen) {
            // Its end could not be told, for the ring was full; or it was missed among the others.
            if self.inputs.steering.flow(&flow).is_none() {
                self.live.close(&flow, None, &ConnectionEnd::default());
            }
        }
        self.idle = seen.is_empty();
        Ok(())
    }

    /// A connection whose packets pass.
    fn goes_on(&mut self, flow: FlowId, state: &FlowState) -> Result<(), SteeringError> {
        if !self.live.contains(&flow) {
            // It is an agent's before, or could not be told.
            self.opened(flow, if self.is_older(&flow) { live::bytes(state) } else { (0, 0) });
        }
        if self.live.update(&flow, state) >= self.inputs.idle_timeout {
            self.inputs.steering.condemn_flow(&flow)?;
            let detail = Some("nothing was sent for the idle time-out".into());
            let end = ConnectionEnd { flag: ResponseFlag::StreamIdleTimeout, detail };
            self.live.cut(&self.inputs.steering, &flow, &end);
        }
        Ok(())
    }

    /// A connection whose packets are answered with resets.
    fn stopped(&mut self, flow: FlowId, state: &FlowState) -> Result<(), SteeringError> {
        if self.live.contains(&flow) {
            // Policy had no say in it, or its record would be closed.
            let detail = Some("one of its pods is gone, or another by now".into());
            let end = ConnectionEnd { flag: ResponseFlag::Denied, detail };
            self.live.cut(&self.inputs.steering, &flow, &end);
        } else if !self.waiting.contains(&flow)
            // It opened while its verdict was taken back.
            && let Err(error) = self.inputs.steering.reset_flow(&flow)
        {
            debug!(%error, client = %flow.client, server = %flow.server, "ends with its next packet only");
        }
        self.forget_when_quiet(flow, state, QUIET).map(drop)
    }

    /// Says whether it was forgotten.
    fn forget_when_quiet(
        &mut self,
        flow: FlowId,
        state: &FlowState,
        time: Duration,
    ) -> Result<bool, SteeringError> {
        let quiet = self.waiting.is_quiet(flow, state, time);
        if quiet {
            self.inputs.steering.forget_flow(&flow)?;
        }
        Ok(quiet)
    }

    /// Gives up verdicts that no connection has lived on for long, in two steps: first none opens on it any more, and
    /// the next time, when none has after all, it goes.
    fn give_up_unused(&mut self, flows: &HashSet<FlowId>) -> Result<(), SteeringError> {
        let now = Instant::now();
        if !self.unused.is_due(now) {
            return Ok(());
        }
        let steering = &self.inputs.steering;
        let verdicts = steering.passages();
        let used = flows.iter().map(FlowId::passage).collect();
        let unused = self.unused.look(verdicts.iter().map(|(key, _)| *key), &used, now);
        for (key, in_force) in verdicts.into_iter().filter(|(key, _)| unused.contains(key)) {
            if in_force {
                steering.suspend_passage(key)?;
            } else {
                steering.revoke_passage(key)?;
            }
        }
        Ok(())
    }

    fn opened(&mut self, flow: FlowId, counted_before: (u64, u64)) {
        // Without its pods nothing can be said of it: they are on their way, or gone, and that ends it.
        if !self.live.contains(&flow)
            && let Some((parties, origin)) = self.facts(&flow)
        {
            self.live.open(flow, &parties, &origin, counted_before);
        }
    }

    fn ended(&mut self, flow: &FlowId, state: &FlowState) {
        if self.live.contains(flow) {
            self.live.close(flow, Some(state), &live::end(state));
        } else if !self.waiting.contains(flow)
            && !self.is_older(flow)
            && let Some((parties, origin)) = self.facts(flow)
        {
            // It was over before it could be told that it is open, or has never been.
            if state.is_open() {
                self.live.open(*flow, &parties, &origin, (0, 0));
                self.live.close(flow, Some(state), &live::end(state));
            } else {
                self.live.refused(flow, &parties, &origin);
            }
        }
    }

    /// Who speaks, and which service was asked for if the kernel chose its endpoint.
    fn facts(&self, flow: &FlowId) -> Option<(Parties, Origin)> {
        let (snapshot, pods) = (self.inputs.snapshot.load(), self.inputs.pods.load());
        let opened_to = self.opened_to.service(flow.client, flow.server);
        let origin = opened_to.and_then(|address| {
            let entry = snapshot.service_by_address(address.ip())?;
            Some((address, Arc::clone(&entry.service)))
        });
        Some((parties(&snapshot, &pods, flow.passage())?, origin))
    }

    /// Whether a flow was opened before this agent looked after flows.
    fn is_older(&self, flow: &FlowId) -> bool {
        Duration::from_nanos(flow.opened) < self.since
    }
}
