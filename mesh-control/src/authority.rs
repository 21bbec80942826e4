//! The certificate authority of the mesh: what Istio calls Citadel.
//!
//! ```text
//! source ──Found──▶ Signer ┐
//! token file, TokenReview ─┼─▶ CertificateService ──gRPC──▶ agents
//! source of pods ▶ Workloads┘
//! ```
//!
//! An agent proves which node it speaks for ([`agents`]), asks for the identity of one of the pods there and gets a
//! certificate for it if [`workloads`] knows such a pod on that node right now. What signs comes from a [`source`];
//! all of it is looked at again every second, and what cannot be used leaves the last good state in place.

mod agents;
mod certificates;
pub(crate) mod clock;
mod command;
mod generations;
mod metrics;
mod pem;
mod pool;
mod request;
mod service;
mod serving;
mod settings;
mod signer;
mod source;
mod status;
mod workloads;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::metrics::Metrics;
use agents::{Agents, TokenFile, TokenReviews};
pub use clock::Clock;
pub(crate) use clock::{rfc3339, unix};
pub use command::AuthorityCommand;
pub use generations::{Lifetimes, Phase};
pub(crate) use metrics::AuthorityMetrics;
pub use pem::CertificateFacts;
use pool::Pool;
pub(crate) use service::CertificateService;
pub(crate) use serving::ServingCertificate;
pub(crate) use settings::namespaced;
pub use settings::{AuthorityArgs, AuthoritySettings, MaterialArgs, MaterialSettings, ReviewSettings};
use signer::{MaterialError, Signer};
use source::{Change, Directory, Files, Found, Plan, Secret, Source, SourceError};
pub use status::AuthorityStatus;
pub(crate) use workloads::{Workloads, WorkloadsWriter};

/// Time between looks at files and directories.
const LOOK_AT_FILES: Duration = Duration::from_secs(1);
/// Time between looks at a secret, which is a request to the API server.
const LOOK_AT_SECRET: Duration = Duration::from_secs(10);
/// Everybody may know the roots.
const PUBLIC: u32 = 0o644;

/// The world around an authority, which tests replace.
#[derive(Clone)]
pub struct Environment {
    /// Tells the time.
    pub clock: Clock,
    /// The Kubernetes API; without it, the one of the pod or of the user's configuration.
    pub kubernetes: Option<Client>,
}

impl Default for Environment {
    fn default() -> Self {
        Self { clock: Clock::system(), kubernetes: None }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Environment")
    }
}

impl Environment {
    /// A client of the Kubernetes API.
    pub(crate) async fn kubernetes(&self) -> Result<Client, kube::Error> {
        match &self.kubernetes {
            Some(client) => Ok(client.clone()),
            None => {
                let mut config = kube::Config::infer().await.map_err(kube::Error::InferConfig)?;
                // Whoever asks knows how long to wait. The client itself would sleep for minutes over an API server
                // that is away, and say nothing.
                config.default_retry = false;
                Client::try_from(config)
            }
        }
    }
}

/// What signs now.
struct Current {
    signer: Arc<Signer>,
    found: Found,
}

/// Why there is no newer state than the one that is used.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Problems {
    material: Option<String>,
    tokens: Option<String>,
    root_file: Option<String>,
    serving: Option<String>,
}

/// Keys and certificates cannot be used.
#[derive(Debug, thiserror::Error)]
enum RefreshError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Material(#[from] MaterialError),
}

/// The authority.
pub(crate) struct Authority {
    source: Source,
    plan: Arc<Plan>,
    root_file: Option<PathBuf>,
    agents: Agents,
    workloads: Arc<Workloads>,
    serving: Vec<Arc<ServingCertificate>>,
    roots: watch::Sender<Arc<str>>,
    current: ArcSwapOption<Current>,
    problems: ArcSwap<Problems>,
    pool: Pool,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Authority").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Authority {
    /// An authority that has not looked at anything yet. The certificates in `serving` are kept valid with it.
    pub(crate) async fn new(
        settings: AuthoritySettings,
        trust_domain: &str,
        serving: Vec<Arc<ServingCertificate>>,
        environment: Environment,
        metrics: Arc<Metrics>,
    ) -> Result<Self, kube::Error> {
        let source = match &settings.material {
            MaterialSettings::Directory(path) => Source::Directory(Directory::new(path.clone())),
            MaterialSettings::Files(path) => Source::Files(Files::new(path.clone())),
            MaterialSettings::Secret(name) => {
                Source::Secret(Secret::new(environment.kubernetes().await?, name))
            }
        };
        let mut agents = Agents { tokens: settings.tokens.map(TokenFile::new), reviews: None };
        if let Some(reviews) = settings.reviews {
            let client = environment.kubernetes().await?;
            agents.reviews = Some(TokenReviews::new(client, &reviews.audience, reviews.accounts));
        }
        Ok(Self {
            source,
            plan: Arc::new(Plan { trust_domain: trust_domain.to_owned(), lifetimes: settings.lifetimes }),
            root_file: settings.root_file,
            agents,
            workloads: Arc::new(Workloads::new(trust_domain)),
            serving,
            roots: watch::Sender::default(),
            current: ArcSwapOption::default(),
            problems: ArcSwap::default(),
            pool: Pool::default(),
            clock: environment.clock,
            metrics,
        })
    }

    /// The roots to trust, PEM, now and later; empty until there are some.
    pub(crate) fn roots(&self) -> watch::Receiver<Arc<str>> {
        self.roots.subscribe()
    }

    /// The identities of each node, to be kept up to date.
    pub(crate) fn workloads(&self) -> WorkloadsWriter {
        WorkloadsWriter::new(Arc::clone(&self.workloads))
    }

    /// Looks at everything again and again until `stop`.
    pub(crate) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let pause = match self.source {
            Source::Directory(_) | Source::Files(_) => LOOK_AT_FILES,
            Source::Secret(_) => LOOK_AT_SECRET,
        };
        let mut material_due = tokio::time::Instant::now() + pause;
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_AT_FILES)).await.is_some() {
            if tokio::time::Instant::now() >= material_due {
                self.refresh_material().await;
                material_due = tokio::time::Instant::now() + pause;
            }
            self.refresh_rest().await;
        }
    }

    /// Looks at everything once.
    pub(crate) async fn refresh(self: &Arc<Self>) {
        self.refresh_material().await;
        self.refresh_rest().await;
    }

    async fn refresh_material(&self) {
        let now = self.clock.now();
        let refreshed = self.source.change(Change::Due(Arc::clone(&self.plan)), now).await;
        let problem = refreshed.map_err(RefreshError::from).and_then(|found| self.adopt(found, now)).err();
        let problem = problem.map(|error| error.to_string());
        self.note("material", problem, |problems| &mut problems.material);
    }

    fn adopt(&self, found: Found, now: SystemTime) -> Result<(), RefreshError> {
        if self.current.load().as_ref().is_some_and(|current| current.found == found) {
            return Ok(());
        }
        let signer = Arc::new(Signer::new(&found.material, now)?);
        let phase = found.generations.as_ref().map(|state| state.phase());
        info!(
            issuer = signer.certificate().subject,
            expires = rfc3339(signer.certificate().not_after),
            roots = signer.roots().len(),
            rotation = phase.map(|phase| phase.name()),
            "the certificate authority signs"
        );
        self.metrics.authority.set_signer(&signer, phase);
        self.roots.send_if_modified(|roots| {
            let changed = **roots != *signer.bundle();
            if changed {
                *roots = signer.bundle().into();
            }
            changed
        });
        self.current.store(Some(Arc::new(Current { signer, found })));
        Ok(())
    }

    /// Everything that is a file or takes a moment of computation.
    async fn refresh_rest(self: &Arc<Self>) {
        let authority = Arc::clone(self);
        let refreshed = tokio::task::spawn_blocking(move || {
            authority.refresh_tokens();
            if let Some(current) = authority.current.load_full() {
                authority.refresh_root_file(&current.signer);
                authority.refresh_serving(&current.signer);
            }
        });
        if let Err(error) = refreshed.await {
            error!(%error, "the certificate authority could not look at its files");
        }
    }

    fn refresh_tokens(&self) {
        if let Some(tokens) = &self.agents.tokens {
            let problem = tokens.reload().err();
            self.metrics.authority.set_tokens(tokens.len());
            self.note("tokens", problem, |problems| &mut problems.tokens);
        }
    }

    fn refresh_root_file(&self, signer: &Signer) {
        let Some(path) = &self.root_file else { return };
        let bundle = signer.bundle().as_bytes();
        if std::fs::read(path).is_ok_and(|content| content == bundle) {
            return self.note("root_file", None, |problems| &mut problems.root_file);
        }
        let problem = source::write_file(path, bundle, PUBLIC).err();
        let problem = problem.map(|error| format!("{} cannot be written: {error}", path.display()));
        self.note("root_file", problem, |problems| &mut problems.root_file);
    }

    fn refresh_serving(&self, signer: &Signer) {
        let (lifetime, now) = (self.plan.lifetimes.leaf, self.clock.now());
        let problem = self.serving.iter().find_map(|serving| serving.renew(signer, lifetime, now).err());
        let problem = problem.map(|error| format!("the server's own certificate: {error}"));
        self.note("serving", problem, |problems| &mut problems.serving);
    }

    /// Notes a problem or its end, and says so when it is news.
    fn note(
        &self,
        about: &'static str,
        problem: Option<String>,
        of: impl FnOnce(&mut Problems) -> &mut Option<String>,
    ) {
        self.metrics.authority.set_problem(about, problem.is_some());
        let mut problems = Problems::clone(&self.problems.load());
        let noted = of(&mut problems);
        if *noted == problem {
            return;
        }
        match &problem {
            Some(problem) => error!(about, problem, "the certificate authority goes on with what it had"),
            None => info!(about, "the certificate authority has no such problem any more"),
        }
        *noted = problem;
        self.problems.store(Arc::new(problems));
    }
}
