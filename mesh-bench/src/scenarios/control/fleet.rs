//! Many agents, as a control server sees them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::Machine;
use tokio::runtime::Runtime;

use crate::discovery::Stream;

/// Threads of all agents together.
const THREADS: usize = 2;

/// What an agent has to tell.
#[derive(Debug)]
enum Event {
    /// It has all there is.
    Synchronised,
    /// Something changed.
    Changed(Instant),
    /// It has no stream any more.
    Failed(String),
}

/// Streams that are open until this is dropped.
pub(super) struct Fleet {
    agents: usize,
    events: Receiver<Event>,
    runtime: Option<Runtime>,
}

impl Fleet {
    /// Has agents connect from `machine`.
    pub(super) fn start(machine: &Machine, server: SocketAddr, agents: usize) -> Result<Self> {
        // The runtime's threads are born in the namespace of the thread that makes it.
        let runtime = machine.namespace().run(|| {
            tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()
        })??;
        let (told, events) = mpsc::channel();
        for number in 0..agents {
            let told = told.clone();
            runtime.spawn(async move {
                let Err(error) = agent(server, number, &told).await;
                // Nobody listens once all is over.
                let _ = told.send(Event::Failed(format!("agent {number}: {error:#}")));
            });
        }
        Ok(Self { agents, events, runtime: Some(runtime) })
    }

    /// Waits until every agent has everything.
    pub(super) fn wait_until_synchronised(&self, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        for _ in 0..self.agents {
            match self.next(end)? {
                Event::Synchronised => {}
                other => bail!("an agent was not to say this yet: {other:?}"),
            }
        }
        Ok(())
    }

    /// Waits until every agent has heard of a change; returns when each did.
    pub(super) fn wait_for_push(&self, patience: Duration) -> Result<Vec<Instant>> {
        let end = Instant::now() + patience;
        let mut arrivals = Vec::with_capacity(self.agents);
        for _ in 0..self.agents {
            match self.next(end)? {
                Event::Changed(at) => arrivals.push(at),
                other => bail!("an agent was not to say this now: {other:?}"),
            }
        }
        Ok(arrivals)
    }

    fn next(&self, end: Instant) -> Result<Event> {
        let left = end.saturating_duration_since(Instant::now());
        match self.events.recv_timeout(left).context("some agents have heard nothing")? {
            Event::Failed(error) => bail!(error),
            event => Ok(event),
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Holds a stream, and tells what comes of it.
async fn agent(server: SocketAddr, number: usize, told: &Sender<Event>) -> Result<Infallible> {
    let mut stream = Stream::open(server, number).await?;
    let mut synchronised = false;
    loop {
        let (response, at) = stream.next().await?;
        if !stream.is_complete() {
            continue;
        }
        let first = !std::mem::replace(&mut synchronised, true);
        ensure!(first || !response.resources.is_empty(), "a response without content");
        told.send(if first { Event::Synchronised } else { Event::Changed(at) })?;
    }
}
