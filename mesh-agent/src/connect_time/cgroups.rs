//! Finds the cgroups of pods.
//!
//! The kubelet names them by the pod's uid: `pod<uid>` where it manages cgroups by itself, and
//! `kubepods-burstable-pod<uid>.slice`, the uid with `_` for `-`, where systemd does; both below folders of their quality
//! of service, and with more in front where a node runs in a container (kind). A pod that no kubelet made is
//! `pod<namespace>_<name>`, which no uid looks like.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::pods::LocalPod;
use crate::steering::PodCgroup;

/// How far below the root pods are looked for.
const MAX_DEPTH: usize = 8;
/// Most directories looked into: far more than a node's services and pods have, outside of their containers.
const MAX_DIRECTORIES: usize = 16_384;

/// Where this process sees cgroup2: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid systems.
pub fn mount_point() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        // The optional fields in the middle end with a lone dash; the file system's type comes next.
        let (place, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| place.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// The cgroup2 hierarchy at `root`: there, or on hybrid systems in its `unified`. In those of cgroup v1 pods have folders
/// of the same names, which no program can be attached to.
pub fn hierarchy(root: &Path) -> Option<PathBuf> {
    let is_cgroup2 =
        |path: &PathBuf| statfs(path).is_ok_and(|status| status.filesystem_type() == CGROUP2_SUPER_MAGIC);
    [root.to_path_buf(), root.join("unified")].into_iter().find(is_cgroup2)
}

/// The cgroups below `root` of those of `pods` that have one, by the uid of the pod.
pub(super) fn find(root: &Path, pods: &[Arc<LocalPod>]) -> HashMap<Arc<str>, PodCgroup> {
    let mut found = HashMap::new();
    let mut looked_into = 0;
    let mut directories = vec![(root.to_path_buf(), 0)];
    while let Some((directory, depth)) = directories.pop() {
        looked_into += 1;
        if looked_into > MAX_DIRECTORIES || found.len() == pods.len() {
            break;
        }
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let name = entry.file_name();
            let Some(of_pod) = name.to_str().and_then(pod_part) else {
                if depth < MAX_DEPTH {
                    directories.push((entry.path(), depth + 1));
                }
                continue;
            };
            // What is below a pod's is its containers'.
            let owner = pods.iter().find(|pod| is_of(of_pod, pod));
            let cgroup = owner.and_then(|pod| {
                Some((Arc::clone(&pod.uid), PodCgroup::at(&entry.path(), *pod.addresses.first()?)?))
            });
            found.extend(cgroup);
        }
    }
    found
}

/// What stands after `pod` in the name of a pod's cgroup.
fn pod_part(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let part = name.strip_prefix("pod").or_else(|| Some(name.rsplit_once("-pod")?.1))?;
    // `kubepods-pods.slice` and the like are not.
    (part.len() > 1).then_some(part)
}

fn is_of(part: &str, pod: &LocalPod) -> bool {
    match &pod.kubernetes_uid {
        Some(uid) => part.len() == uid.len() && part.replace('_', "-") == **uid,
        None => part.split_once('_') == Some((&pod.namespace, &pod.name)),
    }
}
