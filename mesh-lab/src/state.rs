//! The record of a lab in `/run/mesh-lab`: written before anything is made, so that everything can be found and removed after a crash.
//!
//! Only what a record names is ever removed. A lab is stale when it was not kept on purpose and the process that owns it is gone;
//! processes are told from later ones with the same id by their start time.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::lab::LabError;
use crate::mounts::unmount_below;
use crate::netns::Namespace;
use crate::topology::Topology;

const DIRECTORY: &str = "/run/mesh-lab";
/// What is too large for `/run`, which may be kept in memory.
const DATA_DIRECTORY: &str = "/var/cache/mesh-lab";

/// Everything a lab has made outside of its own namespaces.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// What was built.
    pub topology: Topology,
    /// The process whose end makes the lab stale; `None` for a lab that was kept on purpose.
    pub owner: Option<ProcessId>,
    /// Names of its network namespaces.
    pub namespaces: Vec<String>,
    /// Its cgroup, where the kernel has cgroup2.
    pub cgroup: Option<PathBuf>,
    /// What container runtimes may make in its name in the hierarchies of cgroup v1, where the system still has them.
    #[serde(default)]
    pub legacy_cgroups: Vec<PathBuf>,
    /// Programs started in it.
    pub processes: Vec<ProcessId>,
}

/// A process that cannot be taken for a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process id.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
}

impl ProcessId {
    /// Identifies a process that has not been waited for; `None` if there is none.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self::and_state(pid)?.0)
    }

    /// A process and the letter of its state.
    fn and_state(pid: i32) -> Option<(Self, String)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name in parentheses and may itself hold blanks and parentheses; the state is the third
        // and the start time the 22nd.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        let state = fields.next()?.to_owned();
        Some((Self { pid, started: fields.nth(18)?.parse().ok()? }, state))
    }

    /// Identifies this process.
    pub(crate) fn own() -> Option<Self> {
        Self::of(Pid::this().as_raw())
    }

    /// Whether it still runs. A zombie does not: only its parent has not taken notice yet.
    #[must_use]
    pub fn alive(self) -> bool {
        Self::and_state(self.pid)
            .is_some_and(|(process, state)| process == self && state != "Z" && state != "X")
    }
}

impl Record {
    /// Whether its owner has died without removing it.
    #[must_use]
    pub fn stale(&self) -> bool {
        self.owner.is_some_and(|owner| !owner.alive())
    }

    /// Claims the lab's name and writes the record, before anything is made.
    pub(crate) fn reserve(&self) -> Result<(), LabError> {
        let name = &self.topology.name;
        let _lock = lock()?;
        match load(name) {
            Ok(other) if other.stale() => other.remove_all()?,
            Ok(other) => {
                return Err(LabError::Exists {
                    name: name.clone(),
                    owner: other.owner.map(|owner| owner.pid),
                });
            }
            Err(LabError::Unknown { .. }) => {}
            Err(error) => return Err(error),
        }
        if let Some(taken) = self.namespaces.iter().find(|name| Namespace::exists(name)) {
            return Err(LabError::NamespaceTaken { name: taken.clone() });
        }
        self.store()
    }

    /// Replaces the record on disk in one step.
    fn store(&self) -> Result<(), LabError> {
        let path = path(&self.topology.name);
        let draft = path.with_extension("new");
        let text = serde_json::to_vec_pretty(self).map_err(|error| LabError::state(&path, error.into()))?;
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &path))
            .map_err(|error| LabError::state(&path, error))
    }

    /// Ends every program and removes everything that the record names, and then the record.
    fn remove_all(&self) -> Result<(), LabError> {
        let name = &self.topology.name;
        for process in self.processes.iter().filter(|process| process.alive()) {
            // Errors mean that it leads no group, or has just ended.
            let pid = Pid::from_raw(process.pid);
            let _ = killpg(pid, Signal::SIGKILL);
            let _ = kill(pid, Signal::SIGKILL);
        }
        if let Some(root) = &self.cgroup {
            cgroup::remove(root)
                .map_err(|source| LabError::Remove { what: root.display().to_string(), source })?;
            cgroup::remove_parent(root);
        }
        for root in &self.legacy_cgroups {
            cgroup::remove_emptied(root)
                .map_err(|source| LabError::Remove { what: root.display().to_string(), source })?;
            cgroup::remove_parent(root);
        }
        for namespace in &self.namespaces {
            Namespace::remove(namespace)
                .map_err(|source| LabError::Remove { what: format!("namespace {namespace}"), source })?;
        }
        let (logs, data) = (log_directory(name), data_directory(name));
        for directory in [&logs, &data] {
            unmount_below(directory).map_err(|source| LabError::Remove {
                what: format!("what is mounted in {}", directory.display()),
                source,
            })?;
        }
        for gone in [fs::remove_dir_all(&logs), fs::remove_dir_all(&data), fs::remove_file(path(name))] {
            match gone {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(LabError::state(&logs, error));
                }
                _ => {}
            }
        }
        // Refused while other labs have something there.
        let _ = fs::remove_dir(DATA_DIRECTORY);
        Ok(())
    }
}

/// Where the programs of a lab write what they say.
pub(crate) fn log_directory(lab: &str) -> PathBuf {
    Path::new(DIRECTORY).join(lab)
}

/// Where a lab keeps what is large.
pub(crate) fn data_directory(lab: &str) -> PathBuf {
    Path::new(DATA_DIRECTORY).join(lab)
}

/// The record of a lab.
///
/// # Errors
/// When there is no such lab, or its record cannot be read.
pub fn load(name: &str) -> Result<Record, LabError> {
    let path = path(name);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(LabError::Unknown { name: name.to_owned() });
        }
        Err(error) => return Err(LabError::state(&path, error)),
    };
    serde_json::from_slice(&text).map_err(|error| LabError::state(&path, error.into()))
}

/// The records of all labs on this machine, by name.
///
/// # Errors
/// When a record cannot be read.
pub fn list() -> Result<Vec<Record>, LabError> {
    let directory = Path::new(DIRECTORY);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(LabError::state(directory, error)),
    };
    let mut records = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| LabError::state(directory, error))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match load(&path.file_stem().unwrap_or_default().to_string_lossy()) {
            // Removed by its owner since the directory was read.
            Err(LabError::Unknown { .. }) => {}
            result => records.push(result?),
        }
    }
    records.sort_by(|one, other| one.topology.name.cmp(&other.topology.name));
    Ok(records)
}

/// Changes the record of a lab.
pub(crate) fn update(name: &str, change: impl FnOnce(&mut Record)) -> Result<(), LabError> {
    let _lock = lock()?;
    let mut record = load(name)?;
    change(&mut record);
    record.store()
}

/// Removes a lab, whoever owns it.
///
/// # Errors
/// When there is no such lab, or something of it cannot be removed; the record stays then.
pub fn remove(name: &str) -> Result<(), LabError> {
    let _lock = lock()?;
    load(name)?.remove_all()
}

/// Removes the labs whose owners have died, and says which.
///
/// # Errors
/// When something cannot be removed.
pub fn remove_stale() -> Result<Vec<String>, LabError> {
    let _lock = lock()?;
    let mut removed = Vec::new();
    for record in list()?.into_iter().filter(Record::stale) {
        record.remove_all()?;
        removed.push(record.topology.name);
    }
    Ok(removed)
}

/// Serialises the processes that claim names or clean up; the kernel opens the lock of a process that dies.
fn lock() -> Result<File, LabError> {
    let directory = Path::new(DIRECTORY);
    let open = || -> io::Result<File> {
        fs::create_dir_all(directory)?;
        let file = File::open(directory)?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(|error| LabError::state(directory, error))
}

fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{name}.json"))
}
