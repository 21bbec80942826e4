//! Validation before it acts: a webhook that the API server asks before it takes a policy or an entry.
//!
//! ```text
//! kubectl apply ─▶ API server ──AdmissionReview──▶ [`review`]: judged by crate::model, as files and watches are
//!                      ▲ caBundle
//! roots of the authority ──▶ [`registration`], by the leader     certificate of the authority ──▶ TLS
//! ```
//!
//! Every replica answers, with a certificate that the mesh's own authority has issued to it and renews. The API server
//! verifies it by the authority's roots, of which there are two while one replaces the other: the new one is in the
//! caBundle long before anything is signed with it. No state is kept between requests.

mod registration;
mod review;
mod settings;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::post;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionReview};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::authority::{CertificateFacts, ServingCertificate};
use crate::control::StartError;
use crate::metrics::Metrics;
use crate::serve::https;
pub(crate) use registration::Registrar;
use registration::Registration;
pub(crate) use review::KINDS;
use review::{Outcome, judge};
pub use settings::{AdmissionArgs, AdmissionSettings, LeaderSettings};

/// Where the API server asks.
pub(crate) const PATH: &str = "/validate";
/// A review holds an object twice, and the API server takes none of more than 3 MiB.
const MAX_REVIEW: usize = 7 * 1024 * 1024;
/// Reviews that are read and judged at the same time, since each may be large. More wait.
const REVIEWS: usize = 16;
/// Time for a review to come, to wait and to be judged. The API server waits for 10 s at most unless it is told otherwise.
const PATIENCE: Duration = Duration::from_secs(10);

/// The webhook.
#[derive(Debug)]
pub(crate) struct Admission {
    settings: AdmissionSettings,
    root_namespace: String,
    certificate: Arc<ServingCertificate>,
    registration: ArcSwap<Registration>,
    places: Semaphore,
    metrics: Arc<Metrics>,
}

/// A request was not answered with a verdict.
#[derive(Debug, thiserror::Error)]
enum ReviewError {
    #[error("the review could not be received: {0}; at most {MAX_REVIEW} bytes are taken")]
    Body(axum::Error),
    #[error("expected an AdmissionReview of admission.k8s.io/v1: {0}")]
    NotAReview(String),
    #[error("the review did not come, or was not judged, within {PATIENCE:?}")]
    Late,
    #[error("judging broke: {0}")]
    Broken(String),
}

impl ReviewError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Body(_) | Self::NotAReview(_) => StatusCode::BAD_REQUEST,
            Self::Late => StatusCode::SERVICE_UNAVAILABLE,
            Self::Broken(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// The webhook as it is shown.
#[derive(Debug, Clone, Serialize)]
pub struct AdmissionStatus {
    /// The ValidatingWebhookConfiguration that names it.
    pub configuration: String,
    /// The certificate it shows.
    pub certificate: Option<CertificateFacts>,
    /// What the leader made of its configuration.
    #[serde(flatten)]
    registration: Registration,
}

impl Admission {
    pub(crate) fn new(settings: AdmissionSettings, root_namespace: &str, metrics: Arc<Metrics>) -> Self {
        Self {
            certificate: Arc::new(ServingCertificate::new(settings.names.clone())),
            settings,
            root_namespace: root_namespace.to_owned(),
            registration: ArcSwap::default(),
            places: Semaphore::new(REVIEWS),
            metrics,
        }
    }

    /// What it shows, which the authority keeps valid.
    pub(crate) fn certificate(&self) -> Arc<ServingCertificate> {
        Arc::clone(&self.certificate)
    }

    /// How it is.
    pub(crate) fn status(&self) -> AdmissionStatus {
        AdmissionStatus {
            configuration: self.settings.configuration.clone(),
            certificate: self.certificate.facts(),
            registration: Registration::clone(&self.registration.load()),
        }
    }

    /// Binds the address that the settings name.
    pub(crate) async fn listen(&self) -> Result<TcpListener, StartError> {
        let address = self.settings.address;
        TcpListener::bind(address).await.map_err(|source| StartError::Bind { address, source })
    }

    /// Answers until `stop`.
    pub(crate) async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> Result<(), StartError> {
        info!(
            configuration = self.settings.configuration,
            "policies are judged before the API server takes them"
        );
        let certificate = self.certificate();
        https::serve(listener, certificate, self.routes(), stop).await
    }

    fn routes(self: Arc<Self>) -> Router {
        Router::new().route(PATH, post(validate)).with_state(self)
    }

    async fn review(self: Arc<Self>, body: Body) -> Result<AdmissionReview<DynamicObject>, ReviewError> {
        let broken = |error: &dyn std::fmt::Display| ReviewError::Broken(error.to_string());
        let place = self.places.acquire().await.map_err(|error| broken(&error))?;
        let body = axum::body::to_bytes(body, MAX_REVIEW).await.map_err(ReviewError::Body)?;
        let admission = Arc::clone(&self);
        // A large object takes a while to read, and others are being answered.
        let judged = tokio::task::spawn_blocking(move || Ok(admission.answer(&read(&body)?)));
        let judged = judged.await.map_err(|error| broken(&error))?;
        drop(place);
        judged
    }

    fn answer(&self, request: &AdmissionRequest<DynamicObject>) -> AdmissionReview<DynamicObject> {
        let verdict = judge(request, &self.root_namespace);
        self.metrics.judged(verdict.kind.map_or("other", |kind| kind.name()), verdict.outcome.name());
        if verdict.outcome == Outcome::Denied {
            let namespace = request.namespace.as_deref().unwrap_or_default();
            info!(
                kind = request.kind.kind,
                namespace,
                name = request.name,
                reason = verdict.message,
                "refused at the API server"
            );
        }
        verdict.into_response(request).into_review()
    }
}

async fn validate(State(admission): State<Arc<Admission>>, request: Request) -> Response {
    let review = timeout(PATIENCE, admission.review(request.into_body())).await;
    match review.unwrap_or(Err(ReviewError::Late)) {
        Ok(review) => Json(review).into_response(),
        Err(error) => {
            warn!(%error, "a request to the webhook got no verdict");
            (error.status(), format!("{error}\n")).into_response()
        }
    }
}

fn read(body: &[u8]) -> Result<AdmissionRequest<DynamicObject>, ReviewError> {
    let review: AdmissionReview<DynamicObject> =
        serde_json::from_slice(body).map_err(|error| ReviewError::NotAReview(error.to_string()))?;
    let (version, kind) = (&review.types.api_version, &review.types.kind);
    if version != "admission.k8s.io/v1" || kind != "AdmissionReview" {
        return Err(ReviewError::NotAReview(format!("found {kind} of {version}")));
    }
    review.try_into().map_err(|_| ReviewError::NotAReview("it has no request".to_owned()))
}
