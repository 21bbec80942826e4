//! Reading a file when nobody is writing it.
//!
//! Events tell what has happened, not what is happening: between the last event and a look at a file somebody may
//! have emptied it to write it anew, and nothing about an empty file says that it is half of something. The kernel
//! knows. It grants a lease for reading only on a file that nobody has open for writing, and whoever opens it so
//! afterwards waits until the lease is given back: what is read under a lease is whole (fcntl(2), "Leases").
//!
//! Leases are for the owner of a file (or CAP_LEASE) and for local file systems. Where there is none, a file has to
//! have been quiet for a moment. Either way one that stays open is read in the end: a writer may never close it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Without a lease, a file that changed less than this ago may be half-written. Above the 10 ms of a slow clock tick,
/// by which the time of a change may be late.
const SETTLED: Duration = Duration::from_millis(15);
/// A file that is open for writing is read as it is when it has not changed for this long.
const PATIENCE: Duration = Duration::from_millis(500);

/// A file's bytes, or why they cannot be had now.
#[derive(Debug)]
pub(super) enum Reading {
    /// Everything that is in it, or why it cannot be read.
    Done(io::Result<Vec<u8>>),
    /// It may be half-written: look again after this time, or when it is closed.
    Unfinished(Duration),
}

/// Reads at most `limit` bytes of a file.
pub(super) fn read(path: &Path, limit: u64) -> Reading {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return Reading::Done(Err(error)),
    };
    let lease = Lease::take(&file);
    let quiet_for = match &lease {
        Ok(_) => Duration::ZERO,
        Err(Refusal::BeingWritten) => PATIENCE,
        Err(Refusal::NoLeases) => SETTLED,
    };
    // A pipe can be opened once, and ends when its writer is done.
    let left = match file.metadata() {
        Ok(metadata) if metadata.is_file() => quiet_for.saturating_sub(age(&metadata)),
        _ => Duration::ZERO,
    };
    if !left.is_zero() {
        return Reading::Unfinished(left);
    }
    let mut bytes = Vec::new();
    let read = (&file).take(limit).read_to_end(&mut bytes);
    drop(lease);
    Reading::Done(read.map(|_| bytes))
}

/// How long ago a file changed; long, should the clock have been set back since.
fn age(metadata: &fs::Metadata) -> Duration {
    let seconds = u64::try_from(metadata.ctime()).unwrap_or_default();
    let nanoseconds = u64::try_from(metadata.ctime_nsec()).unwrap_or_default();
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds);
    changed.elapsed().unwrap_or(Duration::MAX)
}

/// A read lease; whoever opens the file for writing waits as long as it lasts.
struct Lease<'a>(&'a File);

#[derive(Debug)]
enum Refusal {
    /// Somebody has the file open for writing.
    BeingWritten,
    /// The file is not ours, or its file system has no leases.
    NoLeases,
}

/// `F_SETSIG` of <fcntl.h>, which the libc crate does not have.
const F_SETSIG: libc::c_int = 10;

impl<'a> Lease<'a> {
    fn take(file: &'a File) -> Result<Self, Refusal> {
        // Who waits for the lease is announced by a signal, by default one that ends the process; SIGURG is ignored.
        control(file, F_SETSIG, libc::SIGURG).map_err(|_| Refusal::NoLeases)?;
        match control(file, libc::F_SETLEASE, libc::F_RDLCK) {
            Ok(()) => Ok(Self(file)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Refusal::BeingWritten),
            Err(_) => Err(Refusal::NoLeases),
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // Cannot fail for a lease that is held; closing the file would give it back as well.
        let _ = control(self.0, libc::F_SETLEASE, libc::F_UNLCK);
    }
}

fn control(file: &File, command: libc::c_int, argument: libc::c_int) -> io::Result<()> {
    // SAFETY: both commands take an integer, and the descriptor is open as long as `file` is borrowed.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LIMIT: u64 = 1 << 20;

    fn text(reading: Reading) -> Option<String> {
        match reading {
            Reading::Done(bytes) => Some(String::from_utf8(bytes.unwrap()).unwrap()),
            Reading::Unfinished(_) => None,
        }
    }

    #[test]
    fn a_file_is_read_at_once_when_it_is_closed_and_not_before() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.yaml");
        fs::write(&path, "first").unwrap();
        let mut writer = File::create(&path).unwrap();
        assert!(text(read(&path, LIMIT)).is_none(), "emptied");
        writer.write_all(b"sec").unwrap();
        assert!(text(read(&path, LIMIT)).is_none(), "half-written");
        writer.write_all(b"ond").unwrap();
        drop(writer);
        assert_eq!(text(read(&path, LIMIT)).as_deref(), Some("second"));
        // The lease was given back: writers need not wait.
        fs::write(&path, "third").unwrap();
        assert_eq!(text(read(&path, LIMIT)).as_deref(), Some("third"));
    }

    #[test]
    fn no_half_of_a_file_is_read_whoever_is_faster() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.yaml");
        let whole = "x".repeat(10_000);
        fs::write(&path, &whole).unwrap();
        let writing = std::thread::spawn({
            let (path, whole) = (path.clone(), whole.clone());
            move || (0..2_000).for_each(|_| fs::write(&path, &whole).unwrap())
        });
        while !writing.is_finished() {
            if let Some(text) = text(read(&path, LIMIT)) {
                assert_eq!(text.len(), whole.len());
            }
        }
        writing.join().unwrap();
    }

    #[test]
    fn what_stays_open_is_read_when_it_no_longer_changes() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.yaml");
        let mut writer = File::create(&path).unwrap();
        writer.write_all(b"kept open").unwrap();
        let text = loop {
            match read(&path, LIMIT) {
                Reading::Done(bytes) => break bytes.unwrap(),
                Reading::Unfinished(left) => std::thread::sleep(left),
            }
        };
        assert_eq!(text, b"kept open");
    }
}
