//! An agent, as a control server sees it, that notes which resources it is told of.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_lab::Machine;
use mesh_xds::proto::discovery::Resource;
use prost::Message;
use tokio::runtime::Runtime;

use crate::discovery::Stream;

/// What came in a response.
#[derive(Debug)]
struct Told {
    at: Instant,
    /// Names of resources, those that are gone too.
    names: Vec<String>,
    /// Whether this was all there is.
    complete: bool,
}

/// A resource that was waited for.
#[derive(Debug)]
pub(super) struct Arrival {
    /// When it came.
    pub(super) at: Instant,
    /// What else came since the last time something was waited for.
    pub(super) others: Vec<String>,
}

/// A stream that is open until this is dropped.
pub(super) struct Agent {
    told: Receiver<Result<Told>>,
    runtime: Option<Runtime>,
}

impl Agent {
    /// Connects from `machine`.
    pub(super) fn start(machine: &Machine, server: SocketAddr) -> Result<Self> {
        // The runtime's thread is born in the namespace of the thread that makes it.
        let runtime = machine
            .namespace()
            .run(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build())??;
        let (tell, told) = mpsc::channel();
        runtime.spawn(async move {
            let Err(error) = follow(server, &tell).await;
            // Nobody listens once all is over.
            let _ = tell.send(Err(error));
        });
        Ok(Self { told, runtime: Some(runtime) })
    }

    /// Waits until everything there is has come; returns how many resources that are.
    pub(super) fn wait_until_synchronised(&self, patience: Duration) -> Result<usize> {
        let end = Instant::now() + patience;
        let mut known = 0;
        loop {
            let told = self.next(end)?;
            known += told.names.len();
            if told.complete {
                return Ok(known);
            }
        }
    }

    /// Waits until it was told of a resource.
    pub(super) fn wait_for(&self, name: &str, patience: Duration) -> Result<Arrival> {
        let end = Instant::now() + patience;
        let mut others = Vec::new();
        loop {
            let told = self.next(end)?;
            let found = told.names.iter().any(|told| told == name);
            others.extend(told.names.into_iter().filter(|told| told != name));
            if found {
                return Ok(Arrival { at: told.at, others });
            }
        }
    }

    fn next(&self, end: Instant) -> Result<Told> {
        let left = end.saturating_duration_since(Instant::now());
        self.told.recv_timeout(left).context("the agent was told nothing")?
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn follow(server: SocketAddr, tell: &Sender<Result<Told>>) -> Result<Infallible> {
    let mut stream = Stream::open(server, 0).await?;
    loop {
        let (response, at) = stream.next().await?;
        let mut names = response.removed_resources;
        for encoded in response.resources {
            names.push(Resource::decode(encoded).context("a resource")?.name);
        }
        tell.send(Ok(Told { at, names, complete: stream.is_complete() }))?;
    }
}
