//! A real Kubernetes cluster on one machine, without Docker, systemd or virtual machines, for tests and for looking around.
//!
//! It is a lab whose nodes run containerd, a kubelet and kube-proxy, with a host outside for etcd, the API server, the controllers and
//! the scheduler:
//!
//! ```text
//!   host  control   etcd, kube-apiserver, kube-controller-manager, kube-scheduler; routes to every pod
//!   node  node<n>   containerd (with every container), kubelet, kube-proxy: a cgroup each
//!                   network namespace, and a view of the file systems of its own: /run, /etc, /var/lib, /var/log, bpffs
//! ```
//!
//! What makes it work on one kernel: a node's programs see the machine's files, but what they write in the folders above stays the
//! node's, so nodes do not meet and nothing is left on the machine. Everything is in the lab's record: [`Cluster`] is removed by its
//! drop, by [`state::remove`], and after a crash by whoever cleans up next. The programs outlive this process until then.
//!
//! Facts that shaped it: containerd needs `restrict_oom_score_adj` where CAP_SYS_RESOURCE is missing; kubelet 1.35 refuses cgroup v1,
//! hence 1.34; there is no image registry, so images are [loaded](Cluster::load) from files; all kubelets share the hierarchies of
//! cgroup v1, so each has a root of its own there.

mod addresses;
mod chart;
mod control_plane;
mod credentials;
mod error;
mod images;
mod kubectl;
mod load;
mod node;
mod part;
mod settings;
mod wait;
pub mod workloads;

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

pub use chart::Chart;
pub use error::ClusterError;
pub use load::{PodLoad, SteadyLoad, TEST_IMAGE};
pub use node::Node;
pub use part::Part;
pub use settings::{CniPlugin, ProxyMode, Settings};

use crate::lab::{Lab, LabError};
use crate::state::{self, ProcessId};
use crate::topology::Topology;

/// The machine of the control plane.
const CONTROL: &str = "control";
/// How long the parts of a cluster may take to be ready; seconds, usually.
const START: Duration = Duration::from_secs(120);

/// A running cluster. Dropping the handle of the one who [made](Cluster::up) it removes all of it.
#[derive(Debug)]
pub struct Cluster {
    lab: Lab,
    settings: Settings,
}

impl Cluster {
    /// Builds a cluster and waits until its nodes are ready and its DNS answers.
    ///
    /// # Errors
    /// When the name is in use, a program is missing or does not start; what was made until then is removed again.
    pub fn up(settings: Settings) -> Result<Self, ClusterError> {
        settings.check()?;
        if crate::cgroup::mount_point().is_none() {
            return Err(ClusterError::NoCgroup2);
        }
        let lab = Lab::up(topology(&settings)?)?;
        let cluster = Self { lab, settings };
        cluster.forget_another()?;
        cluster.settings.store(&cluster.lab.log_directory())?;
        cluster.build()
    }

    /// Opens a cluster that somebody else has made. Dropping the handle leaves it as it is.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn open(name: &str) -> Result<Self, ClusterError> {
        let lab = match Lab::open(name) {
            Err(LabError::Unknown { .. }) => return Err(ClusterError::Unknown(name.to_owned())),
            result => result?,
        };
        let settings = Settings::load(name, &lab.log_directory())?;
        Ok(Self { lab, settings })
    }

    /// The names of the clusters of this machine.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn names() -> Result<Vec<String>, ClusterError> {
        let records = state::list()?.into_iter().map(|record| record.topology.name);
        Ok(records.filter(|name| Settings::exist(&state::log_directory(name))).collect())
    }

    /// Leaves the cluster when this handle is gone: until somebody removes it, or until the process `owner` has ended and somebody
    /// cleans up.
    ///
    /// # Errors
    /// When that cannot be recorded; the cluster is removed then.
    pub fn keep(mut self, owner: Option<ProcessId>) -> Result<(), ClusterError> {
        Ok(self.lab.give_to(owner)?)
    }

    /// Removes the cluster, and says what could not be removed.
    ///
    /// # Errors
    /// When something could not be removed.
    pub fn down(self) -> Result<(), ClusterError> {
        Ok(self.lab.down()?)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.lab.name()
    }

    /// What it was made from.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The nodes, in order.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'_>> {
        self.lab.topology().nodes.iter().filter_map(|node| self.node(&node.name).ok())
    }

    /// The node of this name: `node1` and so on.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<Node<'_>, ClusterError> {
        let described = self.lab.topology().nodes.iter().find(|node| node.name == name);
        // The machine's error knows what there is.
        let machine = self.lab.node(name)?;
        let described = described.ok_or_else(|| ClusterError::Unknown(name.to_owned()))?;
        Ok(Node::new(self, machine, described))
    }

    /// The lab that the cluster is built on, with the machine `control` of the control plane.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Where the parts write what they say: `<part>.log`.
    #[must_use]
    pub fn log_directory(&self) -> PathBuf {
        self.lab.log_directory()
    }

    /// A part by its name, such as `etcd` or `kubelet-node1`.
    ///
    /// # Errors
    /// When there is none of this name; the error says which there are.
    pub fn part(&self, name: &str) -> Result<Part<'_>, ClusterError> {
        let mut parts = self.parts()?;
        match parts.iter().position(|part| part.name() == name) {
            Some(position) => Ok(parts.swap_remove(position)),
            None => Err(ClusterError::NoPart {
                name: name.to_owned(),
                known: parts.iter().map(Part::name).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The API server, to be stopped and started by tests.
    ///
    /// # Errors
    /// When the cluster's record is incomplete.
    pub fn api_server(&self) -> Result<Part<'_>, ClusterError> {
        self.part(control_plane::API_SERVER)
    }

    /// All programs that make up the cluster, in the order they start in.
    ///
    /// # Errors
    /// When the cluster's record is incomplete.
    pub fn parts(&self) -> Result<Vec<Part<'_>>, ClusterError> {
        let mut parts = control_plane::parts(self)?;
        for node in self.nodes() {
            parts.extend(node.parts()?);
        }
        Ok(parts)
    }

    fn build(self) -> Result<Self, ClusterError> {
        credentials::write_all(&self)?;
        for part in control_plane::parts(&self)?.iter().take(2) {
            part.launch()?;
        }
        let mut cluster = self;
        for name in cluster.node_names() {
            node::isolate(&mut cluster, &name)?;
            cluster.lab.route_the_rest(&name, CONTROL)?;
        }
        // While the API server starts, which takes longest.
        thread::scope(|scope| {
            let prepare = |node: Node<'_>| node.start_runtime();
            let nodes: Vec<_> = cluster.nodes().map(|node| scope.spawn(move || prepare(node))).collect();
            nodes.into_iter().try_for_each(|node| match node.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        cluster.api_server()?.wait_until_ready()?;
        for part in control_plane::parts(&cluster)?.iter().skip(2) {
            part.launch()?;
        }
        cluster.apply(&node::objects(&cluster))?;
        for node in cluster.nodes() {
            node.start_kubernetes()?;
        }
        cluster.apply(&cluster.dns())?;
        match cluster.wait_for_nodes() {
            Ok(()) => Ok(cluster),
            Err(error) => Err(cluster.parts()?.iter().find_map(Part::ended).unwrap_or(error)),
        }
    }

    /// Data that a record no longer tells of would be taken for the cluster's own.
    fn forget_another(&self) -> Result<(), ClusterError> {
        match fs::remove_dir_all(self.data()) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(ClusterError::File { path: self.data(), source })
            }
            _ => Ok(()),
        }
    }

    fn wait_for_nodes(&self) -> Result<(), ClusterError> {
        let timeout = format!("--timeout={}s", START.as_secs());
        self.kubectl(["wait", "--for=condition=Ready", "node", "--all", &timeout])?;
        self.kubectl(["wait", "--for=create", "serviceaccount/default", "--namespace=default", &timeout])?;
        self.kubectl(["rollout", "status", "deployment/coredns", "--namespace=kube-system", &timeout])?;
        Ok(())
    }

    /// The manifests of the cluster's DNS.
    fn dns(&self) -> String {
        include_str!("cluster/dns.yaml").replace("DNS_ADDRESS", &addresses::dns().to_string())
    }

    fn node_names(&self) -> Vec<String> {
        self.lab.topology().nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// What is too large for `/run`: etcd's data, images, containers, volumes; and the credentials.
    fn data(&self) -> PathBuf {
        state::data_directory(self.name())
    }

    /// A Kubernetes program.
    fn program(&self, name: &str) -> PathBuf {
        self.settings.programs.join(name)
    }

    /// The addresses of the control plane, IPv4 first.
    fn control_addresses(&self) -> Result<Vec<IpAddr>, ClusterError> {
        Ok(self.lab.host(CONTROL)?.addresses().iter().collect())
    }
}

/// A lab with a machine for the control plane and nodes with ranges for their pods.
fn topology(settings: &Settings) -> Result<Topology, ClusterError> {
    let mut nodes = String::new();
    for number in 1..=settings.nodes {
        let ranges: Vec<String> =
            addresses::pod_ranges(number).iter().map(|range| format!("\"{range}\"")).collect();
        nodes.push_str(&format!("  - {{name: node{number}, podCidrs: [{}]}}\n", ranges.join(", ")));
    }
    let name = &settings.name;
    // The devices of the pods are the CNI plugin's; the lab only routes their ranges.
    let text = format!("name: \"{name}\"\nnodes:\n{nodes}hosts:\n  - name: {CONTROL}\n");
    Ok(Topology::parse("the cluster", &text)?)
}

/// Makes a directory that only root may look into.
fn private_directory(path: &Path) -> Result<(), ClusterError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| ClusterError::File { path: path.to_owned(), source })
}

fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<(), ClusterError> {
    let directory = path.parent().unwrap_or(path);
    let written = fs::create_dir_all(directory).and_then(|()| fs::write(path, text));
    written.map_err(|source| ClusterError::File { path: path.to_owned(), source })
}
