//! Why a connection could not be opened through a tunnel.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use thiserror::Error;

use crate::identity::{Identity, PeerError};
use crate::telemetry::{ConnectFailure, ResponseFlag};

/// A connection that could not be opened through a tunnel.
#[derive(Debug, Clone, Error)]
#[error("tunnel to {gateway}, {}: {cause}", Names(.expected))]
pub struct TunnelError {
    /// Where the tunnel leads.
    pub gateway: SocketAddr,
    /// Who should be there.
    pub expected: Arc<[Identity]>,
    /// What happened.
    pub cause: TunnelFailure,
}

/// What happened to a connection that was to be opened through a tunnel.
#[derive(Debug, Clone, Error)]
pub enum TunnelFailure {
    /// There is no TCP connection to the gateway.
    #[error("cannot connect: {0}")]
    Connect(Arc<io::Error>),
    /// The peer is not who it should be, or the TLS handshake failed.
    #[error("{0}")]
    Tls(#[from] PeerError),
    /// No answer.
    #[error("{0} took too long")]
    Timeout(Step),
    /// The tunnel ended before there was an answer.
    #[error("it broke before it answered: {0}")]
    Broken(Arc<io::Error>),
    /// 401: policy at the other side.
    #[error("denied{}", Because(.reason))]
    Denied {
        /// In the other side's words.
        reason: Option<Box<str>>,
    },
    /// 400: the other side does not serve what it was asked for.
    #[error("the request was refused as wrong{}", Because(.reason))]
    Bad {
        /// In the other side's words.
        reason: Option<Box<str>>,
    },
    /// 503: the other side could not connect to the destination.
    #[error("the destination could not be connected to from there{}", Because(.reason))]
    Unreachable {
        /// In the other side's words.
        reason: Option<Box<str>>,
    },
    /// Any other status.
    #[error("answered {status}{}", Because(.reason))]
    Status {
        /// The status.
        status: StatusCode,
        /// In the other side's words.
        reason: Option<Box<str>>,
    },
    /// The request cannot be expressed.
    #[error("{0:?} is no authority")]
    Authority(Box<str>),
    /// No more tunnels may be opened.
    #[error("there are {0} tunnels already (setting {1})")]
    Overflow(usize, &'static str),
}

/// What took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// TCP.
    Connect,
    /// TLS and HTTP/2.
    Handshake,
    /// The answer to CONNECT.
    Answer,
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Connect => "connecting",
            Self::Handshake => "the TLS handshake",
            Self::Answer => "the answer",
        })
    }
}

impl TunnelFailure {
    /// The kind of end, for reports.
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::Tls(_) => ResponseFlag::TlsFailure,
            Self::Denied { .. } => ResponseFlag::Denied,
            Self::Overflow(..) => ResponseFlag::Overflow,
            Self::Bad { .. } | Self::Authority(_) => ResponseFlag::NoRoute,
            Self::Connect(error) if ConnectFailure::from(&**error) == ConnectFailure::Exhausted => {
                ResponseFlag::Overflow
            }
            Self::Connect(_)
            | Self::Timeout(_)
            | Self::Broken(_)
            | Self::Unreachable { .. }
            | Self::Status { .. } => ResponseFlag::UpstreamConnectionFailure,
        }
    }

    /// What it says about the endpoint; nothing where it was policy, or a limit of ours.
    pub fn connect_failure(&self) -> Option<ConnectFailure> {
        match self {
            Self::Connect(error) => Some(ConnectFailure::from(&**error)),
            Self::Timeout(_) => Some(ConnectFailure::TimedOut),
            Self::Unreachable { .. } => Some(ConnectFailure::Unreachable),
            Self::Tls(_) | Self::Broken(_) | Self::Status { .. } => Some(ConnectFailure::Other),
            Self::Denied { .. } | Self::Bad { .. } | Self::Authority(_) | Self::Overflow(..) => None,
        }
    }

    /// What an answer means that is no success.
    pub(super) fn from_answer(status: StatusCode, reason: Option<String>) -> Self {
        let reason = reason.map(String::into_boxed_str);
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Self::Denied { reason },
            StatusCode::BAD_REQUEST => Self::Bad { reason },
            StatusCode::SERVICE_UNAVAILABLE => Self::Unreachable { reason },
            status => Self::Status { status, reason },
        }
    }
}

impl TunnelError {
    /// The kind of end, for reports.
    pub fn flag(&self) -> ResponseFlag {
        self.cause.flag()
    }
}

/// Expected identities, in a sentence.
struct Names<'a>(&'a [Identity]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, identity) in self.0.iter().enumerate() {
            let or = if position > 0 { " or " } else { "" };
            write!(out, "{or}{identity}")?;
        }
        Ok(())
    }
}

/// A reason, if one was given.
struct Because<'a>(&'a Option<Box<str>>);

impl fmt::Display for Because<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |reason| write!(out, ": {reason}"))
    }
}
