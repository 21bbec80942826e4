//! A machine of a lab: a node, a pod or a host. Each is a network namespace, and a cgroup where there are any.

use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::cgroup;
use crate::lab::Registry;
use crate::mounts::MountNamespace;
use crate::netns::Namespace;
use crate::process::{Process, ProcessError, Program};
use crate::state::ProcessId;
use crate::topology::Addresses;

/// The group of programs that have no group of their own.
const OTHERS: &str = "others";

/// What a machine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A node.
    Node,
    /// A pod of a node.
    Pod {
        /// The node's name.
        node: String,
        /// Its Kubernetes namespace.
        namespace: String,
        /// Its veth on the node's side.
        device: String,
    },
    /// A machine outside the mesh.
    Host,
}

/// A place to run programs and sockets in.
#[derive(Debug)]
pub struct Machine {
    name: String,
    kind: Kind,
    addresses: Addresses,
    namespace: Namespace,
    cgroup: Option<PathBuf>,
    mounts: Option<MountNamespace>,
    registry: Arc<Registry>,
}

impl Machine {
    pub(crate) fn new(
        name: &str,
        kind: Kind,
        addresses: Addresses,
        namespace: Namespace,
        cgroup: Option<PathBuf>,
        registry: Arc<Registry>,
    ) -> Self {
        Self { name: name.to_owned(), kind, addresses, namespace, cgroup, mounts: None, registry }
    }

    /// Gives it a view of the file systems of its own, which later programs are born in.
    pub(crate) fn with_mounts(&mut self, mounts: MountNamespace) {
        self.mounts = Some(mounts);
    }

    /// Its name in the topology.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Its addresses: a pod's or a host's own, a node's on the uplink.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.addresses.v4
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.addresses.v6
    }

    /// Its address of the family that the lab prefers: IPv4 where there is one.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.addresses.iter().next()
    }

    /// Its network namespace: closures, futures and sockets in it.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its cgroup; `None` where no cgroup2 is mounted.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_deref()
    }

    /// A program to be run here.
    ///
    /// # Errors
    /// When the machine's namespace or cgroup cannot be used.
    pub fn program(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Program, ProcessError> {
        Program::new(self, &self.registry, Command::new(program))
    }

    /// Starts a command here, with its output in a log file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: Command) -> Result<Process, ProcessError> {
        Program::new(self, &self.registry, command)?.spawn()
    }

    /// Moves the calling thread here, with its process's cgroup, for good. Before `exec`, in a process with no other thread.
    ///
    /// # Errors
    /// When a namespace or the cgroup cannot be entered.
    pub fn enter(&self) -> io::Result<()> {
        if let Some(process) = ProcessId::own() {
            self.registry.started(process);
        }
        self.namespace.enter()?;
        self.mounts.as_ref().map_or(Ok(()), MountNamespace::enter)?;
        self.cgroup_entrance()?.map_or(Ok(()), |mut entrance| entrance.write_all(b"0"))
    }

    /// The entrance to the cgroup that programs are born in: the machine's own, or, where groups of their own are made below that,
    /// another beside those. cgroup2 wants processes in groups without groups below only.
    pub(crate) fn cgroup_entrance(&self) -> io::Result<Option<File>> {
        let Some(own) = self.cgroup() else { return Ok(None) };
        if self.mounts.is_none() {
            return cgroup::entrance(own).map(Some);
        }
        let others = own.join(OTHERS);
        cgroup::create(&others)?;
        cgroup::entrance(&others).map(Some)
    }

    /// A descriptor of the namespace that outlives this handle.
    pub(crate) fn namespace_file(&self) -> io::Result<File> {
        Ok(File::from(self.namespace.as_fd().try_clone_to_owned()?))
    }

    /// The same of its view of the file systems; `None` if it has none of its own.
    pub(crate) fn mounts_file(&self) -> io::Result<Option<File>> {
        let descriptor =
            self.mounts.as_ref().map(|mounts| mounts.as_fd().try_clone_to_owned()).transpose()?;
        Ok(descriptor.map(File::from))
    }
}
