//! A discovery stream as an agent opens it that knows nothing yet. It answers every response and keeps nothing.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result};
use mesh_xds::proto::Name;
use mesh_xds::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_xds::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use mesh_xds::proto::security::Authorization;
use mesh_xds::proto::workload::Address;
use mesh_xds::transport::Transport;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Requests on their way: the two that begin a stream, and an answer for each type.
const REQUESTS: usize = 4;

/// A stream of all policies, workloads and services.
pub(crate) struct Stream {
    types: [String; 2],
    /// Whether everything there was of a type has come.
    complete: [bool; 2],
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Stream {
    /// Opens the stream of agent `number`, over a connection of its own.
    pub(crate) async fn open(server: SocketAddr, number: usize) -> Result<Self> {
        let channel = Transport::default().connect(&format!("http://{server}").parse()?).await?;
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        let types = [Authorization::type_url(), Address::type_url()];
        for type_url in &types {
            requests.send(subscribe(type_url, number)).await?;
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(usize::MAX);
        let responses = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Self { types, complete: [false; 2], requests, responses })
    }

    /// The next response, which has been acknowledged, and when it came.
    pub(crate) async fn next(&mut self) -> Result<(DeltaDiscoveryResponse, Instant)> {
        let response = self.responses.message().await?.context("the server ended the stream")?;
        let at = Instant::now();
        let place = self.types.iter().position(|type_url| *type_url == response.type_url);
        let complete =
            place.and_then(|place| self.complete.get_mut(place)).context("an unknown type came")?;
        *complete = !response.more;
        self.requests.send(acknowledge(&response)).await?;
        Ok((response, at))
    }

    /// Whether everything has come that there was.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete == [true; 2]
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
