//! Many agents, as a control server sees them.

use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::Machine;
use mesh_xds::proto::Name;
use mesh_xds::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_xds::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use mesh_xds::proto::security::Authorization;
use mesh_xds::proto::workload::Address;
use mesh_xds::transport::Transport;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::ReceiverStream;

/// Threads of all agents together.
const THREADS: usize = 2;
/// Requests on their way: the two that begin a stream, and an answer for each type.
const REQUESTS: usize = 4;

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

/// Holds a stream, as an agent does that knows nothing yet.
async fn agent(server: SocketAddr, number: usize, told: &Sender<Event>) -> Result<std::convert::Infallible> {
    let channel = Transport::default().connect(&format!("http://{server}").parse()?).await?;
    let (requests, outgoing) = tokio::sync::mpsc::channel(REQUESTS);
    let types = [Authorization::type_url(), Address::type_url()];
    for type_url in &types {
        requests.send(subscribe(type_url, number)).await?;
    }
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut responses = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await?.into_inner();
    let mut complete = [false; 2];
    loop {
        let response = responses.message().await?.context("the server ended the stream")?;
        let at = Instant::now();
        let place = types.iter().position(|type_url| *type_url == response.type_url);
        let complete_type =
            place.and_then(|place| complete.get_mut(place)).context("an unknown type came")?;
        let first = !std::mem::replace(complete_type, !response.more);
        requests.send(acknowledge(&response)).await?;
        if complete == [true; 2] {
            ensure!(first || !response.resources.is_empty(), "a response without content");
            told.send(if first { Event::Synchronised } else { Event::Changed(at) })?;
        }
    }
}

fn subscribe(type_url: &str, number: usize) -> DeltaDiscoveryRequest {
    let node = Node::new(
        format!("ztunnel~10.0.0.1~agent-{number}.mesh-system~mesh-system.svc.cluster.local"),
        [("NODE_NAME", format!("node-{number}"))],
    );
    DeltaDiscoveryRequest {
        node: Some(node),
        type_url: type_url.to_owned(),
        resource_names_subscribe: vec!["*".to_owned()],
        ..DeltaDiscoveryRequest::default()
    }
}

fn acknowledge(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..DeltaDiscoveryRequest::default()
    }
}
