//! The agent, its node and its pods.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Version of the program.
    pub version: String,
    /// Version of the kernel maps' layout.
    pub kernel_abi: u32,
}

/// Whether the agent does its work.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether it does.
    pub ready: bool,
    /// What is missing where it does not.
    pub missing: Vec<String>,
}

/// The agent at a glance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What runs.
    pub version: Version,
    /// Name of the node.
    pub node: String,
    /// Process id.
    pub pid: u32,
    /// How long it has been running.
    pub uptime_seconds: u64,
    /// Data-plane workers.
    pub workers: usize,
    /// Whether it does its work.
    pub health: Health,
    /// Where its configuration comes from.
    pub config: ConfigStatus,
    /// How much of the mesh it knows.
    pub mesh: MeshCounts,
    /// Pods of this node.
    pub pods: PodCounts,
    /// Connections open now.
    pub connections: ConnectionCounts,
    /// Devices that are steered.
    pub attached_devices: usize,
    /// Resident memory.
    pub memory_bytes: u64,
    /// The log filter.
    pub log_filter: String,
}

/// How much of the mesh is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshCounts {
    /// Counts the changes that led to the current configuration.
    pub revision: u64,
    /// Workloads.
    pub workloads: usize,
    /// Services.
    pub services: usize,
}

/// Pods of this node by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodCounts {
    /// All that are known.
    pub known: usize,
    /// Those whose traffic is steered.
    pub enrolled: usize,
    /// Those enrolled whose device is not known, so that the source of their packets is not checked.
    pub without_device: usize,
}

/// Connections open now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionCounts {
    /// Opened by local pods.
    pub outbound: usize,
    /// Opened to local pods.
    pub inbound: usize,
}

/// Where the configuration in force comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfigOrigin {
    /// There is none yet.
    #[default]
    None,
    /// The last good state on disk.
    Cache,
    /// A control server.
    Server,
}

/// The configuration and its source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Where the configuration in force comes from.
    pub origin: ConfigOrigin,
    /// The control servers, in the order they are tried.
    pub servers: Vec<String>,
    /// The one that is connected.
    pub connected: Option<String>,
    /// What it calls itself, program and version.
    #[serde(default)]
    pub identifier: Option<String>,
    /// How long it has been connected, or away.
    pub since_seconds: Option<u64>,
    /// When the last change came.
    pub last_change_seconds: Option<u64>,
    /// Why the last attempt to connect failed.
    pub error: Option<String>,
    /// Resources that were refused; their last good version is in force.
    pub rejected: Vec<RejectedResource>,
    /// What is wrong with the last good state on disk.
    pub cache_error: Option<String>,
}

/// A resource that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedResource {
    /// Its name.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// It works, with a restriction.
    Warn,
    /// It does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// How it came out.
    pub status: CheckStatus,
    /// What was found.
    pub detail: String,
    /// How to mend it; empty where there is nothing to mend.
    pub mend: String,
}

impl Check {
    /// All is well.
    pub fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.into(), status: CheckStatus::Ok, detail: detail.into(), mend: String::new() }
    }

    /// Not as good as it should be.
    pub fn warn(name: &str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name: name.into(), status: CheckStatus::Warn, detail: detail.into(), mend: mend.into() }
    }

    /// Broken.
    pub fn fail(name: &str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name: name.into(), status: CheckStatus::Fail, detail: detail.into(), mend: mend.into() }
    }
}

/// Where a pod is on its way into the mesh.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodState {
    /// Its traffic is steered.
    Enrolled,
    /// It will be; something is still missing.
    Pending,
    /// It should be, and cannot.
    Failed,
    /// It is not meant to be: known only so that nobody else uses its addresses.
    #[default]
    Outside,
}

/// A pod of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodInfo {
    /// Unique for the life of the pod.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Service account.
    pub service_account: String,
    /// All its addresses.
    pub addresses: Vec<String>,
    /// Its device on the node, once found.
    pub device: Option<String>,
    /// Index of that device.
    pub device_index: Option<u32>,
    /// Where it is on its way into the mesh.
    pub state: PodState,
    /// Why it is not there yet, or cannot be.
    pub detail: Option<String>,
    /// `open` or `closed`: what happens to its new connections while no agent runs.
    pub failure_mode: String,
    /// Whether the kernel balances its connections to services when they are opened.
    #[serde(default)]
    pub balanced_at_connect: bool,
    /// Which of its traffic is not steered, in words; empty where all is.
    pub exceptions: Vec<String>,
    /// Connections it opened that are open now.
    pub outbound: usize,
    /// Connections to it that are open now.
    pub inbound: usize,
}

/// The kernel's side.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SteeringReport {
    /// Where programs and maps are pinned.
    pub pin_path: String,
    /// The programs.
    pub programs: Vec<ProgramInfo>,
    /// Every device of the node that is, or should be, steered.
    pub attachments: Vec<Attachment>,
    /// Listening sockets the kernel may choose from.
    pub listeners: usize,
    /// What is known of the kubelet.
    #[serde(default)]
    pub kubelet: KubeletInfo,
    /// What became of packets, by outcome, since the maps were made.
    pub counters: BTreeMap<String, u64>,
    /// Entries of each map.
    pub maps: BTreeMap<String, usize>,
    /// Whether the kernel measures run times now.
    pub stats_enabled: bool,
}

/// A kernel program.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProgramInfo {
    /// Its name.
    pub name: String,
    /// The kernel's id for it.
    pub id: u32,
    /// Its type, in the kernel's words.
    pub kind: String,
    /// Hash of its instructions: the same program has the same on every node.
    pub tag: String,
    /// Memory it takes.
    pub memory_bytes: u64,
    /// Instructions the verifier had to look at, where the kernel says.
    pub verified_instructions: Option<u64>,
    /// How long ago it was loaded, where the kernel says.
    pub loaded_seconds: Option<u64>,
    /// How often it ran while run times were measured.
    pub run_count: u64,
    /// How long it ran in all that.
    pub run_nanoseconds: u64,
}

/// What is known of the kubelet, whose connections reach pods past the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KubeletInfo {
    /// Nothing: connections of all processes of the node do.
    #[default]
    Unknown,
    /// Its cgroups.
    Found(Vec<String>),
    /// It does not run.
    Gone,
}

/// A device and the programs on it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the device.
    pub device: String,
    /// Its index.
    pub index: u32,
    /// `tcx` or `clsact`; `netns` for `pick_listener`.
    pub hook: String,
    /// Whether there is a program on its egress as well as on its ingress.
    #[serde(default)]
    pub guarded: bool,
    /// Bridge that the device is a port of.
    pub bridge: Option<String>,
    /// Uid of the pod behind the device.
    pub pod: Option<String>,
    /// Why nothing is attached, where that is so.
    pub error: Option<String>,
}
