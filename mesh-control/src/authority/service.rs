//! `istio.v1.auth.IstioCertificateService`: requests of agents, from the token to the certificate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_xds::identity::{Identity, InvalidIdentity};
use mesh_xds::proto::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use mesh_xds::proto::auth::{IstioCertificateRequest, IstioCertificateResponse};
use prost_types::value::Kind;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};
use tracing::{info, warn};

use super::Authority;
use super::agents::{Agent, AgentError};
use super::certificates::Subject;
use super::clock::rfc3339;
use super::pool::Busy;
use super::request::{self, RequestError};
use super::signer::{SignError, Signed};
use super::workloads::NotAllowed;

/// The field that names the identity, as ztunnel sends it.
const IDENTITY: &str = "ImpersonatedIdentity";
/// Requests are a key and a name.
const MAX_REQUEST_BYTES: usize = 64 << 10;
/// Nobody has use for a shorter life, unless the longest one that is allowed is shorter still.
const MIN_LIFETIME: Duration = Duration::from_secs(60);

/// The service at one address.
#[derive(Debug, Clone)]
pub(crate) enum CertificateService {
    /// Signs.
    Open(Arc<Authority>),
    /// Tells what has to be set for it to sign.
    NotConfigured,
    /// Tells to come over TLS.
    OverTlsOnly,
}

/// Why a certificate is not issued.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Agent(#[from] AgentError),
    #[error("the request names no identity: put a SPIFFE ID into the metadata field {IDENTITY}")]
    NoIdentity,
    #[error("metadata field {IDENTITY}: {0}")]
    Identity(#[from] InvalidIdentity),
    #[error("{0}")]
    NotAllowed(NotAllowed),
    #[error("{0}")]
    Request(#[from] RequestError),
    #[error("{0}")]
    Busy(#[from] Busy),
    #[error("there is nothing to sign with: {0}")]
    NothingSigns(String),
    #[error("{0}")]
    Sign(#[from] SignError),
}

impl Refusal {
    /// The label of metrics, and what the agent is told.
    fn kind(&self) -> (&'static str, Code) {
        match self {
            Self::Agent(AgentError::Unavailable(_)) => ("unavailable", Code::Unavailable),
            Self::Agent(_) => ("unauthenticated", Code::Unauthenticated),
            Self::NotAllowed(_) => ("not_allowed", Code::PermissionDenied),
            Self::NoIdentity | Self::Identity(_) | Self::Request(_) => ("bad_request", Code::InvalidArgument),
            Self::Busy(_) => ("busy", Code::ResourceExhausted),
            Self::NothingSigns(_) | Self::Sign(SignError::Expired { .. }) => {
                ("unavailable", Code::Unavailable)
            }
            Self::Sign(SignError::Failed(_)) => ("failed", Code::Internal),
        }
    }
}

impl CertificateService {
    pub(crate) fn server(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES)
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let authority = match self {
            Self::Open(authority) => authority,
            Self::NotConfigured => {
                return Err(Status::unimplemented(
                    "this server signs no certificates: set --ca-dir, --ca-files or --ca-secret",
                ));
            }
            Self::OverTlsOnly => {
                return Err(Status::failed_precondition(
                    "certificates are issued over TLS only, or anybody on the way could read the token: use the TLS port, \
                     or set --ca-plaintext in a lab",
                ));
            }
        };
        let (metadata, _, request) = request.into_parts();
        authority.answer(&metadata, request).await.map(Response::new)
    }
}

impl Authority {
    async fn answer(
        &self,
        metadata: &MetadataMap,
        request: IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, Status> {
        let began = Instant::now();
        let mut agent = None;
        match self.issue(metadata, request, &mut agent).await {
            Ok(cert_chain) => {
                self.metrics.authority.issued(began.elapsed());
                Ok(IstioCertificateResponse { cert_chain })
            }
            Err(refusal) => {
                let (reason, code) = refusal.kind();
                self.metrics.authority.refused(reason);
                let node = agent.as_ref().map(|agent: &Agent| &*agent.node);
                warn!(node, reason, "no certificate: {refusal}");
                Err(Status::new(code, refusal.to_string()))
            }
        }
    }

    /// Whether and what: authenticate, authorize, sign. `who` is filled in once it is known, for the log.
    async fn issue(
        &self,
        metadata: &MetadataMap,
        request: IstioCertificateRequest,
        who: &mut Option<Agent>,
    ) -> Result<Vec<String>, Refusal> {
        // authenticate
        let agent = self.agents.authenticate(metadata, self.clock.now()).await?;
        let agent = &*who.insert(agent);

        // authorize
        let identity = requested_identity(&request)?;
        self.workloads.allow(&agent.node, &identity).await.map_err(Refusal::NotAllowed)?;

        // sign
        let current = self.current.load_full().ok_or_else(|| Refusal::NothingSigns(self.nothing_signs()))?;
        let lifetime = lifetime(request.validity_duration, self.plan.lifetimes.leaf);
        let clock = self.clock.clone();
        let work = move || -> Result<_, Refusal> {
            let key = request::key(&request.csr, &identity)?;
            let signed = current.signer.sign(&key, Subject::Workload(&identity), lifetime, clock.now())?;
            Ok((signed, identity, current.signer.bundle().to_owned()))
        };
        let (signed, identity, bundle) = self.pool.run(&agent.node, work).await??;
        let Signed { mut chain, serial, not_after } = signed;
        info!(
            node = &*agent.node,
            agent = &*agent.name,
            %identity,
            serial,
            expires = rfc3339(not_after),
            "certificate issued"
        );
        // As istiod does it: what is last is not part of the chain but all roots, as one text.
        chain.push(bundle);
        Ok(chain)
    }
}

fn requested_identity(request: &IstioCertificateRequest) -> Result<Identity, Refusal> {
    let metadata = request.metadata.as_ref().ok_or(Refusal::NoIdentity)?;
    match metadata.fields.get(IDENTITY).and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => Ok(text.parse::<Identity>()?),
        _ => Err(Refusal::NoIdentity),
    }
}

/// What was asked for, within limits; the longest life for who does not ask.
fn lifetime(seconds: i64, longest: Duration) -> Duration {
    match u64::try_from(seconds) {
        Ok(seconds) if seconds > 0 => Duration::from_secs(seconds).max(MIN_LIFETIME).min(longest),
        _ => longest,
    }
}
