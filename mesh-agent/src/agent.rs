//! The agent: what it consists of, in which order it starts, and how it ends.
//!
//! Pods are steered only when everything behind that is there: the configuration (from the control server, or the
//! last good one), the published pods and the listeners. Until then, and from the moment it is told to stop, new
//! connections pass the agent by or are dropped, as each pod's failure mode says.

mod inspect;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use mesh_common::Arrival;
use mesh_xds::transport::{TlsConfig, Transport};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admin::{self, AdminSocket, AdminState, AgentFacts};
use crate::config::cache::Cache;
use crate::config::client::{ConfigClient, ConfigState};
use crate::connect_time::{self, Balancer, ConnectTime};
use crate::enrolment::control::{self, ControlSource};
use crate::enrolment::device::NetlinkDevices;
use crate::enrolment::kubernetes::{KubernetesSettings, KubernetesSource};
use crate::enrolment::{DesiredPods, PodSource, PodStatuses, PodSteering, Reconciler};
use crate::identity::{self, IdentityManager, SystemClock};
use crate::kubelet::KubeletWatch;
use crate::kubernetes::{self, Cluster, Succession};
use crate::memory;
use crate::passage::{self, PassageInputs, Passages};
use crate::pods::{LocalPod, LocalPods};
use crate::proxy::{Listener, NodeSockets, Proxy, ProxyInputs, ProxySettings};
use crate::settings::{
    AccessLogFormat, DetachArgs, LogFormat, PodSourceKind, RunArgs, StateOnExit, Switch, TunnelMode,
};
use crate::steering::host::capabilities::{self, Privileged};
use crate::steering::host::instance::InstanceLock;
use crate::steering::host::namespace::AgentNamespace;
use crate::steering::host::{self, HostSettings, HostState, kernel};
use crate::steering::{CoreListeners, DeviceWatch, ListenerPair, Steering, SteeringError, SteeringSettings};
use crate::telemetry::logging::{self, LogControl};
use crate::telemetry::{self, AccessLogOptions, AccessLogTarget, Telemetry, TelemetryOptions};

/// Threads for everything but traffic. Two, so that one long task does not hold up the others.
const CONTROL_THREADS: usize = 2;

/// Runs the agent until it is told to stop.
///
/// # Errors
/// When the settings cannot work, the node cannot run an agent, or runs one already. Nothing has been changed then.
pub fn run(settings: RunArgs) -> Result<()> {
    settings.validate()?;
    let log_format = match settings.log_format {
        LogFormat::Text => logging::LogFormat::Text,
        LogFormat::Json => logging::LogFormat::Json,
    };
    let log = Arc::new(logging::init(&settings.log_level, log_format)?);
    raise_descriptor_limit();
    // Before there is a second thread: capabilities are a thread's own.
    let privileged = capabilities::restrict_process()?;
    control_runtime()?.block_on(serve(settings, log, privileged))
}

/// Removes every trace of an agent from the node.
///
/// # Errors
/// When an agent runs, unless forced, or something cannot be removed.
pub fn detach(settings: &DetachArgs) -> Result<()> {
    settings.node.validate()?;
    let pins = SteeringSettings::from(&settings.node).directory;
    let unload = || -> Result<_> { Ok(crate::steering::detach(&pins)?) };
    let host = HostSettings::from_args(&settings.node);
    let traces = control_runtime()?.block_on(host::detach::detach(&host, settings.force, unload))?;
    if traces.is_empty() {
        println!("nothing to remove");
    }
    for trace in traces {
        println!("removed: {trace}");
    }
    Ok(())
}

fn control_runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the control runtime")
}

/// A connection takes two descriptors; the soft limit of a login shell is often 1,024.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "cannot raise the limit of open files");
    }
}

async fn serve(settings: RunArgs, log: Arc<LogControl>, privileged: Privileged) -> Result<()> {
    // What the node must offer; nothing is changed before.
    let host = HostSettings::from_args(&settings.node);
    let instance = InstanceLock::acquire(&settings.node.run_dir)?;
    kernel::require(&kernel::check(&host, &settings.node.bpffs).await)?;
    create_directory(&settings.node.state_dir)?;

    let pins = SteeringSettings::from(&settings.node).directory;
    let first_here = !pins.exists();
    let state_dir = settings.node.state_dir.clone();
    let outcome = serve_pods(settings, log, privileged, host.clone()).await;
    if outcome.is_err() && first_here {
        // An agent that was here before has left the node as it wants it; a failed first one leaves nothing.
        let unload = || -> Result<_> { Ok(crate::steering::detach(&pins)?) };
        if let Err(error) = host::detach::detach(&host, true, unload).await {
            warn!(%error, "`mesh-agent detach` removes what is left");
        }
    }
    if outcome? == Leaves::Nothing {
        Cache::new(&state_dir).clear()?;
        instance.discard()?;
    }
    Ok(())
}

/// What an agent leaves on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaves {
    /// All there is, for the agent that follows.
    All,
    /// Nothing that has an effect; the last good configuration, to start with the next time.
    Configuration,
    /// Nothing: no agent will follow.
    Nothing,
}

async fn serve_pods(
    settings: RunArgs,
    log: Arc<LogControl>,
    privileged: Privileged,
    host_settings: HostSettings,
) -> Result<Leaves> {
    let started = Instant::now();
    let mut signals = Signals::new()?;
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let cluster = cluster(&settings).await?;

    // The mesh as it was last known.
    let transport = transport(&settings);
    let client = ConfigClient::new(&settings, transport.clone())?;
    let (snapshot, config) = (client.snapshot(), client.state());
    let config_ready = config.clone();
    let pods = Arc::new(ArcSwap::from_pointee(LocalPods::default()));
    let connect_time = Arc::new(ConnectTime::default());

    // Who its pods are.
    let (wanted, wanted_identities) = watch::channel(identity::Wanted::default());
    let identity_settings = settings.identity.settings(&settings.control_servers, &transport);
    let trust_domain = Arc::clone(&identity_settings.trust_domain);
    let (identities, identity_manager) =
        IdentityManager::new(&identity_settings, wanted_identities, Arc::new(SystemClock))?;

    // The node, and the agent's place on it.
    let Privileged { loader, namespace } = privileged;
    let host = HostState::install(&host_settings)?;
    let namespace = AgentNamespace::connect(namespace, &host_settings).await?;

    // The data plane, without connections yet.
    let proxy_settings = ProxySettings {
        network_congestion_control: namespace.network_congestion_control().map(Into::into),
        ..proxy_settings(&settings)
    };
    let telemetry = Telemetry::new(proxy_settings.workers.get(), &telemetry_options(&settings))?;
    let (passage, proposals) = passage::proposals(settings.in_kernel_passage == Switch::On);
    let inputs = ProxyInputs {
        snapshot: Arc::clone(&snapshot),
        pods: Arc::clone(&pods),
        connect_time: Arc::clone(&connect_time),
        passage,
        identities: identities.clone(),
        observer: Arc::clone(&telemetry) as _,
        node_sockets: NodeSockets::start().context("cannot make sockets of the node")?,
    };
    let workers = proxy_settings.workers.get();
    let proxy = namespace.thread().run(move || Proxy::start(proxy_settings, inputs))??;

    // The kernel's part, without listeners yet.
    let steering_settings = SteeringSettings::from(&settings.node);
    let steering = loader.run({
        let settings = steering_settings.clone();
        move || Steering::load_or_adopt(&settings)
    })??;
    steering.deliver_to(&namespace)?;
    steering.set_shortcuts(settings.shortcuts == Switch::On)?;
    let passages = Passages::new(PassageInputs {
        steering: steering.clone(),
        snapshot: Arc::clone(&snapshot),
        pods: Arc::clone(&pods),
        observer: Arc::clone(&telemetry) as _,
        proposals,
        idle_timeout: settings.idle_timeout,
    })?;
    let reconciler = Reconciler::new(KernelPods(steering.clone()), Arc::clone(&pods));
    let statuses = reconciler.statuses();
    // Before anything is guarded: probes must not be refused.
    let kubelet = KubeletWatch::start(
        steering.clone(),
        settings.cgroup_root.clone(),
        settings.kubelet_cgroups.clone(),
    )?;
    let devices = DeviceWatch::start(steering.clone()).await?;

    // Those who ask.
    let listening = Arc::new(AtomicUsize::new(0));
    let state = Arc::new(AdminState {
        facts: AgentFacts { node: settings.node.node_name.clone(), workers, started },
        mesh: Arc::clone(&snapshot),
        pods: Arc::clone(&pods),
        connect_time: Arc::clone(&connect_time),
        telemetry: Arc::clone(&telemetry),
        log,
        steering: Arc::new(inspect::Kernel::new(
            steering.clone(),
            &steering_settings,
            kubelet.state(),
            Arc::clone(&listening),
        )),
        config: Arc::new(inspect::Config::new(config, settings.control_servers.clone())),
        identities: Arc::new(inspect::Certificates::new(identities)),
        host: Arc::new(inspect::Node::new(host_settings, settings.node.bpffs.clone(), cluster.clone())),
        enrolment: Arc::new(inspect::Pods::new(statuses.clone())),
    });
    let http = TcpListener::bind(settings.http_address)
        .await
        .with_context(|| format!("--http-address {}", settings.http_address))?;
    let socket = AdminSocket::bind(&settings.admin_socket())?;
    tasks.spawn(until_failure("metrics", admin::serve_http(http, Arc::clone(&state), stopped(&stop))));
    tasks.spawn(until_failure("admin socket", admin::serve_socket(socket, state, stopped(&stop))));

    // Those who keep it all up to date.
    let source = pod_source(&settings, cluster.as_ref(), &snapshot, statuses.clone());
    let balanced = statuses.clone();
    let (desired, desired_pods) = watch::channel(DesiredPods::default());
    let named = desired_pods.clone();
    let follow_identities =
        identity::follow(desired_pods.clone(), statuses.clone(), Arc::clone(&pods), trust_domain, wanted);
    let located = NetlinkDevices::open().context("cannot watch the devices of pods")?;
    let follow_pods = async move {
        tokio::join!(source.run(desired), reconciler.run(desired_pods, located));
    };
    tasks.spawn(stop.clone().run_until_cancelled_owned(follow_pods));
    tasks.spawn(stop.clone().run_until_cancelled_owned(follow_identities));
    tasks.spawn(identity_manager.run(stopped(&stop)));
    tasks.spawn(devices.run(stop.clone()));
    let pod_mtu = steering.pod_mtu();
    tasks.spawn(stop.clone().run_until_cancelled_owned(async move { namespace.follow_mtu(pod_mtu).await }));
    tasks.spawn(stop.clone().run_until_cancelled_owned(kubelet.run()));
    tasks.spawn(passages.run(stop.clone()));
    tasks.spawn(client.run(stopped(&stop)));
    let (serving, serves) = watch::channel(false);
    if let Some(cluster) = cluster.clone() {
        let remove_taint = kubernetes::taint::remove_when_serving(cluster, serves);
        tasks.spawn(stop.clone().run_until_cancelled_owned(remove_taint));
    }
    tasks.close();

    // From here on connections are taken.
    let all_of_it = Arc::clone(&snapshot);
    tokio::select! {
        result = everything_is_there(config_ready, named, statuses) => {
            result?;
            // After the pods: until all are known, what an agent before attached to theirs stays.
            match settings.connect_time_balancing {
                Switch::On => {
                    let root = settings.cgroup_root.clone().or_else(connect_time::mount_point);
                    let balancer = Balancer::new(steering.clone(), snapshot, pods, connect_time, root);
                    tasks.spawn(stop.clone().run_until_cancelled_owned(balancer.run(balanced)));
                }
                Switch::Off => connect_time::remove(&steering),
            }
            steering.set_listeners(&core_listeners(proxy.listeners(), workers))?;
            listening.store(proxy.listeners().len(), Ordering::Relaxed);
            info!(elapsed = ?started.elapsed(), "ready");
            serving.send_replace(true);
            tasks.spawn(stop.clone().run_until_cancelled_owned(async move { memory::keep_small(&all_of_it).await }));
            signals.stop().await;
        }
        () = signals.stop() => {}
    }

    info!(drain_time = ?settings.drain_time, "stopping");
    serving.send_replace(false);
    steering.set_listeners(&[])?;
    listening.store(0, Ordering::Relaxed);
    tokio::select! {
        drained = proxy.drain(settings.drain_time) => info!(cut = drained.cut, "drained"),
        () = signals.stop() => warn!("told to stop again: connections are cut"),
    }
    let leaves = leaves(&settings, cluster.as_ref()).await;
    if leaves != Leaves::All {
        // The programs first: packets for the agent must find its devices.
        crate::steering::detach(&steering_settings.directory)?;
        host.remove().await?;
    }
    stop.cancel();
    tasks.wait().await;
    telemetry.flush(std::time::Duration::from_secs(1));
    Ok(leaves)
}

/// Resolves once there is a configuration to serve from, and every pod that the source names is published.
async fn everything_is_there(
    mut config: watch::Receiver<ConfigState>,
    mut named: watch::Receiver<DesiredPods>,
    mut statuses: watch::Receiver<PodStatuses>,
) -> Result<()> {
    config.wait_for(ConfigState::is_ready).await.context("the configuration client ended")?;
    let spoken = |desired: &DesiredPods| desired.complete || !desired.pods.is_empty();
    named.wait_for(spoken).await.context("the pod source ended")?;
    let published =
        |statuses: &PodStatuses| named.borrow().pods.iter().all(|pod| statuses.contains_key(&pod.uid));
    statuses.wait_for(published).await.context("enrolment ended")?;
    Ok(())
}

/// The way to the control servers.
fn transport(settings: &RunArgs) -> Transport {
    let mark = settings.node.agent_mark.get();
    Transport {
        tls: settings.control_root_cert.clone().map(|roots| TlsConfig { roots, server_name: None }),
        token_file: settings.control_token_file.clone(),
        // These connections must not be steered.
        prepare_socket: Some(Arc::new(move |socket| SockRef::from(socket).set_mark(mark))),
        ..Transport::default()
    }
}

fn proxy_settings(settings: &RunArgs) -> ProxySettings {
    let defaults = ProxySettings::new(settings.node.agent_mark.get());
    let max_connections =
        settings.max_connections.map_or(defaults.max_connections, std::num::NonZeroUsize::get);
    let half = (max_connections / 2).max(1);
    let mut tunnel = defaults.tunnel.clone();
    tunnel.trunks = settings.tunnel_protocol == TunnelMode::Auto;
    ProxySettings {
        tunnel,
        workers: settings.workers(),
        connect_timeout: settings.connect_timeout,
        attempt_timeout: defaults.attempt_timeout.min(settings.connect_timeout),
        idle_timeout: settings.idle_timeout,
        max_connections,
        max_connections_per_pod: settings.max_connections_per_pod.map_or(half, std::num::NonZeroUsize::get),
        ..defaults
    }
}

fn telemetry_options(settings: &RunArgs) -> TelemetryOptions {
    let format = match settings.access_log {
        AccessLogFormat::Off => None,
        AccessLogFormat::Text => Some(telemetry::AccessLogFormat::Text),
        AccessLogFormat::Json => Some(telemetry::AccessLogFormat::Json),
    };
    let target = settings.access_log_file.clone().map_or(AccessLogTarget::Stdout, AccessLogTarget::File);
    let access_log = format.map(|format| AccessLogOptions { target, format, ..AccessLogOptions::default() });
    TelemetryOptions { access_log, ..TelemetryOptions::default() }
}

/// The cluster that the agent is part of.
async fn cluster(settings: &RunArgs) -> Result<Option<Cluster>> {
    if settings.pod_source != PodSourceKind::Kubernetes {
        return Ok(None);
    }
    let client = kubernetes::client::infer()
        .await
        .context("--pod-source kubernetes: no access to the Kubernetes API")?;
    Ok(Some(Cluster {
        client,
        node: settings.node.node_name.as_str().into(),
        namespace: settings.pod_namespace.as_str().into(),
        daemon_set: settings.daemonset.as_deref().map(Arc::from),
        startup_taint: settings.startup_taint.as_deref().map(Arc::from),
    }))
}

/// What stays on the node when the agent ends.
async fn leaves(settings: &RunArgs, cluster: Option<&Cluster>) -> Leaves {
    let succession = match (settings.state_on_exit, cluster) {
        (StateOnExit::Keep, _) => return Leaves::All,
        (StateOnExit::DaemonSet, Some(cluster)) => kubernetes::succession::ask(cluster).await,
        (StateOnExit::Remove, _) | (StateOnExit::DaemonSet, None) => return Leaves::Configuration,
    };
    match succession {
        Succession::Follows(reason) => {
            info!(reason, "this node stays steered, for the agent that follows");
            Leaves::All
        }
        Succession::Ends(reason) => {
            info!(reason, "removing every trace of the agent");
            Leaves::Nothing
        }
    }
}

fn pod_source(
    settings: &RunArgs,
    cluster: Option<&Cluster>,
    snapshot: &Arc<crate::config::SharedSnapshot>,
    statuses: watch::Receiver<PodStatuses>,
) -> PodSource {
    match cluster {
        None => PodSource::Control(ControlSource::new(Arc::clone(snapshot), settings.failure_mode.into())),
        Some(cluster) => {
            let known = control::pods(&snapshot.load(), settings.failure_mode.into());
            let place = KubernetesSettings {
                node: settings.node.node_name.as_str().into(),
                cluster: settings.cluster_id.as_str().into(),
                failure_mode: settings.failure_mode.into(),
            };
            let client = cluster.client.clone();
            PodSource::Kubernetes(Box::new(KubernetesSource::new(client, place, known, statuses)))
        }
    }
}

/// The listeners in the order of the kernel's table.
fn core_listeners(listeners: &[Listener], workers: usize) -> Vec<CoreListeners<'_>> {
    let of = |worker: usize, arrival: Arrival| {
        let family = |v4: bool| {
            let mine = |listener: &&Listener| {
                (listener.worker(), listener.arrival(), listener.address().is_ipv4()) == (worker, arrival, v4)
            };
            listeners.iter().find(mine).map(AsFd::as_fd)
        };
        ListenerPair { v4: family(true), v6: family(false) }
    };
    let of_worker =
        |worker| CoreListeners { steered: of(worker, Arrival::Steered), around: of(worker, Arrival::Around) };
    (0..workers).map(of_worker).collect()
}

fn create_directory(path: &std::path::Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}

fn stopped(stop: &CancellationToken) -> impl Future<Output = ()> + Send + 'static {
    stop.clone().cancelled_owned()
}

/// An endpoint for operators that fails must not take the mesh with it.
async fn until_failure(what: &'static str, serving: impl Future<Output = std::io::Result<()>>) {
    if let Err(error) = serving.await {
        tracing::error!(what, %error, "no longer served");
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Resolves when the agent is told to stop.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Enrolment's way into the kernel.
struct KernelPods(Steering);

impl PodSteering for KernelPods {
    type Error = SteeringError;

    fn apply(&mut self, pod: &LocalPod) -> Result<(), SteeringError> {
        self.0.enrol(pod)
    }

    fn withdraw(&mut self, pod: &LocalPod) -> Result<(), SteeringError> {
        self.0.withdraw(&pod.uid)
    }

    fn retain(&mut self, pods: &LocalPods) -> Result<(), SteeringError> {
        self.0.reconcile(pods.iter().map(Arc::as_ref))
    }
}
