//! What the agent changed on the node and must be able to put back, also after a crash.
//!
//! Rules, routes and tables are known by their protocol number or name; only a sysctl has a value before ours.
//! Each is written here before it is changed. The file is of one boot and one network namespace; in another it
//! says nothing and is ignored.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::info;

use super::HostError;

/// First word of the file, with the version of what follows.
const MAGIC: &str = "mesh-agent-journal-1";

/// The journal, kept in step with its file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    scope: Scope,
    sysctls: BTreeMap<String, ChangedSysctl>,
}

/// Which values the journal is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Scope {
    boot: String,
    /// Inode of the network namespace.
    namespace: u64,
}

/// A sysctl and both its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedSysctl {
    /// What it was.
    pub original: String,
    /// What the agent made of it.
    pub ours: String,
}

impl Journal {
    /// The journal of `run_dir`, empty if there is none for this boot and network namespace.
    pub fn open(run_dir: &Path) -> Result<Self, HostError> {
        fs::create_dir_all(run_dir).map_err(HostError::file("creating", run_dir))?;
        Self::read(run_dir)
    }

    /// As [`Journal::open`], without making the directory.
    pub fn read(run_dir: &Path) -> Result<Self, HostError> {
        let path = run_dir.join("journal");
        let scope = Scope::current()?;
        let content = match fs::read_to_string(&path) {
            Ok(text) => parse(&text).map_err(|reason| HostError::Journal { path: path.clone(), reason })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Content { scope: scope.clone(), sysctls: BTreeMap::new() }
            }
            Err(error) => return Err(HostError::file("reading", &path)(error)),
        };
        if content.scope == scope {
            return Ok(Self { path, content });
        }
        info!(path = %path.display(), "journal is of another boot or network namespace: ignored");
        Ok(Self { path, content: Content { scope, sysctls: BTreeMap::new() } })
    }

    /// The sysctls that were changed, by name.
    pub fn sysctls(&self) -> &BTreeMap<String, ChangedSysctl> {
        &self.content.sysctls
    }

    /// Remembers a sysctl, on disk before this returns.
    pub fn record_sysctl(&mut self, name: &str, change: ChangedSysctl) -> Result<(), HostError> {
        if self.content.sysctls.get(name) == Some(&change) {
            return Ok(());
        }
        self.content.sysctls.insert(name.into(), change);
        self.write()
    }

    /// Forgets a sysctl that has been put back.
    pub fn forget_sysctl(&mut self, name: &str) -> Result<(), HostError> {
        self.content.sysctls.remove(name);
        self.write()
    }

    /// Deletes the file, for there is nothing to put back any more; says whether there was one.
    pub fn discard(self) -> Result<bool, HostError> {
        match fs::remove_file(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(HostError::file("deleting", &self.path)(error)),
        }
    }

    /// Replaces the file in one step: a crash leaves the old one or the new one.
    fn write(&self) -> Result<(), HostError> {
        let temporary = self.path.with_extension("new");
        let replace = || -> io::Result<()> {
            let body = serde_json::to_string(&self.content)?;
            let mut file = File::create(&temporary)?;
            writeln!(file, "{MAGIC} {:08x} {body}", crc32fast::hash(body.as_bytes()))?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)?;
            self.path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
        };
        replace().map_err(HostError::file("writing", &self.path))
    }
}

impl Scope {
    fn current() -> Result<Self, HostError> {
        let boot = Path::new("/proc/sys/kernel/random/boot_id");
        let namespace = Path::new("/proc/thread-self/ns/net");
        Ok(Self {
            boot: fs::read_to_string(boot).map_err(HostError::file("reading", boot))?.trim().into(),
            namespace: fs::metadata(namespace).map_err(HostError::file("reading", namespace))?.ino(),
        })
    }
}

fn parse(text: &str) -> Result<Content, String> {
    let mut words = text.trim_end().splitn(3, ' ');
    let (Some(magic), Some(checksum), Some(body)) = (words.next(), words.next(), words.next()) else {
        return Err("it is cut short".into());
    };
    if magic != MAGIC {
        return Err(format!("it begins with {magic:?}, not {MAGIC}"));
    }
    if u32::from_str_radix(checksum, 16) != Ok(crc32fast::hash(body.as_bytes())) {
        return Err("its checksum is wrong".into());
    }
    serde_json::from_str(body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(original: &str, ours: &str) -> ChangedSysctl {
        ChangedSysctl { original: original.into(), ours: ours.into() }
    }

    #[test]
    fn what_is_recorded_is_read_back_until_discarded() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path()).unwrap();
        journal.record_sysctl("a", change("1", "0")).unwrap();
        journal.record_sysctl("b", change("2", "1")).unwrap();
        journal.forget_sysctl("a").unwrap();

        let again = Journal::open(directory.path()).unwrap();
        assert_eq!(again.sysctls(), &BTreeMap::from([("b".into(), change("2", "1"))]));
        again.discard().unwrap();
        assert!(Journal::open(directory.path()).unwrap().sysctls().is_empty());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn damage_is_reported_not_guessed_around() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path()).unwrap();
        journal.record_sysctl("a", change("1", "0")).unwrap();
        let path = directory.path().join("journal");
        let good = fs::read_to_string(&path).unwrap();

        for bad in [good.replace("\"1\"", "\"7\""), good[..good.len() / 2].into(), "x".into(), String::new()]
        {
            fs::write(&path, bad).unwrap();
            let error = Journal::open(directory.path()).unwrap_err().to_string();
            assert!(error.contains("damaged"), "{error}");
        }
    }

    #[test]
    fn a_journal_of_another_boot_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path()).unwrap();
        journal.content.scope.boot = "another".into();
        journal.record_sysctl("a", change("1", "0")).unwrap();
        assert!(Journal::open(directory.path()).unwrap().sysctls().is_empty());
    }
}
