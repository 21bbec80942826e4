//! A cgroup for every machine of a lab, where the kernel offers cgroup2: `mesh-lab/<lab>/<node>/pod<namespace>_<name>`, which is
//! also how the agent finds the cgroups of pods that no kubelet runs.
//!
//! Programs are moved in before they run, so cgroup programs see them from their first system call, and `cgroup.kill` ends a whole
//! lab at once, also what has left its process group. Pods are below their node, so that a node's agent can attach to its part.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::machine::Machine;

/// The folder below the mount point that all labs share.
const PARENT: &str = "mesh-lab";
/// How long killed processes may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// A cgroup for processes that are told from all others, such as a node's kubelet. Gone when dropped, with what runs in it.
#[derive(Debug)]
pub struct OwnCgroup(PathBuf);

impl OwnCgroup {
    /// Makes one at the root of the hierarchy. The name gets this process's number.
    ///
    /// # Errors
    /// When no cgroup2 is mounted, or it cannot be made.
    pub fn create(name: &str) -> io::Result<Self> {
        let root = mount_point().ok_or_else(|| io::Error::other("no cgroup2 hierarchy is mounted"))?;
        Self::create_at(root.join(format!("{name}-{}", std::process::id())))
    }

    /// Makes one of this name below that of a node.
    ///
    /// # Errors
    /// When no cgroup2 is mounted, or it cannot be made.
    pub fn create_on(node: &Machine, name: &str) -> io::Result<Self> {
        let root = node.cgroup().ok_or_else(|| io::Error::other("no cgroup2 hierarchy is mounted"))?;
        Self::create_at(root.join(name))
    }

    fn create_at(path: PathBuf) -> io::Result<Self> {
        create(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The kernel's number for it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn number(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.0)?.ino())
    }

    /// Runs a shell script in it, on a machine, and returns what that printed.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn shell(&self, machine: &Machine, script: &str) -> io::Result<String> {
        let script = format!("echo 0 > {}/cgroup.procs; {script}", self.0.display());
        let run = || Command::new("bash").args(["-c", &script]).output();
        let output = machine.namespace().run(run)??;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        // Whatever keeps it is not worth a panic while another may be under way.
        let _ = remove(&self.0);
    }
}

/// The cgroup of a lab, or `None` where no cgroup2 is mounted.
pub(crate) fn lab_root(lab: &str) -> Option<PathBuf> {
    Some(mount_point()?.join(PARENT).join(lab))
}

/// Lets groups below `path` be limited, as kubelets want it: every group above has to hand its controllers down. On hybrid systems
/// there are none here.
pub(crate) fn enable_controllers(path: &Path) -> io::Result<()> {
    let Some(mount_point) = mount_point() else { return Ok(()) };
    let mut groups: Vec<&Path> =
        path.ancestors().take_while(|group| group.starts_with(&mount_point)).collect();
    groups.reverse();
    for group in groups {
        for controller in fs::read_to_string(group.join("cgroup.controllers"))?.split_whitespace() {
            fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"))?;
        }
    }
    Ok(())
}

/// The cgroups of a lab in the hierarchies of cgroup v1, of which hybrid systems have several, and pure cgroup2 systems none.
pub(crate) fn legacy_roots(lab: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let legacy = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (_device, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup").then(|| Path::new(place).join(PARENT).join(lab))
    });
    legacy.collect()
}

/// Makes a cgroup of cgroup v1 below a lab's. A new group of the cpuset hierarchy has no CPU and takes no process until it is told
/// which: those of its parent.
pub(crate) fn create_legacy(lab_root: &Path, path: &Path) -> io::Result<()> {
    create(path)?;
    let parents =
        path.ancestors().take_while(|parent| parent.starts_with(lab_root.parent().unwrap_or(lab_root)));
    let mut inner: Vec<&Path> = parents.collect();
    inner.reverse();
    for group in inner {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (Some(parent), own) = (group.parent(), group.join(file)) else { continue };
            if own.exists() && fs::read_to_string(&own)?.trim().is_empty() {
                fs::write(&own, fs::read_to_string(parent.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid systems.
pub(crate) fn mount_point() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_device, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(place))
    })
}

/// Makes a cgroup and its parents.
pub(crate) fn create(path: &Path) -> io::Result<()> {
    match fs::create_dir_all(path) {
        // Another lab's end has removed the shared parent in between.
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(path),
        result => result,
    }
}

/// The file through which a process puts itself into the cgroup: by writing `0`.
pub(crate) fn entrance(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path.join("cgroup.procs"))
}

/// Kills everything in a cgroup and removes it with all below.
pub(crate) fn remove(root: &Path) -> io::Result<()> {
    if !root.exists() {
        return Ok(());
    }
    fs::write(root.join("cgroup.kill"), "1")?;
    remove_emptied(root)
}

/// Removes a cgroup with all below, whose last processes are about to be gone.
pub(crate) fn remove_emptied(root: &Path) -> io::Result<()> {
    if !root.exists() {
        return Ok(());
    }
    let deadline = Instant::now() + KILL_DEADLINE;
    // Busy until the last process has been torn down.
    while let Err(error) = remove_tree(root) {
        if error.kind() != io::ErrorKind::ResourceBusy || Instant::now() > deadline {
            return Err(error);
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// Removes the folder that all labs share; refused while there are others.
pub(crate) fn remove_parent(root: &Path) {
    if let Some(parent) = root.parent() {
        let _ = fs::remove_dir(parent);
    }
}

/// The files of a cgroup cannot be removed, only its directories, the deepest first.
fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
