//! Everything an operator can set, read from the command line and the environment, checked as a whole before
//! anything is touched.

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use tonic::transport::Uri;

use crate::config::LocalNode;
use crate::pods::FailureMode;

mod identity;
#[cfg(test)]
mod tests;

pub use identity::IdentityArgs;

/// Where the agent learns which pods the node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PodSourceKind {
    /// The Kubernetes API: pods of this node, enrolled by label.
    Kubernetes,
    /// The control server: workloads that name this node.
    Control,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Whether and how connections are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogFormat {
    /// Not at all.
    Off,
    /// One line of text each.
    Text,
    /// One JSON object each.
    Json,
}

/// What is spoken in tunnels with other agents of this mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelMode {
    /// The leanest that both sides can.
    Auto,
    /// HBONE.
    Hbone,
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// What becomes of an agent's traces on the node when it is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StateOnExit {
    /// They are removed.
    Remove,
    /// They stay, for a successor that takes over (an update). `mesh-agent detach` removes them.
    Keep,
    /// They stay while the DaemonSet that the agent is of wants an agent on this node, and are removed when it is deleted.
    #[value(name = "daemonset")]
    DaemonSet,
}

/// What a pod that does not say itself gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultFailureMode {
    /// New connections pass the mesh by while no agent runs.
    Open,
    /// They are dropped.
    Closed,
}

impl From<DefaultFailureMode> for FailureMode {
    fn from(mode: DefaultFailureMode) -> Self {
        match mode {
            DefaultFailureMode::Open => Self::Open,
            DefaultFailureMode::Closed => Self::Closed,
        }
    }
}

/// Where the agent leaves its traces on the node; `mesh-agent detach` needs these to find them again.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// Name of this node, as the control server knows it.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,

    /// Mounted BPF file system below which programs and maps are pinned.
    #[arg(long, env = "MESH_BPFFS", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,

    /// Directory of the last good configuration.
    #[arg(long, env = "MESH_STATE_DIR", default_value = "/var/lib/mesh-agent")]
    pub state_dir: PathBuf,

    /// Directory of the admin socket, the lock and the record of what was changed on the node.
    #[arg(long, env = "MESH_RUN_DIR", default_value = "/run/mesh-agent")]
    pub run_dir: PathBuf,

    /// Where the node's sysctls are writable. A container sees its own /proc/sys read-only; mount the node's
    /// /proc elsewhere and name its sys directory here.
    #[arg(long, env = "MESH_PROC_SYS", default_value = "/proc/sys")]
    pub proc_sys: PathBuf,

    /// Mark of what the agent sends from other addresses than the node's, within the mask.
    #[arg(long, env = "MESH_CAPTURE_MARK", value_parser = number, default_value = "0x1000")]
    pub capture_mark: NonZeroU32,

    /// Mark of the agent's own sockets, within the mask.
    #[arg(long, env = "MESH_AGENT_MARK", value_parser = number, default_value = "0x0040")]
    pub agent_mark: NonZeroU32,

    /// Bits of the packet mark the mesh uses. Must be clear of the bits that kube-proxy (0xc000), the CNI's portmap
    /// (0x2000), Cilium (0xf00), Calico (0xffff0000) and others on the node use: a packet with the agent's mark is
    /// taken for one that has been decided about.
    #[arg(long, env = "MESH_MARK_MASK", value_parser = number, default_value = "0x1040")]
    pub mark_mask: NonZeroU32,
}

/// Options of `mesh-agent run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Where the agent leaves its traces.
    #[command(flatten)]
    pub node: NodeArgs,

    /// Control server, `http://host:port` or `https://host:port`. Repeat for more; the first that answers is
    /// used, the others take over when it is gone.
    #[arg(
        long = "control-server",
        env = "MESH_CONTROL_SERVER",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://mesh-control.mesh-system.svc:15010"
    )]
    pub control_servers: Vec<String>,

    /// PEM file with the roots that an https control server is checked against.
    #[arg(long, env = "MESH_CONTROL_ROOT_CERT", value_name = "FILE")]
    pub control_root_cert: Option<PathBuf>,

    /// File with the bearer token for the control server, read anew for each connection.
    #[arg(long, env = "MESH_CONTROL_TOKEN_FILE", value_name = "FILE")]
    pub control_token_file: Option<PathBuf>,

    /// Who pods are, and whom they trust.
    #[command(flatten)]
    pub identity: IdentityArgs,

    /// Where the agent learns which pods the node has.
    #[arg(long, env = "MESH_POD_SOURCE", value_enum, default_value = "kubernetes")]
    pub pod_source: PodSourceKind,

    /// What becomes of a pod's new connections while no agent runs, unless the pod says itself.
    #[arg(long, env = "MESH_FAILURE_MODE", value_enum, default_value = "open")]
    pub failure_mode: DefaultFailureMode,

    /// Whether the kernel balances connections to services when they are opened, and sends those that fall to a pod of
    /// this node straight there.
    #[arg(long, env = "MESH_CONNECT_TIME_BALANCING", value_enum, default_value = "on")]
    pub connect_time_balancing: Switch,

    /// Directory of the cgroup2 hierarchy below which this node's pods are; where cgroup2 is mounted, by default.
    #[arg(long, env = "MESH_CGROUP_ROOT", value_name = "DIRECTORY")]
    pub cgroup_root: Option<PathBuf>,

    /// Cgroup of the kubelet, below the root of the cgroup2 hierarchy, such as `system.slice/kubelet.service`. Its
    /// connections reach pods past the agent, those of the node's other processes do not. Repeat for more; by default the
    /// places where distributions have it are looked at.
    #[arg(long = "kubelet-cgroup", env = "MESH_KUBELET_CGROUP", value_name = "PATH", value_delimiter = ',')]
    pub kubelet_cgroups: Vec<PathBuf>,

    /// Unix socket for meshctl; in the run directory by default.
    #[arg(long, env = "MESH_ADMIN_SOCKET", value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,

    /// Address of /metrics and /healthz.
    #[arg(long, env = "MESH_HTTP_ADDRESS", default_value = "127.0.0.1:15020")]
    pub http_address: SocketAddr,

    /// Log level, or a filter such as `info,mesh_agent::steering=debug`.
    #[arg(long, env = "MESH_LOG_LEVEL", default_value = "info")]
    pub log_level: String,

    /// How log lines are written.
    #[arg(long, env = "MESH_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,

    /// Whether and how every connection is logged at its end.
    #[arg(long, env = "MESH_ACCESS_LOG", value_enum, default_value = "text")]
    pub access_log: AccessLogFormat,

    /// File of the access log; standard output by default.
    #[arg(long, env = "MESH_ACCESS_LOG_FILE", value_name = "FILE")]
    pub access_log_file: Option<PathBuf>,

    /// Name of the cluster this node belongs to.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,

    /// Network of this node's pods; empty is the default network.
    #[arg(long, env = "NETWORK", default_value = "")]
    pub network: String,

    /// Domain of the cluster's service names.
    #[arg(long, env = "MESH_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,

    /// Name of the agent's own pod, for the control server's logs.
    #[arg(long, env = "POD_NAME", default_value = "mesh-agent")]
    pub pod_name: String,

    /// Namespace of the agent's own pod.
    #[arg(long, env = "POD_NAMESPACE", default_value = "mesh-system")]
    pub pod_namespace: String,

    /// Address of the agent's own pod, for the control server's logs.
    #[arg(long, env = "INSTANCE_IP", default_value = "127.0.0.1")]
    pub instance_ip: IpAddr,

    /// Data-plane workers, one listener and one thread each; one per core by default.
    #[arg(long, env = "MESH_WORKERS")]
    pub workers: Option<NonZeroUsize>,

    /// Connections open at the same time, all pods together; by default as many as the limit of open files allows.
    #[arg(long, env = "MESH_MAX_CONNECTIONS")]
    pub max_connections: Option<NonZeroUsize>,

    /// Connections open at the same time, per pod; by default half of all.
    #[arg(long, env = "MESH_MAX_CONNECTIONS_PER_POD")]
    pub max_connections_per_pod: Option<NonZeroUsize>,

    /// Time to reach an endpoint, all attempts together.
    #[arg(long, env = "MESH_CONNECT_TIMEOUT", value_parser = duration, default_value = "5s")]
    pub connect_timeout: Duration,

    /// A connection on which nothing moves for this long is closed.
    #[arg(long, env = "MESH_IDLE_TIMEOUT", value_parser = duration, default_value = "1h")]
    pub idle_timeout: Duration,

    /// Time that open connections have to end after SIGTERM.
    #[arg(long, env = "MESH_DRAIN_TIME", value_parser = duration, default_value = "20s")]
    pub drain_time: Duration,

    /// Whether connections between pods of this node that policy allows pass in the kernel, where nothing has to be done
    /// with their bytes. The same is allowed and denied either way.
    #[arg(long, env = "MESH_IN_KERNEL_PASSAGE", value_enum, default_value = "on")]
    pub in_kernel_passage: Switch,

    /// Whether the packets of such connections, once they are answered, are put straight into the pod, past the node's IP stack,
    /// its bridge and its netfilter rules. Never where a pod's device queues or shapes packets. Switch it off if another
    /// program has to see every packet between pods.
    #[arg(long, env = "MESH_SHORTCUTS", value_enum, default_value = "on")]
    pub shortcuts: Switch,

    /// What is spoken in tunnels with other agents of this mesh: something leaner than HBONE where both sides can, or HBONE
    /// always. With everyone else it is HBONE.
    #[arg(long, env = "MESH_TUNNEL_PROTOCOL", value_enum, default_value = "auto")]
    pub tunnel_protocol: TunnelMode,

    /// What becomes of the steering state, rules, routes and sysctls when the agent is told to stop.
    #[arg(long, env = "MESH_STATE_ON_EXIT", value_enum, default_value = "remove")]
    pub state_on_exit: StateOnExit,

    /// DaemonSet that the agent is of, in the namespace of its pod; needed for --state-on-exit daemonset.
    #[arg(long, env = "MESH_DAEMONSET", value_name = "NAME")]
    pub daemonset: Option<String>,

    /// Key of a taint that keeps pods off a new node until the agent serves, and that it then removes. It never puts it
    /// there: have the node registered with it.
    #[arg(long, env = "MESH_STARTUP_TAINT", value_name = "KEY")]
    pub startup_taint: Option<String>,
}

/// Options of `mesh-agent detach`.
#[derive(Debug, Clone, Args)]
pub struct DetachArgs {
    /// Where the agent left its traces.
    #[command(flatten)]
    pub node: NodeArgs,

    /// Even if an agent runs. It goes on without steering anything.
    #[arg(long)]
    pub force: bool,
}

/// What is wrong with the settings, all of it.
#[derive(Debug, thiserror::Error)]
#[error("invalid settings:{}", problems.iter().map(|problem| format!("\n  {problem}")).collect::<String>())]
pub struct InvalidSettings {
    problems: Vec<String>,
}

impl NodeArgs {
    fn check(&self, problems: &mut Vec<String>) {
        let name = &self.node_name;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if name.is_empty() || name.len() > 253 || !name.chars().all(plain) {
            problems.push(format!("--node-name {name:?}: 1 to 253 letters, digits, '-', '.' and '_'"));
        }
        let (mask, capture, agent) = (self.mark_mask.get(), self.capture_mark.get(), self.agent_mark.get());
        for (flag, mark) in [("--capture-mark", capture), ("--agent-mark", agent)] {
            if mark & !mask != 0 {
                problems.push(format!("{flag} {mark:#x}: has bits outside --mark-mask {mask:#x}"));
            }
        }
        if capture == agent {
            problems.push(format!("--capture-mark and --agent-mark are both {agent:#x}: they must differ"));
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Lists every problem at once.
    pub fn validate(&self) -> Result<(), InvalidSettings> {
        let mut problems = Vec::new();
        self.check(&mut problems);
        finish(problems)
    }
}

impl RunArgs {
    /// Checks all settings.
    ///
    /// # Errors
    /// Lists every problem at once.
    pub fn validate(&self) -> Result<(), InvalidSettings> {
        let mut problems = Vec::new();
        self.node.check(&mut problems);
        self.identity.check(&mut problems);
        for server in &self.control_servers {
            if let Err(reason) = control_server(server) {
                problems.push(format!("--control-server {server:?}: {reason}"));
            }
        }
        if let Err(error) = self.log_level.parse::<tracing_subscriber::filter::Targets>() {
            problems.push(format!("--log-level {:?}: {error}", self.log_level));
        }
        for (flag, path) in [
            ("--control-root-cert", &self.control_root_cert),
            ("--control-token-file", &self.control_token_file),
        ] {
            if let Some(path) = path
                && let Err(error) = std::fs::metadata(path)
            {
                problems.push(format!("{flag} {}: {error}", path.display()));
            }
        }
        if let (Some(pod), Some(all)) = (self.max_connections_per_pod, self.max_connections)
            && pod > all
        {
            problems.push(format!("--max-connections-per-pod {pod} is more than --max-connections {all}"));
        }
        for (flag, given) in [
            ("--state-on-exit daemonset", self.state_on_exit == StateOnExit::DaemonSet),
            ("--startup-taint", self.startup_taint.is_some()),
        ] {
            if given && self.pod_source != PodSourceKind::Kubernetes {
                problems.push(format!("{flag}: takes --pod-source kubernetes"));
            }
        }
        if self.state_on_exit == StateOnExit::DaemonSet && self.daemonset.is_none() {
            problems.push("--state-on-exit daemonset: name it in --daemonset".to_owned());
        }
        if let Some(key) = &self.startup_taint
            && !is_taint_key(key)
        {
            problems
                .push(format!("--startup-taint {key:?}: the key of a taint, such as mesh-agent/not-ready"));
        }
        for (flag, time) in
            [("--connect-timeout", self.connect_timeout), ("--idle-timeout", self.idle_timeout)]
        {
            if time.is_zero() {
                problems.push(format!("{flag} 0s: must be longer"));
            }
        }
        finish(problems)
    }

    /// The node as the choice of endpoints sees it.
    pub fn local_node(&self) -> LocalNode {
        LocalNode {
            name: self.node.node_name.as_str().into(),
            cluster: self.cluster_id.as_str().into(),
            network: self.network.as_str().into(),
            trust_domain: self.identity.trust_domain.as_str().into(),
            ..LocalNode::default()
        }
    }

    /// Where meshctl finds the agent.
    pub fn admin_socket(&self) -> PathBuf {
        self.admin_socket.clone().unwrap_or_else(|| self.node.run_dir.join("admin.sock"))
    }

    /// Number of data-plane workers.
    pub fn workers(&self) -> NonZeroUsize {
        self.workers.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN)
    }

    /// The control server's view of this agent: `ztunnel~<address>~<pod>.<namespace>~<namespace>.svc.<domain>`,
    /// which an istiod takes for one of its own.
    pub fn node_id(&self) -> Arc<str> {
        let Self { instance_ip, pod_name, pod_namespace, cluster_domain, .. } = self;
        format!("ztunnel~{instance_ip}~{pod_name}.{pod_namespace}~{pod_namespace}.svc.{cluster_domain}")
            .into()
    }
}

fn finish(problems: Vec<String>) -> Result<(), InvalidSettings> {
    if problems.is_empty() { Ok(()) } else { Err(InvalidSettings { problems }) }
}

fn control_server(text: &str) -> Result<(), String> {
    let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
    match (uri.scheme_str(), uri.port_u16()) {
        (Some("http" | "https"), Some(_)) => Ok(()),
        (Some("http" | "https"), None) => Err("names no port, such as :15010".to_owned()),
        _ => Err("must start with http:// or https://".to_owned()),
    }
}

/// A qualified name: an optional DNS prefix and a slash, and up to 63 letters, digits, '-', '_' and '.'.
fn is_taint_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let made_of = |text: &str, longest: usize, others: &[char]| {
        (1..=longest).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(&c))
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    made_of(name, 63, &['-', '_', '.']) && prefix.is_none_or(|prefix| made_of(prefix, 253, &['-', '.']))
}

/// Reads a positive number, decimal or 0x hexadecimal.
fn number(text: &str) -> Result<NonZeroU32, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number
        .ok()
        .and_then(NonZeroU32::new)
        .ok_or_else(|| "a positive number, decimal or 0x hexadecimal".to_owned())
}

/// Reads `500ms`, `5s`, `10m` or `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let usage = || "a whole number with a unit: 500ms, 5s, 10m or 1h".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(usage)?;
    let (amount, unit) = text.split_at(digits);
    let amount: u32 = amount.parse().map_err(|_| usage())?;
    let unit = match unit {
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return Err(usage()),
    };
    Ok(unit * amount)
}
