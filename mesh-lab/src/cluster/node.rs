//! A node: its view of the file systems, its container runtime, its kubelet and kube-proxy.
//!
//! On the node everything is where its programs look for it by default; what is written there stays with the node:
//!
//! | folder                              | is                                                        |
//! |-------------------------------------|-----------------------------------------------------------|
//! | `/etc`, `/var/lib`, `/var/log`      | the machine's, with the node's own files laid over        |
//! | `/run`                              | empty at first: sockets, network namespaces, locks        |
//! | `/sys/fs/bpf`                       | a bpffs of its own                                        |
//! | `/var/lib/containerd`, `kubelet`    | plain folders: container file systems are overlays too, and those cannot be laid over another |

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nix::mount::{MsFlags, mount};
use serde_json::json;

use crate::capture::Capture;
use crate::cgroup;
use crate::machine::Machine;
use crate::mounts::mount_bpffs;
use crate::network::UPLINK;
use crate::process::Program;
use crate::topology;

use super::credentials::{Credentials, PROXY};
use super::part::{Part, Ready};
use super::settings::CNI_PLUGINS;
use super::{Cluster, ClusterError, CniPlugin, addresses, images, write};

/// What the node has of its own, laid over the machine's.
const OVERLAID: [&str; 3] = ["etc", "var/lib", "var/log"];
/// What must not be an overlay.
const PLAIN: [&str; 2] = ["var/lib/containerd", "var/lib/kubelet"];
const KUBELET: &str = "kubelet";
const RUNTIME_SOCKET: &str = "unix:///run/containerd/containerd.sock";

/// A node of a cluster.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    cluster: &'a Cluster,
    machine: &'a Machine,
    described: &'a topology::Node,
}

impl<'a> Node<'a> {
    pub(super) fn new(cluster: &'a Cluster, machine: &'a Machine, described: &'a topology::Node) -> Self {
        Self { cluster, machine, described }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.machine.name()
    }

    /// The machine of the lab, with the node's addresses and network namespace.
    #[must_use]
    pub fn machine(&self) -> &'a Machine {
        self.machine
    }

    /// A program to be run on the node, as a process that is in no pod.
    ///
    /// # Errors
    /// When the machine's namespaces or its cgroup cannot be used.
    pub fn program(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Program, ClusterError> {
        Ok(self.machine.program(program)?)
    }

    /// Runs a program on the node and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn output<S: AsRef<str>>(&self, command: &[S]) -> Result<String, ClusterError> {
        let (program, arguments) = command.split_first().ok_or_else(|| ClusterError::Command {
            command: String::new(),
            said: "no program given".to_owned(),
        })?;
        let output = self.program(program.as_ref())?.args(arguments.iter().map(AsRef::as_ref)).output()?;
        if !output.status.success() {
            let command = command.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" ");
            return Err(ClusterError::Command { command, said: output.stderr });
        }
        Ok(output.stdout)
    }

    /// What passes between this node and all others.
    #[must_use]
    pub fn capture(&self) -> Capture<'a> {
        Capture::of(self.machine.namespace(), UPLINK)
    }

    /// The node's kubelet.
    #[must_use]
    pub fn kubelet(&self) -> Part<'a> {
        let credentials = Credentials::of(self.cluster);
        let own = addresses::listed(self.machine.addresses().iter());
        self.part(KUBELET).program(self.cluster.program(KUBELET)).arguments(vec![
            "--config=/etc/kubernetes/kubelet.yaml".to_owned(),
            format!("--kubeconfig={}", credentials.kubeconfig(self.name())),
            format!("--hostname-override={}", self.name()),
            format!("--node-ip={own}"),
        ])
    }

    /// The node's container runtime, which all of its containers are below.
    #[must_use]
    pub fn runtime(&self) -> Part<'a> {
        self.part("containerd").program("containerd".into()).ready(Ready::Runtime)
    }

    /// The node's kube-proxy.
    #[must_use]
    pub fn proxy(&self) -> Part<'a> {
        let credentials = Credentials::of(self.cluster);
        self.part(PROXY).program(self.cluster.program(PROXY)).arguments(vec![
            format!("--kubeconfig={}", credentials.kubeconfig(PROXY)),
            format!("--hostname-override={}", self.name()),
            format!("--proxy-mode={}", self.cluster.settings.kube_proxy.name()),
            format!("--cluster-cidr={}", addresses::listed(addresses::all_pods())),
            // The size of the connection table is the machine's.
            "--conntrack-max-per-core=0".to_owned(),
        ])
    }

    pub(super) fn parts(self) -> Result<Vec<Part<'a>>, ClusterError> {
        Ok(vec![self.runtime(), self.kubelet(), self.proxy()])
    }

    fn part(&self, program: &str) -> Part<'a> {
        Part::new(self.cluster, &format!("{program}-{}", self.name()), self.machine, program)
    }

    /// Starts containerd and gives it the images.
    pub(super) fn start_runtime(&self) -> Result<(), ClusterError> {
        self.runtime().start()?;
        self.cluster.settings.images.iter().try_for_each(|archive| images::import(self, archive))
    }

    /// Starts the kubelet and kube-proxy.
    pub(super) fn start_kubernetes(&self) -> Result<(), ClusterError> {
        self.kubelet().launch()?;
        self.proxy().launch()
    }
}

/// Makes a node's folders and cgroups, with the configuration of its programs, and its view of the file systems.
pub(super) fn isolate(cluster: &mut Cluster, name: &str) -> Result<(), ClusterError> {
    let folder = cluster.data().join(name);
    let node = cluster.node(name)?;
    let files = [
        ("etc/containerd/config.toml", runtime_settings()),
        ("etc/cni/net.d/10-mesh-lab.conflist", network_settings(cluster.settings.cni, node.described)),
        ("etc/kubernetes/kubelet.yaml", kubelet_settings(&cgroup_root(cluster.name(), name))),
    ];
    for (file, text) in files {
        write(&upper(&folder, file), text)?;
    }
    for root in cgroup::legacy_roots(cluster.name()) {
        let path = root.join(name);
        cgroup::create_legacy(&root, &path).map_err(|source| ClusterError::File { path, source })?;
    }
    if let Some(own) = node.machine.cgroup() {
        let enabled = cgroup::enable_controllers(own);
        enabled.map_err(|source| ClusterError::File { path: own.to_owned(), source })?;
    }
    Ok(cluster.lab.isolate_mounts(name, || furnish(&folder))?)
}

/// Where a file of a node is kept.
fn upper(folder: &Path, file: &str) -> PathBuf {
    let overlaid = OVERLAID.iter().find_map(|root| Some((root, file.strip_prefix(root)?)));
    match overlaid {
        Some((root, rest)) => layer(folder, root, "files").join(rest.trim_start_matches('/')),
        None => folder.join(file),
    }
}

/// A folder that an overlay needs: `files` for what is written, `work` for the kernel.
fn layer(folder: &Path, root: &str, kind: &str) -> PathBuf {
    folder.join(root.replace('/', "-")).join(kind)
}

/// Mounts what is the node's own, in its mount namespace.
fn furnish(folder: &Path) -> io::Result<()> {
    const NONE: Option<&str> = None;
    for root in OVERLAID {
        let (files, work) = (layer(folder, root, "files"), layer(folder, root, "work"));
        fs::create_dir_all(&files)?;
        fs::create_dir_all(&work)?;
        let options = format!("lowerdir=/{root},upperdir={},workdir={}", files.display(), work.display());
        mount(
            Some("overlay"),
            Path::new("/").join(root).as_path(),
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )?;
    }
    for plain in PLAIN {
        let (own, place) = (folder.join(plain), Path::new("/").join(plain));
        fs::create_dir_all(&own)?;
        fs::create_dir_all(&place)?;
        mount(Some(own.as_path()), place.as_path(), NONE, MsFlags::MS_BIND, NONE)?;
        // What is mounted in them has to reach the containers that mount them.
        mount(NONE, place.as_path(), NONE, MsFlags::MS_SHARED, NONE)?;
    }
    mount(Some("none"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))?;
    mount_bpffs(Path::new("/sys/fs/bpf"))
}

/// Where the kubelet makes the groups of pods, in every hierarchy.
fn cgroup_root(cluster: &str, node: &str) -> String {
    format!("/mesh-lab/{cluster}/{node}")
}

fn runtime_settings() -> String {
    format!(
        "version = 2\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n\
         sandbox_image = \"{}\"\n\
         # Without CAP_SYS_RESOURCE nobody may lower a process's score.\n\
         restrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
         bin_dir = \"{CNI_PLUGINS}\"\n",
        images::PAUSE
    )
}

/// Both plugins understand what is only for one of them. Host ports are left to `portmap`, as CNIs usually do.
fn network_settings(plugin: CniPlugin, node: &topology::Node) -> String {
    let ranges: Vec<_> =
        node.pod_cidrs.iter().map(|range| json!([{ "subnet": range.to_string() }])).collect();
    let default_route =
        |range: IpNet| json!({ "dst": if range.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" } });
    let routes: Vec<_> = node.pod_cidrs.iter().map(default_route).collect();
    let network = json!({
        "type": plugin.name(),
        "bridge": "cni0",
        "isGateway": true,
        "hairpinMode": true,
        "ipMasq": false,
        "ipam": { "type": "host-local", "ranges": ranges, "routes": routes },
    });
    let host_ports = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    json!({ "cniVersion": "0.4.0", "name": "mesh-lab", "plugins": [network, host_ports] }).to_string()
}

fn kubelet_settings(cgroup_root: &str) -> String {
    let settings = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        // Only the cluster's own machines reach it.
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup_root,
        "failCgroupV1": false,
        "enforceNodeAllocatable": [],
        "clusterDNS": [addresses::dns().to_string()],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "failSwapOn": false,
        "containerRuntimeEndpoint": RUNTIME_SOCKET,
        // The machine's disk and memory are not the node's to worry about.
        "localStorageCapacityIsolation": false,
        "evictionHard": { "memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%" },
        // Images that were loaded cannot be pulled again.
        "imageGCHighThresholdPercent": 100,
    });
    settings.to_string()
}

/// The nodes as the API knows them, with the ranges that they have: otherwise controllers would deal out ranges in the order in which
/// kubelets report.
pub(super) fn objects(cluster: &Cluster) -> String {
    let mut text = String::new();
    for node in cluster.nodes() {
        let ranges: Vec<String> = node.described.pod_cidrs.iter().map(|range| range.to_string()).collect();
        let object = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": node.name() },
            "spec": { "podCIDR": ranges.first(), "podCIDRs": ranges },
        });
        let _ = writeln!(text, "---\n{object}");
    }
    text
}
