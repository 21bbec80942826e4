//! What a connection through a tunnel is opened with.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::FORWARDED;
use http::{HeaderValue, Method, Request, Uri, Version};

use super::client::Ends;
use super::error::TunnelFailure;
use super::headers::{BAGGAGE, TRACE_PARENT, forwarded};
use crate::identity::Credentials;
use crate::proxy::decision::TunnelPath;

/// A connection that is to be opened through a tunnel.
pub struct TunnelRoute {
    /// In whose name.
    pub credentials: Arc<Credentials>,
    /// The address the tunnel's own connection comes from; none for the node's.
    pub source: Option<IpAddr>,
    /// Where it leads.
    pub path: Arc<TunnelPath>,
    /// Who opened the connection, for the other side's telemetry.
    pub client: SocketAddr,
    /// The service that the client asked for, for the same.
    pub service: Option<Arc<str>>,
    /// Who the client is, for the same: [`baggage`](super::baggage) of its workload.
    pub baggage: Option<HeaderValue>,
    /// The trace the connection belongs to.
    pub trace_parent: Option<HeaderValue>,
}

impl TunnelRoute {
    /// `trunks`: whether we would rather not speak HBONE. With gateways we do: the inner tunnel is a stream of it.
    pub(super) fn ends(&self, trunks: bool) -> Ends {
        Ends {
            trunk: trunks && self.path.inner.is_none(),
            credentials: Arc::clone(&self.credentials),
            source: self.source,
            gateway: self.path.gateway,
            expected: Arc::clone(&self.path.expected),
        }
    }

    /// Who opened the connection, and to which service.
    pub(super) fn forwarded(&self) -> HeaderValue {
        forwarded(self.client, self.service.as_deref())
    }

    pub(super) fn request(&self) -> Result<Request<()>, TunnelFailure> {
        let authority = &*self.path.authority;
        let wrong = || TunnelFailure::Authority(authority.into());
        let uri = Uri::builder().authority(authority).build().map_err(|_| wrong())?;
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(FORWARDED, self.forwarded());
        if let Some(baggage) = &self.baggage {
            headers.insert(BAGGAGE, baggage.clone());
        }
        if let Some(trace_parent) = &self.trace_parent {
            headers.insert(TRACE_PARENT, trace_parent.clone());
        }
        Ok(request)
    }
}
