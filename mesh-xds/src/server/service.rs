//! The service on the wire of gRPC.
//!
//! tonic's own way copies every message into a buffer of its stream, which then keeps its size: a copy of the last
//! large response for each client. Here a response goes to HTTP/2 as the bytes that its clients share, with a head of
//! its own in front; protobuf lets the fields of a message come in any order.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use prost::Message;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codec::Codec;
use tonic::server::NamedService;
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::Service;

use super::DiscoveryServer;
use crate::proto::discovery::aggregated_discovery_service_server::SERVICE_NAME;
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

/// Whether a message is compressed, and its length: what gRPC puts in front of each.
const PREFIX_BYTES: usize = 5;
const ENCODING: &str = "grpc-encoding";

/// The gRPC service of a [`DiscoveryServer`], to be added to a tonic server.
#[derive(Debug, Clone)]
pub struct DiscoveryService(pub(super) DiscoveryServer);

impl NamedService for DiscoveryService {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<Request<Body>> for DiscoveryService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        ready(Ok(self.answer(request).unwrap_or_else(Status::into_http)))
    }
}

impl DiscoveryService {
    fn answer(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        match method {
            "DeltaAggregatedResources" => {}
            "StreamAggregatedResources" => {
                return Err(Status::unimplemented(
                    "this server speaks the delta protocol only: call DeltaAggregatedResources (Envoy: api_type DELTA_GRPC)",
                ));
            }
            _ => return Err(Status::unimplemented("")),
        }
        let compressed = request.headers().get(ENCODING).is_some_and(|encoding| encoding != "identity");
        if compressed {
            return Err(Status::unimplemented("this server reads no compressed messages"));
        }
        let request = tonic::Request::from_http(request);
        let address = request.remote_addr();
        let decoder = ProstCodec::<DeltaDiscoveryResponse, DeltaDiscoveryRequest>::default().decoder();
        let limit = self.0.config.max_request_bytes;
        let requests = Streaming::new_request(decoder, request.into_inner(), None, Some(limit));
        let body = ResponseBody { responses: self.0.open(requests, address)?, rest: None, ended: false };
        let mut response = Response::new(Body::new(body));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Ok(response)
    }
}

/// A response as it is sent: what is for this client only, and what it shares with others.
#[derive(Debug)]
pub(super) struct Outgoing {
    head: Bytes,
    content: Bytes,
}

impl Outgoing {
    /// `head` has everything but the resources, `content` only these. Fails for what gRPC has no length for.
    pub(super) fn new(head: &DeltaDiscoveryResponse, content: Bytes) -> Result<Self, Status> {
        let length = u32::try_from(head.encoded_len() + content.len())
            .map_err(|_| Status::out_of_range("a resource of more than 4 GiB"))?;
        let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + head.encoded_len());
        bytes.put_u8(0);
        bytes.put_u32(length);
        head.encode(&mut bytes).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Self { head: bytes.freeze(), content })
    }
}

/// Responses until there are no more, then how it ended.
struct ResponseBody {
    responses: mpsc::Receiver<Result<Outgoing, Status>>,
    /// The second part of the response that was begun.
    rest: Option<Bytes>,
    ended: bool,
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(rest) = self.rest.take() {
            return Poll::Ready(Some(Ok(Frame::data(rest))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let status = match ready!(self.responses.poll_recv(context)) {
            Some(Ok(Outgoing { head, content })) => {
                self.rest = Some(content).filter(|content| !content.is_empty());
                return Poll::Ready(Some(Ok(Frame::data(head))));
            }
            Some(Err(status)) => status,
            None => Status::new(Code::Ok, ""),
        };
        self.ended = true;
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            // Its text is none for a header: the code has to do.
            trailers.insert("grpc-status", HeaderValue::from(i32::from(status.code())));
        }
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}
