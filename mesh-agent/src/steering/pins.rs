//! Where kernel objects are pinned.
//!
//! ```text
//! <bpffs>/mesh-agent-<node>/
//!     maps-<abi>/PODS ...       the maps; another ABI has another directory
//!     links/steer-<ifindex>     one for each device, with tcx
//!     links/guard-<ifindex>     one for each device of a pod that is or was enrolled, with tcx
//!     links/deliver-<ifindex>   one for each device of the agent, with tcx
//!     clsact-filter/<ifindex>/  an empty directory, without tcx: our filter is there
//!     clsact-guard/<ifindex>/   the same for the filter of `guard`
//!     clsact-deliver/<ifindex>/ the same for the filter of `deliver`
//!     clsact-qdisc/<ifindex>/   an empty directory: and the queueing discipline is ours to remove
//!     cgroups/<number>/connect4 ...    links of one pod's cgroup
//! ```

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{FsType, statfs};

use super::SteeringError;
use super::programs::Hook;

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS: FsType = FsType(0xcafe_4a11);

const MAPS: &str = "maps-";
const LINKS: &str = "links";
const CLSACT_FILTERS: &str = "clsact-filter";
const CLSACT_GUARDS: &str = "clsact-guard";
const CLSACT_DELIVERIES: &str = "clsact-deliver";
const CLSACT_QDISCS: &str = "clsact-qdisc";
const CGROUPS: &str = "cgroups";

/// The pin directory of this agent.
#[derive(Debug, Clone)]
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Makes the directory ready.
    pub(super) fn open(root: &Path) -> Result<Self, SteeringError> {
        let pins = Self { root: root.to_path_buf() };
        let parent = root.parent().unwrap_or(root);
        match statfs(parent) {
            Ok(status) if status.filesystem_type() == BPF_FS => {}
            _ => return Err(SteeringError::NotBpfFs(parent.to_path_buf())),
        }
        let notes = [CLSACT_FILTERS, CLSACT_GUARDS, CLSACT_DELIVERIES, CLSACT_QDISCS]
            .map(|what| pins.root.join(what));
        for directory in [pins.maps(), pins.links()].into_iter().chain(notes) {
            fs::create_dir_all(&directory).map_err(failed("make", &directory))?;
        }
        Ok(pins)
    }

    /// The directory as it may be, without making anything.
    pub(super) fn existing(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    /// Directory of the maps of this ABI.
    pub(super) fn maps(&self) -> PathBuf {
        self.root.join(format!("{MAPS}{}-{:08x}", mesh_common::ABI_VERSION, mesh_common::LAYOUT))
    }

    /// Pin of the link of a program to a device.
    pub(super) fn device(&self, hook: Hook, index: u32) -> PathBuf {
        self.links().join(format!("{}-{index}", hook.program()))
    }

    /// Devices that a program has a pinned link to.
    pub(super) fn devices(&self, hook: Hook) -> Vec<u32> {
        let of_hook = |name: &String| name.strip_prefix(hook.program())?.strip_prefix('-')?.parse().ok();
        names(&self.links()).iter().filter_map(of_hook).collect()
    }

    /// Remembers that a device has the clsact filter of a program.
    pub(super) fn note_clsact_filter(&self, hook: Hook, index: u32) -> Result<(), SteeringError> {
        self.note(filters(hook), index)
    }

    /// Devices with the clsact filter of a program.
    pub(super) fn clsact_filters(&self, hook: Hook) -> Vec<u32> {
        self.noted(filters(hook))
    }

    /// Remembers that the clsact queueing discipline of a device is ours.
    pub(super) fn note_clsact_qdisc(&self, index: u32) -> Result<(), SteeringError> {
        self.note(CLSACT_QDISCS, index)
    }

    /// Devices whose clsact queueing discipline is ours.
    pub(super) fn clsact_qdiscs(&self) -> Vec<u32> {
        self.noted(CLSACT_QDISCS)
    }

    fn note(&self, what: &str, index: u32) -> Result<(), SteeringError> {
        let note = self.root.join(what).join(index.to_string());
        fs::create_dir_all(&note).map_err(failed("make", &note))
    }

    fn noted(&self, what: &str) -> Vec<u32> {
        names(&self.root.join(what)).iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// Removes what is pinned or noted for a device, which detaches tcx programs.
    pub(super) fn forget_device(&self, index: u32) -> Result<(), SteeringError> {
        Hook::ALL.into_iter().try_for_each(|hook| self.forget_program(hook, index))?;
        self.forget_note(CLSACT_QDISCS, index)
    }

    /// The same for one program.
    pub(super) fn forget_program(&self, hook: Hook, index: u32) -> Result<(), SteeringError> {
        remove(&self.device(hook, index))?;
        self.forget_note(filters(hook), index)
    }

    fn forget_note(&self, what: &str, index: u32) -> Result<(), SteeringError> {
        let note = self.root.join(what).join(index.to_string());
        ignore_missing(fs::remove_dir(&note)).map_err(failed("remove", &note))
    }

    /// Directory of the links of a cgroup, which is made.
    pub(super) fn cgroup(&self, number: u64) -> Result<PathBuf, SteeringError> {
        let directory = self.root.join(CGROUPS).join(number.to_string());
        fs::create_dir_all(&directory).map_err(failed("make", &directory))?;
        Ok(directory)
    }

    /// Cgroups that have links.
    pub(super) fn cgroups(&self) -> Vec<u64> {
        names(&self.root.join(CGROUPS)).iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// Removes the links of a cgroup.
    pub(super) fn forget_cgroup(&self, number: u64) -> Result<(), SteeringError> {
        remove_tree(&self.root.join(CGROUPS).join(number.to_string()))
    }

    /// Removes the maps of other ABIs. To be called when no program uses them any more.
    pub(super) fn remove_other_maps(&self) -> Result<(), SteeringError> {
        let ours = self.maps();
        let others = names(&self.root).into_iter().filter(|name| name.starts_with(MAPS));
        for other in others.map(|name| self.root.join(name)).filter(|path| *path != ours) {
            remove_tree(&other)?;
        }
        Ok(())
    }

    /// Removes everything, and says what that was.
    pub(super) fn remove_all(&self) -> Result<Vec<PathBuf>, SteeringError> {
        if !self.root.exists() {
            return Ok(Vec::new());
        }
        // Links first: a program must not outlive the maps' names by more than this.
        remove_tree(&self.root.join(CGROUPS))?;
        remove_tree(&self.links())?;
        remove_tree(&self.root)?;
        Ok(vec![self.root.clone()])
    }

    fn links(&self) -> PathBuf {
        self.root.join(LINKS)
    }
}

/// Where clsact filters of a program are noted.
fn filters(hook: Hook) -> &'static str {
    match hook {
        Hook::Steer => CLSACT_FILTERS,
        Hook::Guard => CLSACT_GUARDS,
        Hook::Deliver => CLSACT_DELIVERIES,
    }
}

/// Removes a pin, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), SteeringError> {
    ignore_missing(fs::remove_file(path)).map_err(failed("remove", path))
}

/// Gives a pin another name.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), SteeringError> {
    fs::rename(from, to).map_err(failed("rename", from))
}

fn remove_tree(path: &Path) -> Result<(), SteeringError> {
    ignore_missing(fs::remove_dir_all(path)).map_err(failed("remove", path))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SteeringError {
    let path = path.to_path_buf();
    move |source| SteeringError::Pin { action, path, source }
}

/// Names in a directory; none if it is not there.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
