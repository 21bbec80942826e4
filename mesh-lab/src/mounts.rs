//! File systems that a lab has mounted in its own directory, and views of all file systems that only one machine has.

use std::ffi::{CStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

const NO_PATH: Option<&CStr> = None;

/// A mount namespace: what is mounted in it is seen by nobody else, and gone with it. A file keeps it, as `ip netns` keeps network
/// namespaces; it ends when that is unmounted and no program is in it any more.
#[derive(Debug)]
pub(crate) struct MountNamespace {
    file: File,
}

impl MountNamespace {
    /// Makes a namespace out of this process's own, kept by the file `path`, and mounts there what `furnish` does.
    ///
    /// # Errors
    /// When the kernel refuses, or `furnish` fails; nothing is kept then.
    pub(crate) fn create(path: &Path, furnish: impl FnOnce() -> io::Result<()> + Send) -> io::Result<Self> {
        private_directory(path.parent().unwrap_or(Path::new("/")))?;
        File::create(path)?;
        thread::scope(|scope| {
            let (made, making) = mpsc::channel();
            let (kept, keeping) = mpsc::channel::<()>();
            let maker = scope.spawn(move || -> io::Result<()> {
                unshare(CloneFlags::CLONE_NEWNS)?;
                // Nothing comes in from outside or goes out; but what a container runtime mounts inside reaches its containers.
                let all = |flag| mount(NO_PATH, "/", NO_PATH, MsFlags::MS_REC | flag, NO_PATH);
                all(MsFlags::MS_PRIVATE)?;
                all(MsFlags::MS_SHARED)?;
                furnish()?;
                // The namespace lives with this thread until the file keeps it. Nobody listens: no file will.
                let _ = made.send(nix::unistd::gettid());
                let _ = keeping.recv();
                Ok(())
            });
            if let Ok(thread) = making.recv() {
                let namespace = format!("/proc/self/task/{thread}/ns/mnt");
                let bound = mount(Some(namespace.as_str()), path, NO_PATH, MsFlags::MS_BIND, NO_PATH);
                drop(kept);
                bound?;
            }
            match maker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })?;
        Self::open(path)
    }

    /// Opens the namespace that a file keeps.
    ///
    /// # Errors
    /// When there is no such file.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)? })
    }

    /// Moves the calling thread into the namespace, for good.
    ///
    /// # Errors
    /// When the thread shares its root and working directory with others.
    pub(crate) fn enter(&self) -> io::Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNS).map_err(io::Error::from)
    }
}

impl AsFd for MountNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Makes a directory whose mounts are not copied into other namespaces: the kernel refuses to bind a mount namespace where it could
/// come to be inside of itself.
fn private_directory(path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    mount(Some(path), path, NO_PATH, MsFlags::MS_BIND, NO_PATH)?;
    Ok(mount(NO_PATH, path, NO_PATH, MsFlags::MS_PRIVATE, NO_PATH)?)
}

/// Mounts a BPF file system of its own at `path`, which is made.
///
/// # Errors
/// When the directory cannot be made or the kernel does not mount it.
pub(crate) fn mount_bpffs(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    Ok(mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), Some("mode=0700"))?)
}

/// Unmounts everything that is mounted below `directory`, the innermost first.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn unmount_below(directory: &Path) -> io::Result<()> {
    let table = fs::read("/proc/self/mountinfo")?;
    let mut points: Vec<PathBuf> = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
        .filter(|point| point.starts_with(directory))
        .collect();
    points.sort();
    for point in points.into_iter().rev() {
        umount2(&point, MntFlags::MNT_DETACH)?;
    }
    Ok(())
}

/// Undoes the kernel's octal escapes (`\040` for a blank).
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, tail)) = rest.split_first() {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if *byte == b'\\' => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape(br"/a\040b\134c"), PathBuf::from("/a b\\c"));
        assert_eq!(unescape(br"/a\0"), PathBuf::from("/a\\0"));
    }

    #[test]
    fn what_is_mounted_in_a_namespace_is_seen_nowhere_else_and_gone_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let (place, keeper) = (directory.path().join("place"), directory.path().join("kept/one"));
        fs::create_dir(&place).unwrap();
        let furnish = || {
            mount(Some("none"), &place, Some("tmpfs"), MsFlags::empty(), NO_PATH)?;
            fs::write(place.join("inside"), "")
        };
        let namespace = MountNamespace::create(&keeper, furnish).unwrap();
        assert!(!place.join("inside").exists());
        let seen = thread::scope(|scope| {
            let look = || {
                // A thread may enter once it has let go of the directories that it shares with the others.
                unshare(CloneFlags::CLONE_FS).unwrap();
                MountNamespace::open(&keeper).unwrap().enter().unwrap();
                place.join("inside").exists()
            };
            scope.spawn(look).join().unwrap()
        });
        assert!(seen);
        drop(namespace);
        unmount_below(directory.path()).unwrap();
        assert!(MountNamespace::open(&keeper).unwrap().enter().is_err());
    }

    #[test]
    fn what_is_mounted_is_unmounted() {
        let directory = tempfile::tempdir().unwrap();
        let point = directory.path().join("with blank");
        mount_bpffs(&point).unwrap();
        mount_bpffs(&point.join("inner")).unwrap();
        unmount_below(directory.path()).unwrap();
        assert!(fs::read_dir(&point).unwrap().next().is_none());
        unmount_below(directory.path()).unwrap();
    }
}
