//! One request and its answer.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::{HOST, HeaderName, HeaderValue};
use hyper::http::uri::{Authority, Parts, PathAndQuery, Scheme};
use hyper::{HeaderMap, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use socket2::SockRef;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::report::Outcome;
use crate::echo::Answer;

/// Bodies above this are only counted: they are no answer of an echo server.
const ANSWER_MAX: usize = 64 * 1024;
const WHO: &[u8] = b"who\n";

/// Why a load cannot be sent anywhere.
#[derive(Debug, thiserror::Error)]
#[error("{what:?} is not {expected}")]
pub struct TargetError {
    what: String,
    expected: &'static str,
}

fn refuse(what: &str, expected: &'static str) -> TargetError {
    TargetError { what: what.to_owned(), expected }
}

/// Where requests go.
#[derive(Debug, Clone)]
pub(super) enum Target {
    Http { authority: Authority, path: PathAndQuery, headers: HeaderMap, http2: bool },
    Tcp { authority: Authority },
}

impl Target {
    pub(super) fn http(url: &str) -> Result<Self, TargetError> {
        let wrong = || refuse(url, "a URL such as http://10.77.1.2:8080/path");
        let parts = url.parse::<Uri>().map_err(|_| wrong())?.into_parts();
        if parts.scheme != Some(Scheme::HTTP) {
            return Err(wrong());
        }
        let authority = parts.authority.ok_or_else(wrong)?;
        let path = parts.path_and_query.unwrap_or(PathAndQuery::from_static("/"));
        Ok(Self::Http { authority, path, headers: HeaderMap::new(), http2: false })
    }

    pub(super) fn tcp(address: &str) -> Result<Self, TargetError> {
        let authority = address.parse::<Authority>().ok().filter(|authority| authority.port().is_some());
        let authority = authority.ok_or_else(|| {
            refuse(address, "an address with a port such as 10.77.1.2:9000 or [fd00::2]:9000")
        })?;
        Ok(Self::Tcp { authority })
    }

    pub(super) fn prefer_http2(&mut self) {
        if let Self::Http { http2, .. } = self {
            *http2 = true;
        }
    }

    pub(super) fn add_header(&mut self, name: &str, value: &str) -> Result<(), TargetError> {
        if let Self::Http { headers, .. } = self {
            let name = HeaderName::try_from(name).map_err(|_| refuse(name, "a header name"))?;
            headers.append(name, HeaderValue::try_from(value).map_err(|_| refuse(value, "a header value"))?);
        }
        Ok(())
    }

    /// Connects to the first of the target's addresses that answers.
    async fn connect(&self) -> io::Result<TcpStream> {
        let (authority, port) = match self {
            Self::Http { authority, .. } => (authority, 80),
            Self::Tcp { authority } => (authority, 0),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(port))).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { authority, path, .. } => write!(out, "http://{authority}{path}"),
            Self::Tcp { authority } => write!(out, "tcp://{authority}"),
        }
    }
}

/// Sends requests over one connection, which it opens when there is none.
#[derive(Debug)]
pub(super) struct Client {
    target: Target,
    connection: Option<Connection>,
}

#[derive(Debug)]
enum Connection {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
    Tcp(BufReader<TcpStream>),
}

impl Connection {
    /// Whether the server has not ended it.
    async fn is_usable(&mut self) -> bool {
        match self {
            Self::Http1(sender) => sender.ready().await.is_ok(),
            Self::Http2(sender) => sender.ready().await.is_ok(),
            Self::Tcp(stream) => {
                let looked = SockRef::from(stream.get_ref()).peek(&mut [MaybeUninit::uninit()]);
                !looked.is_ok_and(|bytes| bytes == 0)
            }
        }
    }
}

impl Client {
    pub(super) fn new(target: Target) -> Self {
        Self { target, connection: None }
    }

    pub(super) fn disconnect(&mut self) {
        self.connection = None;
    }

    /// One request and its answer. The connection stays for the next if it may and can.
    ///
    /// Where a server ends a kept connection in good order while a request is on the way to it, the request is sent once more, over a
    /// new connection: they only ask, and that is what clients do (RFC 9112, section 9.3.1). A connection that is broken instead
    /// is a failure.
    pub(super) async fn exchange(&mut self, reuse: bool) -> Outcome {
        match self.attempt(reuse).await {
            Outcome { ended_before_answer: true, connected: false, .. } => {
                self.disconnect();
                Outcome { retried: true, ..self.attempt(reuse).await }
            }
            outcome => outcome,
        }
    }

    async fn attempt(&mut self, reuse: bool) -> Outcome {
        // A server may end a connection between two requests, as one that restarts does. Clients that keep connections open another.
        let mut kept = self.connection.take();
        if let Some(connection) = &mut kept
            && !connection.is_usable().await
        {
            kept = None;
        }
        let connected = kept.is_none();
        let mut connection = match kept {
            Some(connection) => connection,
            None => match self.connect().await {
                Ok(connection) => connection,
                Err(error) => return Outcome::error(format!("connect: {}", kind(&error))),
            },
        };
        let mut outcome = match &mut connection {
            Connection::Tcp(stream) => {
                ask(stream, !reuse).await.unwrap_or_else(|error| Outcome::error(kind(&error)))
            }
            http => self.request(http).await,
        };
        outcome.connected = connected;
        // A bad status is an answer, and leaves the connection whole.
        if reuse && (!outcome.failed() || outcome.status.is_some()) {
            self.connection = Some(connection);
        }
        outcome
    }

    async fn connect(&self) -> io::Result<Connection> {
        let stream = self.target.connect().await?;
        // The tasks that drive HTTP connections end with their senders.
        match &self.target {
            Target::Tcp { .. } => Ok(Connection::Tcp(BufReader::new(stream))),
            Target::Http { http2: false, .. } => {
                let (sender, driver) =
                    http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
                tokio::spawn(driver);
                Ok(Connection::Http1(sender))
            }
            Target::Http { http2: true, .. } => {
                let (sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                    .await
                    .map_err(io::Error::other)?;
                tokio::spawn(driver);
                Ok(Connection::Http2(sender))
            }
        }
    }

    async fn request(&self, connection: &mut Connection) -> Outcome {
        let answered = match (connection, self.http_request()) {
            (Connection::Http1(sender), Some(request)) => {
                // After a connection's last answer, hyper needs a turn before it takes the next request.
                match sender.ready().await {
                    Ok(()) => sender.send_request(request).await,
                    Err(error) => Err(error),
                }
            }
            (Connection::Http2(sender), Some(request)) => sender.send_request(request).await,
            _ => return Outcome::error("not an HTTP connection"),
        };
        match answered {
            Ok(response) => read(response).await.unwrap_or_else(|error| Outcome::error(http_kind(&error))),
            Err(error) => Outcome {
                ended_before_answer: error.is_incomplete_message(),
                ..Outcome::error(http_kind(&error))
            },
        }
    }

    fn http_request(&self) -> Option<Request<Empty<Bytes>>> {
        let Target::Http { authority, path, headers, http2 } = &self.target else { return None };
        let mut request = Request::new(Empty::new());
        let mut parts = Parts::default();
        parts.path_and_query = Some(path.clone());
        if *http2 {
            parts.scheme = Some(Scheme::HTTP);
            parts.authority = Some(authority.clone());
        }
        *request.uri_mut() = Uri::from_parts(parts).ok()?;
        request.headers_mut().clone_from(headers);
        if !http2 && !headers.contains_key(HOST) {
            request.headers_mut().insert(HOST, HeaderValue::from_str(authority.as_str()).ok()?);
        }
        Some(request)
    }
}

async fn read(response: Response<Incoming>) -> Result<Outcome, hyper::Error> {
    let status = response.status();
    let mut body = response.into_body();
    let (mut start, mut bytes) = (Vec::new(), 0_u64);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        bytes = bytes.saturating_add(data.len().try_into().unwrap_or(u64::MAX));
        if start.len().saturating_add(data.len()) <= ANSWER_MAX {
            start.extend_from_slice(&data);
        }
    }
    let failed = status >= StatusCode::BAD_REQUEST;
    Ok(Outcome {
        error: failed.then(|| format!("status {}", status.as_u16())),
        status: Some(status.as_u16()),
        answer: serde_json::from_slice(&start).ok(),
        bytes,
        ..Outcome::default()
    })
}

/// Asks who is there; with `last`, also ends the stream and waits for the server to end it too.
async fn ask(stream: &mut BufReader<TcpStream>, last: bool) -> io::Result<Outcome> {
    stream.write_all(WHO).await?;
    if last {
        stream.shutdown().await?;
    }
    let mut line = Vec::new();
    // Bounded: an echo server's answer is far below the limit, and what is no answer is an error.
    let read =
        tokio::io::AsyncReadExt::take(&mut *stream, ANSWER_MAX as u64).read_until(b'\n', &mut line).await?;
    if read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if last && !stream.fill_buf().await?.is_empty() {
        return Ok(Outcome::error("more than an answer"));
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(&line) else {
        return Ok(Outcome::error("not an answer of an echo server"));
    };
    Ok(Outcome { answer: Some(answer), bytes: read.try_into().unwrap_or(u64::MAX), ..Outcome::default() })
}

/// An error in words that do not differ from one request to the next.
/// What sort of error it is, to be counted; where that says nothing, as of names that cannot be looked up, the error itself.
fn kind(error: &io::Error) -> String {
    match error.kind().to_string().as_str() {
        "uncategorized error" | "other error" => error.to_string(),
        kind => kind.to_owned(),
    }
}

fn http_kind(error: &hyper::Error) -> String {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return kind(error);
        }
        source = cause.source();
    }
    error.to_string()
}
