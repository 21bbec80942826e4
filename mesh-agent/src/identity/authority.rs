//! Who signs certificates: the mesh's authority, over gRPC.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Uri;
use mesh_xds::identity::Identity;
use mesh_xds::proto::auth::IstioCertificateRequest;
use mesh_xds::proto::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_xds::transport::{AddressError, ConnectError, Transport, describe};
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request};

/// Signs certificates.
pub trait Authority: Send + Sync + 'static {
    /// Has a request (PEM) signed for an identity: PEM certificates, the leaf first and the roots last.
    fn sign(
        &self,
        identity: &Identity,
        csr: &str,
    ) -> impl Future<Output = Result<Vec<String>, AuthorityError>> + Send;
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The authority is not there.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It does not answer.
    #[error("the authority did not answer within {0:?}")]
    NoAnswer(Duration),
    /// It said no, or broke off.
    #[error("{}", describe(.0))]
    Status(Box<tonic::Status>),
}

impl AuthorityError {
    /// Whether other identities could fare better: the authority works, but not for this one.
    pub fn is_about_identity(&self) -> bool {
        let Self::Status(status) = self else { return false };
        matches!(
            status.code(),
            Code::PermissionDenied
                | Code::InvalidArgument
                | Code::FailedPrecondition
                | Code::NotFound
                | Code::OutOfRange
        )
    }

    /// Whether another server is worth a try at once.
    fn is_about_server(&self) -> bool {
        match self {
            Self::Connect(_) | Self::NoAnswer(_) => true,
            Self::Status(status) => matches!(status.code(), Code::Unavailable | Code::Unknown),
        }
    }
}

/// The authority of the mesh: `istio.v1.auth.IstioCertificateService` of mesh-control or of an istiod.
pub struct AuthorityClient {
    servers: Vec<Uri>,
    transport: Transport,
    lifetime: Duration,
    answer_timeout: Duration,
    connection: ArcSwap<Connection>,
}

/// The server in use. Many requests wait for one connection to it.
struct Connection {
    server: usize,
    channel: OnceCell<Channel>,
}

impl Connection {
    fn to(server: usize) -> Arc<Self> {
        Arc::new(Self { server, channel: OnceCell::new() })
    }
}

impl AuthorityClient {
    /// A client of these servers, which are tried in turn; certificates are asked for with this lifetime.
    ///
    /// # Errors
    /// When there is no server, or one cannot be used.
    pub fn new(
        servers: &[String],
        transport: Transport,
        lifetime: Duration,
        answer_timeout: Duration,
    ) -> Result<Self, AddressError> {
        let servers = transport.addresses(servers)?;
        let connection = ArcSwap::new(Connection::to(0));
        Ok(Self { servers, transport, lifetime, answer_timeout, connection })
    }

    async fn ask(
        &self,
        connection: &Connection,
        identity: &Identity,
        csr: &str,
    ) -> Result<Vec<String>, AuthorityError> {
        let server = self.servers.get(connection.server).or_else(|| self.servers.first());
        let Some(server) = server else { return Err(AuthorityError::NoAnswer(Duration::ZERO)) };
        let connect = || self.transport.connect(server);
        let channel = connection.channel.get_or_try_init(connect).await?.clone();
        let message = IstioCertificateRequest::on_behalf_of(identity, csr.to_owned(), self.lifetime);
        let mut request = Request::new(message);
        if let Some(token) = self.transport.bearer_token().await? {
            request.metadata_mut().insert("authorization", token);
        }
        let mut client = IstioCertificateServiceClient::new(channel);
        match timeout(self.answer_timeout, client.create_certificate(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner().cert_chain),
            Ok(Err(status)) => Err(AuthorityError::Status(Box::new(status))),
            Err(_) => Err(AuthorityError::NoAnswer(self.answer_timeout)),
        }
    }

    /// Turns to the next server, unless another request has done so already.
    fn turn_from(&self, failed: &Arc<Connection>) {
        let next = Connection::to((failed.server + 1) % self.servers.len().max(1));
        self.connection.compare_and_swap(failed, next);
    }
}

impl Authority for AuthorityClient {
    async fn sign(&self, identity: &Identity, csr: &str) -> Result<Vec<String>, AuthorityError> {
        let mut tries_left = self.servers.len();
        loop {
            let connection = self.connection.load_full();
            tries_left = tries_left.saturating_sub(1);
            match self.ask(&connection, identity, csr).await {
                Err(error) if error.is_about_server() => {
                    self.turn_from(&connection);
                    if tries_left == 0 {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }
}
