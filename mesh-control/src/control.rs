//! The control server as a whole: what [`crate`] draws, wired.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use futures::FutureExt;
use mesh_xds::proto::Name;
use mesh_xds::proto::security::Authorization;
use mesh_xds::proto::workload::Address;
use mesh_xds::server::{DiscoveryServer, ResourceStore, ServerConfig, StoredResource, Transaction};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::admission::Admission;
use crate::authority::{Authority, CertificateService, Environment, ServingCertificate, WorkloadsWriter};
use crate::memory;
use crate::metrics::Metrics;
use crate::serve::grpc::Endpoint;
use crate::serve::http;
use crate::settings::{ServerCertificate, Settings, SourceSettings};
use crate::source::{self, Batch};
use crate::status::{Content, InKubernetes, Status};
use crate::translate::{Output, OutputType, Translator};
use crate::writers::Writers;

/// Batches a source may be ahead of translation.
const BATCH_QUEUE: usize = 16;
/// Time for streams and requests to end after the server was told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be had.
    #[error("cannot listen at {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A certificate or key cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A listening socket failed.
    #[error("listening failed: {0}")]
    Socket(io::Error),
    /// The gRPC server failed.
    #[error("the gRPC server failed: {0}")]
    Grpc(tonic::transport::Error),
    /// A certificate and its key cannot serve.
    #[error("{} cannot be used with its key: {reason}", path.display())]
    Tls {
        /// The certificate.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// There is no Kubernetes API to ask.
    #[error(
        "there is no Kubernetes API to use, which --kubernetes, --ca-secret, --agent-token-review and --leader-lease take: \
         run in a pod with a service account, or set KUBECONFIG: {0}"
    )]
    Kubernetes(kube::Error),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// A running control server.
#[derive(Debug)]
pub struct Control {
    /// Where agents are served in plain text.
    pub grpc_address: SocketAddr,
    /// Where agents are served over TLS.
    pub tls_address: Option<SocketAddr>,
    /// Where health, metrics and status are.
    pub http_address: SocketAddr,
    /// Where the API server asks about policies.
    pub webhook_address: Option<SocketAddr>,
    status: Arc<Status>,
    discovery: DiscoveryServer,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), StartError>>,
}

impl Control {
    /// Starts everything. Agents are refused until all resources were read once: being told that there is nothing
    /// would make them forget what they know.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        Self::start_in(settings, Environment::default()).await
    }

    /// The same, in a world that tests make.
    pub async fn start_in(settings: Settings, environment: Environment) -> Result<Self, StartError> {
        let metrics = Arc::new(Metrics::default());
        let store = ResourceStore::new();
        let config = ServerConfig {
            identifier: format!("mesh-control {}", env!("CARGO_PKG_VERSION")),
            max_clients: settings.max_connections,
            // Workloads name policies; one that an agent does not hold would deny their traffic.
            order: vec![Authorization::type_url().into(), Address::type_url().into()],
            observer: Some(metrics.clone()),
            ..ServerConfig::default()
        };
        let discovery = DiscoveryServer::new(store.clone(), config);
        let serving = settings.tls.as_ref().and_then(|tls| match &tls.certificate {
            ServerCertificate::Issued(names) => Some(Arc::new(ServingCertificate::new(names.clone()))),
            ServerCertificate::Files { .. } => None,
        });
        let root_namespace = settings.mesh.root_namespace.clone();
        let admission = settings
            .admission
            .map(|admission| Arc::new(Admission::new(admission, &root_namespace, Arc::clone(&metrics))));
        let client = match &settings.leader {
            Some(_) => Some(environment.kubernetes().await.map_err(StartError::Kubernetes)?),
            None => None,
        };
        let mut plain_service = CertificateService::NotConfigured;
        let mut tls_service = CertificateService::NotConfigured;
        let mut authority = None;
        let kubernetes = match &settings.source {
            SourceSettings::Kubernetes => {
                Some(environment.kubernetes().await.map_err(StartError::Kubernetes)?)
            }
            SourceSettings::Manifests(_) => None,
        };
        if let Some(of_authority) = settings.authority {
            let plaintext = of_authority.plaintext;
            let made = Authority::new(
                of_authority,
                &settings.mesh.trust_domain,
                serving
                    .iter()
                    .cloned()
                    .chain(admission.as_ref().map(|admission| admission.certificate()))
                    .collect(),
                environment,
                Arc::clone(&metrics),
            );
            let made = Arc::new(made.await.map_err(StartError::Kubernetes)?);
            made.refresh().await;
            tls_service = CertificateService::Open(Arc::clone(&made));
            plain_service = if plaintext { tls_service.clone() } else { CertificateService::OverTlsOnly };
            authority = Some(made);
        }
        let workloads = authority.as_ref().map(|authority| authority.workloads());
        let writers = settings.leader.zip(client).map(|(leader, client)| {
            Writers::new(leader, client, &root_namespace, admission.as_ref(), authority.as_ref(), &metrics)
        });
        let in_kubernetes = InKubernetes {
            admission: admission.clone(),
            leader: writers.as_ref().map(Writers::leader),
            conditions: writers.as_ref().and_then(Writers::conditions),
        };
        let (metrics_of_status, discovery_of_status) = (Arc::clone(&metrics), discovery.clone());
        let status = Status::new(metrics_of_status, discovery_of_status, authority.clone(), in_kubernetes);
        let status = Arc::new(status);

        let mut endpoints = vec![Endpoint::plain(settings.grpc_address, plain_service)?];
        if let Some(tls) = &settings.tls {
            endpoints.push(Endpoint::tls(tls, serving, tls_service)?);
        }
        let mut addresses =
            endpoints.iter().map(Endpoint::address).collect::<Result<Vec<_>, _>>()?.into_iter();
        let grpc_address = addresses.next().unwrap_or(settings.grpc_address);
        let tls_address = addresses.next();
        let bind_error = |source| StartError::Bind { address: settings.http_address, source };
        let listener = TcpListener::bind(settings.http_address).await.map_err(bind_error)?;
        let http_address = listener.local_addr().map_err(StartError::Socket)?;
        let webhook = match &admission {
            Some(admission) => Some((Arc::clone(admission), admission.listen().await?)),
            None => None,
        };
        let webhook_address = webhook.as_ref().map(|(_, listener)| listener.local_addr()).transpose();
        let webhook_address = webhook_address.map_err(StartError::Socket)?;

        let (batches, received) = mpsc::channel(BATCH_QUEUE);
        let (complete, completed) = oneshot::channel();
        let worker = Worker {
            translator: Translator::new(settings.mesh),
            workloads,
            store,
            metrics: Arc::clone(&metrics),
            status: Arc::clone(&status),
            complete: Some(complete),
        };
        thread::Builder::new()
            .name("translate".to_owned())
            .spawn(move || worker.run(received))
            .map_err(StartError::Thread)?;

        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        if let SourceSettings::Manifests(directories) = settings.source {
            source::files::watch(directories, batches).map_err(StartError::Thread)?;
        } else if let Some(client) = kubernetes {
            let (metrics, stop) = (metrics.watches.clone(), stop.clone());
            tasks.spawn(async move {
                source::kubernetes::watch(client, &root_namespace, batches, metrics, stop).await;
                Ok(())
            });
        }
        tasks.spawn(http::serve(listener, Arc::clone(&status), stop.clone()));
        let serve = Agents {
            endpoints,
            discovery: discovery.clone(),
            places: settings.max_connections,
            status: Arc::clone(&status),
            stop: stop.clone(),
        };
        tasks.spawn(serve.run(completed));
        if let Some(authority) = authority {
            tasks.spawn(authority.keep(stop.clone()).map(Ok));
        }
        if let Some((admission, listener)) = webhook {
            tasks.spawn(admission.serve(listener, stop.clone()));
        }
        if let Some(writers) = writers {
            tasks.spawn(writers.run(stop.clone()).map(Ok));
        }
        info!(%grpc_address, ?tls_address, %http_address, ?webhook_address, "started");
        Ok(Self { grpc_address, tls_address, http_address, webhook_address, status, discovery, stop, tasks })
    }

    /// Runs until something fails, which it should not.
    pub async fn failed(&mut self) -> StartError {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Err(error))) => return error,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Ends all streams, so that agents go to another server, and stops.
    pub async fn stop(mut self) {
        self.status.set_ready(false);
        self.stop.cancel();
        self.discovery.shutdown();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
            info!("some connections did not end in {STOP_TIMEOUT:?} and are cut");
        }
    }
}

/// Serves agents, once there is something to serve.
struct Agents {
    endpoints: Vec<Endpoint>,
    discovery: DiscoveryServer,
    places: usize,
    status: Arc<Status>,
    stop: CancellationToken,
}

impl Agents {
    async fn run(self, completed: oneshot::Receiver<()>) -> Result<(), StartError> {
        let read = self.stop.run_until_cancelled(completed).await;
        if !matches!(read, Some(Ok(()))) {
            return Ok(());
        }
        let places = Arc::new(Semaphore::new(self.places));
        let servers = self
            .endpoints
            .into_iter()
            .map(|endpoint| endpoint.serve(self.discovery.clone(), Arc::clone(&places), self.stop.clone()));
        self.status.set_ready(true);
        info!("ready: agents are served");
        futures::future::try_join_all(servers).await.map(drop)
    }
}

/// Works batches in, on a thread of its own: translating a large batch takes a while.
struct Worker {
    translator: Translator,
    workloads: Option<WorkloadsWriter>,
    store: ResourceStore,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    complete: Option<oneshot::Sender<()>>,
}

impl Worker {
    fn run(mut self, mut batches: mpsc::Receiver<Batch>) {
        while let Some(batch) = batches.blocking_recv() {
            self.work_in(batch);
        }
        error!("the source ended: what is served stays as it is");
    }

    fn work_in(&mut self, batch: Batch) {
        let began = Instant::now();
        let changes = batch.changes.len();
        if let Some(workloads) = &mut self.workloads {
            workloads.apply(&batch.changes);
        }
        let delta = self.translator.apply(batch.changes);
        let mut transaction = Transaction::new();
        for resource in delta.upserts {
            transaction.upsert(&type_url(resource.name.of), stored(&resource));
        }
        for name in &delta.removals {
            transaction.remove(&type_url(name.of), &*name.name);
        }
        self.metrics.translated(changes, began.elapsed());
        let applied = self.store.update_noting(transaction, |applied| {
            self.metrics.published(applied.version, batch.noticed);
        });
        if applied.upserted + applied.removed > 0 {
            info!(
                upserted = applied.upserted,
                removed = applied.removed,
                version = applied.version,
                took = ?began.elapsed(),
                "resources changed"
            );
        }
        self.report(&batch.report, applied.version);
        if batch.report.unread.is_empty()
            && let Some(complete) = self.complete.take()
        {
            let _ = complete.send(());
        }
        if changes >= memory::MANY {
            memory::give_back();
        }
    }

    fn report(&self, report: &Arc<source::Report>, version: u64) {
        let served = self.translator.served();
        let resources = self.translator.inputs().map(|(kind, count)| (kind.name(), count)).collect();
        for (kind, count) in self.translator.inputs() {
            self.metrics.set_input(kind.name(), count);
        }
        self.metrics.set_output("Workload", served.workloads);
        self.metrics.set_output("Service", served.services);
        self.metrics.set_output("Authorization", served.authorizations);
        self.metrics.reported(report);
        self.status.set_content(Content { report: Arc::clone(report), resources, served, version });
    }
}

fn type_url(of: OutputType) -> String {
    match of {
        OutputType::Authorization => Authorization::type_url(),
        OutputType::Address => Address::type_url(),
    }
}

fn stored(resource: &Output) -> StoredResource {
    let aliases = resource.aliases.iter().map(String::as_str);
    StoredResource::with_aliases(&resource.name.name, aliases, resource.body())
}
