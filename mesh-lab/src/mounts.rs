//! File systems that a lab has mounted in its own directory.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

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
