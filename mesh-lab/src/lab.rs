//! A lab: built from a topology, gone with its handle.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cgroup;
use crate::machine::{Kind, Machine};
use crate::mounts::MountNamespace;
use crate::netns::Namespace;
use crate::network::{self, NetworkError};
use crate::state::{self, ProcessId, Record};
use crate::topology::{Addresses, Node, Pod, SWITCH, Topology, TopologyError};

/// Why a lab cannot be built, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A lab of this name is there.
    #[error("the lab {name} is there already ({}): remove it with `mesh-lab down {name}` or use another name", owned(*owner))]
    Exists {
        /// The name.
        name: String,
        /// The process it belongs to; `None` for a kept lab.
        owner: Option<i32>,
    },
    /// There is no such lab.
    #[error("there is no lab {name}: `mesh-lab list` shows those that are there")]
    Unknown {
        /// The name.
        name: String,
    },
    /// The lab has no such machine.
    #[error("the lab {lab} has no {what} {name}; it has {known}")]
    NoMachine {
        /// The lab.
        lab: String,
        /// The kind of machine looked for.
        what: &'static str,
        /// The name looked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A pod cannot be added to the topology.
    #[error("cannot add the pod")]
    Pod(#[source] TopologyError),
    /// Somebody else's network namespace has a name that the lab needs.
    #[error(
        "the network namespace {name} is there and belongs to no lab: remove it with `ip netns del {name}` or use another lab name"
    )]
    NamespaceTaken {
        /// The namespace.
        name: String,
    },
    /// A namespace or a cgroup cannot be made.
    #[error("cannot make or open {what} (labs need root)")]
    Create {
        /// What.
        what: String,
        /// What the system says.
        source: io::Error,
    },
    /// The machine cannot be wired.
    #[error("cannot wire {machine}")]
    Network {
        /// The machine.
        machine: String,
        /// What went wrong.
        source: NetworkError,
    },
    /// A part cannot be removed.
    #[error("cannot remove {what}")]
    Remove {
        /// What.
        what: String,
        /// What the system says.
        source: io::Error,
    },
    /// The record of a lab cannot be read or written.
    #[error("cannot use the record {path}")]
    State {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl LabError {
    pub(crate) fn state(path: &Path, source: io::Error) -> Self {
        Self::State { path: path.to_owned(), source }
    }
}

fn owned(owner: Option<i32>) -> String {
    owner.map_or_else(|| "kept".to_owned(), |pid| format!("of process {pid}"))
}

/// A running lab. Dropping it ends every program in it and removes all of it, unless it was [kept](Lab::keep).
#[derive(Debug)]
pub struct Lab {
    machines: BTreeMap<String, Machine>,
    registry: Arc<Registry>,
    topology: Topology,
    /// Whether the end of this handle is the end of the lab.
    owned: bool,
}

impl Lab {
    /// Builds a lab, and first removes those that crashed processes have left.
    ///
    /// # Errors
    /// When the name is in use, or something cannot be made; what was made until then is removed again.
    pub fn up(topology: Topology) -> Result<Self, LabError> {
        for name in state::remove_stale()? {
            tracing::info!(lab = name, "removed a lab that its owner has left behind");
        }
        let namespaces = std::iter::once(SWITCH)
            .chain(topology.machine_names())
            .map(|name| namespace_name(&topology, name))
            .collect();
        let record = Record {
            owner: ProcessId::own(),
            namespaces,
            cgroup: cgroup::lab_root(&topology.name),
            legacy_cgroups: cgroup::legacy_roots(&topology.name),
            processes: Vec::new(),
            topology: topology.clone(),
        };
        record.reserve()?;
        let registry = Arc::new(Registry::new(&record));
        // From here on, dropping it removes what there is.
        let mut lab = Self { machines: BTreeMap::new(), registry, topology, owned: true };
        lab.build()?;
        Ok(lab)
    }

    /// Opens a lab that was kept. Dropping the handle leaves it as it is.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn open(name: &str) -> Result<Self, LabError> {
        let record = state::load(name)?;
        let topology = record.topology.clone();
        let mut lab = Self {
            machines: BTreeMap::new(),
            registry: Arc::new(Registry::new(&record)),
            topology,
            owned: false,
        };
        lab.add_machines(Namespace::open)?;
        Ok(lab)
    }

    /// Removes the lab, and says what could not be removed.
    ///
    /// # Errors
    /// When something could not be removed.
    pub fn down(mut self) -> Result<(), LabError> {
        self.owned = false;
        state::remove(self.name())
    }

    /// Leaves the lab when this handle and this process are gone; [`state::remove`] or `mesh-lab down` ends it.
    ///
    /// # Errors
    /// When that cannot be recorded.
    pub fn keep(mut self) -> Result<(), LabError> {
        self.give_to(None)
    }

    /// Records another owner, whose end makes the lab stale; none for a lab that shall stay.
    pub(crate) fn give_to(&mut self, owner: Option<ProcessId>) -> Result<(), LabError> {
        state::update(self.name(), |record| record.owner = owner)?;
        self.owned = false;
        Ok(())
    }

    /// Gives a machine a view of the file systems of its own, in which `furnish` mounts what only it shall see.
    pub(crate) fn isolate_mounts(
        &mut self,
        machine: &str,
        furnish: impl FnOnce() -> io::Result<()> + Send,
    ) -> Result<(), LabError> {
        let path = self.mounts_path(machine);
        let mounts = MountNamespace::create(&path, furnish)
            .map_err(|source| LabError::Create { what: format!("{machine}'s file systems"), source })?;
        if let Some(machine) = self.machines.get_mut(machine) {
            machine.with_mounts(mounts);
        }
        Ok(())
    }

    /// Makes one machine the way out of another; what is for nobody ends there.
    pub(crate) fn route_the_rest(&self, machine: &str, gateway: &str) -> Result<(), LabError> {
        let via = self.machine(gateway)?.addresses();
        network::route_the_rest(self.machine(machine)?.namespace(), via).map_err(failed(machine))
    }

    /// The file that keeps a machine's view of the file systems, if it has one of its own.
    fn mounts_path(&self, machine: &str) -> PathBuf {
        self.log_directory().join("mounts").join(machine)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.topology.name
    }

    /// What it was built from, with every address.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Where the programs' logs are, until the lab is removed.
    #[must_use]
    pub fn log_directory(&self) -> PathBuf {
        state::log_directory(self.name())
    }

    /// The node of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Machine, LabError> {
        self.find("node", name, |kind| *kind == Kind::Node)
    }

    /// The pod of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, name: &str) -> Result<&Machine, LabError> {
        self.find("pod", name, |kind| matches!(kind, Kind::Pod { .. }))
    }

    /// The host outside the mesh of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn host(&self, name: &str) -> Result<&Machine, LabError> {
        self.find("host", name, |kind| *kind == Kind::Host)
    }

    /// The machine of this name, whatever it is.
    ///
    /// # Errors
    /// When there is none.
    pub fn machine(&self, name: &str) -> Result<&Machine, LabError> {
        self.find("machine", name, |_| true)
    }

    /// Adds a pod to a node of the running lab, with the next free addresses.
    ///
    /// # Errors
    /// When there is no such node, the name is taken, or something cannot be made.
    pub fn add_pod(&mut self, node: &str, pod: &str) -> Result<&Machine, LabError> {
        self.node(node)?;
        let mut topology = self.topology.clone();
        let (node, pod) = topology.add_pod(node, pod).map_err(LabError::Pod)?;
        let full_name = namespace_name(&self.topology, &pod.name);
        if Namespace::exists(&full_name) {
            return Err(LabError::NamespaceTaken { name: full_name });
        }
        state::update(self.name(), |record| {
            record.namespaces.push(full_name);
            record.topology = topology.clone();
        })?;
        let machine = self.pod_machine(&node, &pod, Namespace::create)?;
        make_cgroup(&machine)?;
        network::connect_pod(&node, self.node(&node.name)?.namespace(), &pod, machine.namespace())
            .map_err(failed(&pod.name))?;
        self.topology = topology;
        self.machines.insert(pod.name.clone(), machine);
        self.pod(&pod.name)
    }

    /// Removes a pod from the running lab, and kills what runs in its cgroup.
    ///
    /// # Errors
    /// When there is no such pod, or a part of it cannot be removed.
    pub fn remove_pod(&mut self, name: &str) -> Result<(), LabError> {
        let pod = self.pod(name)?;
        if let Some(cgroup) = pod.cgroup() {
            cgroup::remove(cgroup)
                .map_err(|source| LabError::Remove { what: cgroup.display().to_string(), source })?;
        }
        if let Kind::Pod { node, device, .. } = pod.kind() {
            network::disconnect_pod(self.node(node)?.namespace(), device).map_err(failed(node))?;
        }
        let namespace = pod.namespace().name().to_owned();
        Namespace::remove(&namespace)
            .map_err(|source| LabError::Remove { what: format!("namespace {namespace}"), source })?;
        self.machines.remove(name);
        self.topology.remove_pod(name);
        let topology = self.topology.clone();
        state::update(self.name(), |record| {
            record.namespaces.retain(|other| *other != namespace);
            record.topology = topology;
        })
    }

    /// All machines, by name.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.machines.values()
    }

    fn find(
        &self,
        what: &'static str,
        name: &str,
        wanted: impl Fn(&Kind) -> bool,
    ) -> Result<&Machine, LabError> {
        self.machines.get(name).filter(|machine| wanted(machine.kind())).ok_or_else(|| {
            let known: Vec<&str> =
                self.machines().filter(|machine| wanted(machine.kind())).map(Machine::name).collect();
            LabError::NoMachine {
                lab: self.name().to_owned(),
                what,
                name: name.to_owned(),
                known: known.join(", "),
            }
        })
    }

    fn build(&mut self) -> Result<(), LabError> {
        let logs = self.log_directory();
        std::fs::create_dir_all(&logs).map_err(|error| LabError::state(&logs, error))?;
        let switch = Namespace::create(&namespace_name(&self.topology, SWITCH))
            .map_err(|source| LabError::Create { what: "the switch's namespace".to_owned(), source })?;
        self.add_machines(Namespace::create)?;
        self.machines.values().try_for_each(make_cgroup)?;
        self.wire(&switch)
    }

    /// Makes or opens the namespaces of the topology's machines.
    fn add_machines(&mut self, namespace: impl Fn(&str) -> io::Result<Namespace>) -> Result<(), LabError> {
        for node in &self.topology.nodes {
            for pod in &node.pods {
                let machine = self.pod_machine(node, pod, &namespace)?;
                self.machines.insert(pod.name.clone(), machine);
            }
            let machine = self.make(&node.name, Kind::Node, node.uplink, &[&node.name], &namespace)?;
            self.machines.insert(node.name.clone(), machine);
        }
        for host in &self.topology.hosts {
            let machine = self.make(&host.name, Kind::Host, host.addresses, &[&host.name], &namespace)?;
            self.machines.insert(host.name.clone(), machine);
        }
        Ok(())
    }

    fn pod_machine(
        &self,
        node: &Node,
        pod: &Pod,
        namespace: impl Fn(&str) -> io::Result<Namespace>,
    ) -> Result<Machine, LabError> {
        let kind = Kind::Pod {
            node: node.name.clone(),
            namespace: pod.namespace.clone(),
            device: pod.device.clone(),
        };
        let cgroup = format!("pod{}_{}", pod.namespace, pod.name);
        self.make(&pod.name, kind, pod.addresses, &[&node.name, &cgroup], namespace)
    }

    /// Makes or opens the namespace of one machine, and names its cgroup.
    fn make(
        &self,
        name: &str,
        kind: Kind,
        addresses: Addresses,
        cgroup: &[&str],
        namespace: impl Fn(&str) -> io::Result<Namespace>,
    ) -> Result<Machine, LabError> {
        let full_name = namespace_name(&self.topology, name);
        let namespace = namespace(&full_name)
            .map_err(|source| LabError::Create { what: format!("the namespace {full_name}"), source })?;
        let cgroup = self.registry.cgroup.as_ref().map(|root| root.join(cgroup.iter().collect::<PathBuf>()));
        let mut machine = Machine::new(name, kind, addresses, namespace, cgroup, Arc::clone(&self.registry));
        match MountNamespace::open(&self.mounts_path(name)) {
            Ok(mounts) => machine.with_mounts(mounts),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(LabError::Create { what: format!("{name}'s file systems"), source });
            }
        }
        Ok(machine)
    }

    fn wire(&self, switch: &Namespace) -> Result<(), LabError> {
        let topology = &self.topology;
        let mut uplinks = Vec::new();
        for name in
            topology.nodes.iter().map(|node| &node.name).chain(topology.hosts.iter().map(|host| &host.name))
        {
            uplinks.push((name.clone(), self.machine(name)?.namespace()));
        }
        network::connect_switch(switch, &uplinks).map_err(failed(SWITCH))?;
        for node in &topology.nodes {
            let namespace = self.node(&node.name)?.namespace();
            network::connect_node(topology, node, namespace).map_err(failed(&node.name))?;
            for pod in &node.pods {
                network::connect_pod(node, namespace, pod, self.pod(&pod.name)?.namespace())
                    .map_err(failed(&pod.name))?;
            }
        }
        for host in &topology.hosts {
            network::connect_host(topology, host, self.host(&host.name)?.namespace())
                .map_err(failed(&host.name))?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        if let Err(error) = state::remove(self.name()) {
            tracing::error!(
                lab = self.name(),
                error = &error as &dyn std::error::Error,
                "the lab is not all gone; `mesh-lab down` tries again"
            );
        }
    }
}

fn failed(machine: &str) -> impl FnOnce(NetworkError) -> LabError + use<> {
    let machine = machine.to_owned();
    move |source| LabError::Network { machine, source }
}

fn make_cgroup(machine: &Machine) -> Result<(), LabError> {
    let Some(path) = machine.cgroup() else { return Ok(()) };
    cgroup::create(path).map_err(|source| LabError::Create { what: path.display().to_string(), source })
}

fn namespace_name(topology: &Topology, machine: &str) -> String {
    format!("{}-{machine}", topology.name)
}

/// What the machines of a lab share: its record on disk, and the names of its logs.
#[derive(Debug)]
pub(crate) struct Registry {
    lab: String,
    cgroup: Option<PathBuf>,
    logs: AtomicU32,
}

impl Registry {
    fn new(record: &Record) -> Self {
        Self { lab: record.topology.name.clone(), cgroup: record.cgroup.clone(), logs: AtomicU32::new(0) }
    }

    /// Records a program, so that it is found after a crash.
    pub(crate) fn started(&self, process: ProcessId) {
        self.update(|record| {
            record.processes.retain(|other| other.alive());
            record.processes.push(process);
        });
    }

    /// Forgets a program that has ended.
    pub(crate) fn ended(&self, process: ProcessId) {
        self.update(|record| record.processes.retain(|other| *other != process));
    }

    /// The file for what the next program of a machine says.
    pub(crate) fn next_log(&self, machine: &str, program: &str) -> PathBuf {
        let program = Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number = self.logs.fetch_add(1, Ordering::Relaxed);
        state::log_directory(&self.lab)
            .join(format!("{machine}-{program}-{}-{number}.log", std::process::id()))
    }

    fn update(&self, change: impl FnOnce(&mut Record)) {
        match state::update(&self.lab, change) {
            // Without a record the lab is gone, and its programs with it.
            Ok(()) | Err(LabError::Unknown { .. }) => {}
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the record of the lab does not tell which programs run"
            ),
        }
    }
}
