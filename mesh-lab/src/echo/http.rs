//! HTTP/1.1 and HTTP/2 with prior knowledge.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio_util::sync::CancellationToken;

use super::Connection;
use super::detect::Replayed;

/// Longest time a client can make the server wait.
const DELAY_MAX: Duration = Duration::from_secs(60);
static FILLING: [u8; 16 * 1024] = [b'x'; 16 * 1024];

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// Serves a connection until the client closes it, or the last request that had begun when the server was stopped is answered.
pub(super) async fn serve(
    stream: Replayed,
    connection: Connection,
    stop: &CancellationToken,
) -> io::Result<()> {
    let service = service_fn(|request| {
        let connection = connection.clone();
        async move { Ok::<_, Infallible>(respond(request, &connection).await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        result = served.as_mut() => return result.map_err(io::Error::other),
        () = stop.cancelled() => served.as_mut().graceful_shutdown(),
    }
    served.await.map_err(io::Error::other)
}

async fn respond(request: Request<Incoming>, connection: &Connection) -> Response<Body> {
    match request.uri().path() {
        "/echo" => Response::new(request.into_body().boxed_unsync()),
        "/bytes" => match parameter(&request, "n") {
            Some(count) => Response::new(filling(count)),
            None => refusal("/bytes takes a number of bytes, as in /bytes?n=1000"),
        },
        "/status" => match parameter::<u16>(&request, "code").map(StatusCode::from_u16) {
            Some(Ok(status)) => answer(&request, connection, status),
            _ => refusal("/status takes a status code, as in /status?code=503"),
        },
        "/delay" => match parameter(&request, "ms") {
            Some(milliseconds) => {
                tokio::time::sleep(Duration::from_millis(milliseconds).min(DELAY_MAX)).await;
                answer(&request, connection, StatusCode::OK)
            }
            None => refusal("/delay takes milliseconds, as in /delay?ms=100"),
        },
        _ => answer(&request, connection, StatusCode::OK),
    }
}

fn answer(request: &Request<Incoming>, connection: &Connection, status: StatusCode) -> Response<Body> {
    let mut answer = connection.answer(&format!("{:?}", request.version()));
    answer.method = Some(request.method().to_string());
    answer.path = request.uri().path_and_query().map(ToString::to_string);
    let text = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
        Some((name.to_string(), value.to_str().ok()?.to_owned()))
    };
    answer.headers = request.headers().iter().filter_map(text).collect();
    // HTTP/2 carries the host in the request line.
    if let Some(authority) = request.uri().authority() {
        answer.headers.entry("host".to_owned()).or_insert_with(|| authority.to_string());
    }
    let mut text = serde_json::to_vec(&answer).unwrap_or_default();
    text.push(b'\n');
    let mut response = whole(text);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}

fn refusal(reason: &str) -> Response<Body> {
    let mut response = whole(format!("{reason}\n").into_bytes());
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

fn whole(body: Vec<u8>) -> Response<Body> {
    Response::new(Full::from(body).map_err(|never| match never {}).boxed_unsync())
}

/// So many bytes, made as they are sent.
fn filling(count: u64) -> Body {
    let chunks = stream::unfold(count, async |left| {
        if left == 0 {
            return None;
        }
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(FILLING.len());
        let chunk = Bytes::from_static(FILLING.get(..length).unwrap_or_default());
        let left = left.saturating_sub(u64::try_from(length).unwrap_or(left));
        Some((Ok(Frame::data(chunk)), left))
    });
    StreamBody::new(chunks).boxed_unsync()
}

/// A number from the query.
fn parameter<T: std::str::FromStr>(request: &Request<Incoming>, name: &str) -> Option<T> {
    let pairs = request.uri().query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).find_map(|(_, value)| value.parse().ok())
}
