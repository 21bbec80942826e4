//! The kernel's side of balancing at connect time: programs in the pods' cgroups, and their maps.
//!
//! The programs are attached to the cgroup of each pod and not at the root: nodes can share a kernel, and the agent's
//! own sockets, like those of everything else on the node, must never be touched. What makes an old table harmless is
//! in the programs: they ask the maps of steering whether both pods are still what they were, and do nothing while no
//! agent listens.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use mesh_common::{Address, LocalEndpoints, ServicePort, Tuple, name};

use super::error::chain;
use super::maps::{collect, ignore_missing, take};
use super::pins::{self, Pins};
use super::programs::Programs;
use super::{State, Steering, SteeringError};

/// A pod's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodCgroup {
    /// Its directory.
    pub path: PathBuf,
    /// Its number in the kernel: the directory's inode number, never given twice.
    pub number: u64,
    /// An address of the pod, by which the kernel finds the rest.
    pub address: IpAddr,
}

impl PodCgroup {
    /// Describes the cgroup at `path`; `None` where there is none.
    pub fn at(path: &Path, address: IpAddr) -> Option<Self> {
        let number = path.metadata().ok()?.ino();
        Some(Self { path: path.to_path_buf(), number, address })
    }
}

/// The services of connections that the kernel has drawn for, for as long as it remembers. Cheap to share; asking is one
/// system call that never waits.
#[derive(Debug, Clone)]
pub struct OpenedTo(Arc<HashMap<MapData, Tuple, ServicePort>>);

impl OpenedTo {
    /// The service address that the connection from `client` to `destination` was opened to. The destination is the
    /// endpoint that the kernel drew, or the service itself where it drew one elsewhere; `None` where it drew none.
    pub fn service(&self, client: SocketAddr, destination: SocketAddr) -> Option<SocketAddr> {
        let tuple = Tuple {
            source: client.ip().into(),
            destination: destination.ip().into(),
            source_port: client.port(),
            destination_port: destination.port(),
        };
        let service = self.0.get(&tuple, 0).ok()?;
        Some(SocketAddr::new(service.address.into(), service.port))
    }
}

/// The maps of the programs, typed.
pub(super) struct ConnectMaps {
    cgroups: HashMap<MapData, u64, Address>,
    services: HashMap<MapData, ServicePort, LocalEndpoints>,
    opened_to: OpenedTo,
}

impl ConnectMaps {
    /// Takes the maps out of the loaded object.
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, SteeringError> {
        Ok(Self {
            cgroups: take(object, name::CGROUPS)?,
            services: take(object, name::SERVICES)?,
            opened_to: OpenedTo(Arc::new(take(object, name::OPENED_TO)?)),
        })
    }
}

/// What the kernel was told.
pub(super) struct Connect {
    maps: ConnectMaps,
    /// What the map of services holds.
    services: BTreeMap<ServicePort, LocalEndpoints>,
    /// What the map of cgroups holds.
    cgroups: BTreeMap<u64, Address>,
    /// Cgroups that this agent's programs are attached to.
    attached: BTreeSet<u64>,
}

impl Connect {
    /// Reads what an agent before left.
    pub(super) fn adopt(maps: ConnectMaps) -> Result<Self, SteeringError> {
        let services = collect(maps.services.iter(), name::SERVICES)?.into_iter().collect();
        let cgroups = collect(maps.cgroups.iter(), name::CGROUPS)?.into_iter().collect();
        Ok(Self { maps, services, cgroups, attached: BTreeSet::new() })
    }

    /// How many entries the maps have that grow with pods and services.
    pub(super) fn entries(&self) -> [(&'static str, usize); 2] {
        [(name::CGROUPS, self.cgroups.len()), (name::SERVICES, self.services.len())]
    }

    fn set_services(&mut self, wanted: BTreeMap<ServicePort, LocalEndpoints>) -> Result<(), SteeringError> {
        let failed = SteeringError::map(name::SERVICES);
        let gone: Vec<_> = self.services.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in gone {
            ignore_missing(self.maps.services.remove(&key)).map_err(&failed)?;
            self.services.remove(&key);
        }
        for (key, endpoints) in wanted {
            if self.services.get(&key) != Some(&endpoints) {
                self.maps.services.insert(key, endpoints, 0).map_err(&failed)?;
                self.services.insert(key, endpoints);
            }
        }
        Ok(())
    }

    /// Attaches the programs to a cgroup, in place of those of an agent before.
    ///
    /// For a moment there are both: the second to run finds an endpoint instead of a service, and leaves that alone.
    fn attach(
        &mut self,
        programs: &mut Programs,
        pins: &Pins,
        cgroup: &PodCgroup,
    ) -> Result<(), SteeringError> {
        let failed = |reason: String| SteeringError::Attach {
            program: "connect4 and others",
            target: cgroup.path.display().to_string(),
            reason,
        };
        if let Some(reason) = programs.no_cgroup_programs() {
            return Err(failed(reason.to_owned()));
        }
        let address = Address::from(cgroup.address);
        if self.cgroups.get(&cgroup.number) != Some(&address) {
            let write = self.maps.cgroups.insert(cgroup.number, address, 0);
            write.map_err(SteeringError::map(name::CGROUPS))?;
            self.cgroups.insert(cgroup.number, address);
        }
        if self.attached.contains(&cgroup.number) {
            return Ok(());
        }
        let directory = File::open(&cgroup.path).map_err(|error| failed(error.to_string()))?;
        let pinned = pins.cgroup(cgroup.number)?;
        for (program, link) in programs.attach_to_cgroup(&directory)? {
            let (pin, next) = (pinned.join(program), pinned.join(format!("{program}-next")));
            // An agent died between the steps below.
            pins::remove(&next)?;
            link.pin(&next).map_err(|error| failed(chain(&error)))?;
            pins::remove(&pin)?;
            pins::rename(&next, &pin)?;
        }
        self.attached.insert(cgroup.number);
        Ok(())
    }

    fn detach(&mut self, pins: &Pins, number: u64) -> Result<(), SteeringError> {
        pins.forget_cgroup(number)?;
        self.attached.remove(&number);
        if self.cgroups.remove(&number).is_some() {
            ignore_missing(self.maps.cgroups.remove(&number)).map_err(SteeringError::map(name::CGROUPS))?;
        }
        Ok(())
    }
}

impl Steering {
    /// Makes these all the services, and the shares of their endpoints on this node, that the kernel knows.
    ///
    /// # Errors
    /// If a map is full; services that are not in it are left to the agent.
    pub fn set_local_endpoints(
        &self,
        services: BTreeMap<ServicePort, LocalEndpoints>,
    ) -> Result<(), SteeringError> {
        self.lock().connect.set_services(services)
    }

    /// Makes these all the cgroups whose processes are balanced at connect time. Says where that failed, by number.
    pub fn set_balanced_cgroups<'a>(
        &self,
        cgroups: impl IntoIterator<Item = &'a PodCgroup>,
    ) -> BTreeMap<u64, SteeringError> {
        let State { connect, attachments, .. } = &mut *self.lock();
        let (programs, pins) = attachments.programs_and_pins();
        let mut wanted = BTreeSet::new();
        let mut errors = BTreeMap::new();
        for cgroup in cgroups {
            wanted.insert(cgroup.number);
            if let Err(error) = connect.attach(programs, pins, cgroup) {
                errors.insert(cgroup.number, error);
            }
        }
        let known: BTreeSet<u64> = connect.cgroups.keys().copied().chain(pins.cgroups()).collect();
        for number in known.difference(&wanted) {
            if let Err(error) = connect.detach(pins, *number) {
                errors.insert(*number, error);
            }
        }
        errors
    }

    /// The services of connections that the kernel has drawn for.
    pub fn opened_to(&self) -> OpenedTo {
        self.lock().connect.maps.opened_to.clone()
    }
}
