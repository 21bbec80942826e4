//! The manifests of some directories, file by file, and what they amount to together.
//!
//! Each file keeps the last good version of every resource it gave: a document that is refused leaves the one it
//! gave before in place, and while a document cannot even be told apart, nothing the file gave before goes away.
//! Between files the first owner of a resource keeps it; another file that has the same one is told so.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{fs, io};

use tracing::info;

use super::document::{Given, Manifest};
use super::whole::{self, Reading};
use super::writers::PATIENCE;
use crate::model::findings::Severity;
use crate::model::{Resource, ResourceKey};
use crate::source::report::{LAST_GOOD, Logged};
use crate::source::{Change, FileReport, Origin, Problem, Report};

/// Larger files are refused: nobody writes them, and reading one must not exhaust the memory.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Files read from one directory tree.
const MAX_FILES: usize = 10_000;
/// Directories below a root; also ends loops of symbolic links.
const MAX_DEPTH: usize = 16;
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// The manifests of some directories.
#[derive(Debug, Default)]
pub(super) struct Directory {
    roots: Vec<PathBuf>,
    files: BTreeMap<PathBuf, ManifestFile>,
    served: HashMap<ResourceKey, Served>,
    /// Problems with directories themselves.
    unreadable: Vec<Problem>,
    /// Roots that were never read as a whole.
    unread: Vec<PathBuf>,
    /// Kinds already spoken of.
    ignored: HashSet<String>,
    logged: Logged,
}

/// The version of a resource that counts.
#[derive(Debug)]
struct Served {
    owner: PathBuf,
    resource: Resource,
}

#[derive(Debug, Default, Clone)]
pub(super) struct ManifestFile {
    stamp: Option<Stamp>,
    pub(super) resources: BTreeMap<ResourceKey, Given>,
    pub(super) problems: Vec<Problem>,
    /// Kinds that the mesh is not made of, and where they were seen first.
    pub(super) ignored: BTreeMap<String, u64>,
}

/// What changes when the content of a file does. The inode tells a file from the one it was renamed over.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
    changed: (i64, i64),
}

/// What a look at the directories found.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) changes: Vec<Change>,
    /// Present if anything about the files is news.
    pub(super) report: Option<Report>,
    /// Files may be half-written and were left as they were: look again after this time, if no event comes first.
    pub(super) again: Option<Duration>,
}

impl Directory {
    pub(super) fn new(roots: impl IntoIterator<Item = PathBuf>) -> Self {
        let roots: Vec<PathBuf> = roots.into_iter().collect();
        Self { unread: roots.clone(), roots, ..Self::default() }
    }

    /// Reads what changed since the last look. Files that are `unfinished` (somebody is writing them) are left as
    /// they were.
    pub(super) fn scan(&mut self, unfinished: impl Fn(&Path) -> bool) -> Scan {
        let found = self.list();
        let mut touched = BTreeSet::new();
        let mut news = found.problems != self.unreadable;
        self.unreadable = found.problems;
        let gone: Vec<PathBuf> = self
            .files
            .keys()
            .filter(|path| {
                !found.files.contains_key(*path) && !found.unlisted.iter().any(|dir| path.starts_with(dir))
            })
            .cloned()
            .collect();
        for path in gone {
            if let Some(file) = self.files.remove(&path) {
                touched.extend(file.resources.into_keys());
            }
            news = true;
        }
        let mut again = None;
        let mut awaited = found.unlisted;
        for (path, stamp) in found.files {
            let known = self.files.get(&path).is_some_and(|file| file.stamp == stamp && stamp.is_some());
            if known {
                continue;
            }
            let left = if unfinished(&path) { Some(PATIENCE) } else { self.read(&path, stamp, &mut touched) };
            news |= left.is_none();
            again = again.into_iter().chain(left).min();
            if left.is_some() && !self.files.contains_key(&path) {
                awaited.push(path);
            }
        }
        let was_unread = self.unread.len();
        self.unread.retain(|root| awaited.iter().any(|path| path.starts_with(root)));
        news |= self.unread.len() != was_unread;
        let changes = self.settle(touched);
        Scan { changes, report: news.then(|| self.report()), again }
    }

    /// Reads a file anew at the next look, whether or not it seems to have changed: the clock of file systems may be too
    /// coarse to tell.
    pub(super) fn distrust(&mut self, path: &Path) {
        if let Some(file) = self.files.get_mut(path) {
            file.stamp = None;
        }
    }

    /// Reads one file, and adds the resources it gave or gives to `touched`; or returns when to try again.
    fn read(
        &mut self,
        path: &Path,
        stamp: Option<Stamp>,
        touched: &mut BTreeSet<ResourceKey>,
    ) -> Option<Duration> {
        let manifest = match read_manifest(path) {
            Ok(manifest) => manifest,
            Err(again) => return Some(again),
        };
        let file = self.files.entry(path.to_owned()).or_default();
        file.stamp = stamp;
        touched.extend(file.resources.keys().cloned());
        for (kind, line) in &manifest.ignored {
            if self.ignored.insert(kind.clone()) {
                info!(file = %path.display(), line, kind, "the mesh is not made of this kind: it is left alone");
            }
        }
        file.adopt(manifest);
        touched.extend(file.resources.keys().cloned());
        None
    }

    /// Finds the owner of each resource in `touched` and what that changes.
    fn settle(&mut self, touched: BTreeSet<ResourceKey>) -> Vec<Change> {
        let mut changes = Vec::new();
        for key in touched {
            let was = self.served.remove(&key);
            let owner = was.as_ref().map(|was| &was.owner).filter(|owner| self.gives(owner, &key)).cloned();
            let owner = owner.or_else(|| self.files.keys().find(|path| self.gives(path, &key)).cloned());
            let given = owner.and_then(|owner| {
                let resource = self.files.get(&owner)?.resources.get(&key)?.resource.clone();
                Some(Served { owner, resource })
            });
            match (was, given) {
                (None, None) => {}
                (Some(_), None) => changes.push(Change::Remove(key)),
                (was, Some(now)) => {
                    if was.is_none_or(|was| was.resource != now.resource) {
                        changes.push(Change::Upsert(now.resource.clone()));
                    }
                    self.served.insert(key, now);
                }
            }
        }
        changes
    }

    /// What counts, and where it is from.
    pub(super) fn served(&self) -> impl Iterator<Item = (&Path, &ResourceKey, &Given)> + Clone {
        self.served.iter().filter_map(|(key, served)| {
            let (path, file) = self.files.get_key_value(&served.owner)?;
            Some((path.as_path(), key, file.resources.get(key)?))
        })
    }

    /// The files, by their paths.
    pub(super) fn files(&self) -> impl Iterator<Item = (&PathBuf, &ManifestFile)> {
        self.files.iter()
    }

    fn owner(&self, key: &ResourceKey) -> Option<&Path> {
        self.served.get(key).map(|served| served.owner.as_path())
    }

    fn gives(&self, path: &Path, key: &ResourceKey) -> bool {
        self.files.get(path).is_some_and(|file| file.resources.contains_key(key))
    }

    fn report(&mut self) -> Report {
        let mut problems = self.unreadable.clone();
        for (path, file) in &self.files {
            problems.extend(file.problems.iter().cloned());
            for (key, given) in &file.resources {
                if let Some(owner) = self.owner(key).filter(|owner| *owner != path) {
                    problems.push(self.duplicate(path, key, given, owner));
                }
            }
        }
        self.logged.note(&problems);
        let files = self.files.iter().map(|(path, file)| FileReport {
            path: path.clone(),
            resources: file.resources.keys().filter(|key| self.owner(key) == Some(path.as_path())).count(),
        });
        let unread = self.unread.iter().map(|root| root.display().to_string());
        Report { files: files.collect(), problems, unread: unread.collect(), ..Report::default() }
    }

    fn duplicate(&self, path: &Path, key: &ResourceKey, given: &Given, owner: &Path) -> Problem {
        let first =
            self.files.get(owner).and_then(|file| file.resources.get(key)).map_or(0, |given| given.line);
        let origin = Origin::File { file: path.to_owned(), line: given.line, document_line: given.line };
        Problem {
            origin,
            resource: Some(key.to_string()),
            reason: format!("is defined in {}:{first} already: this one is not used", owner.display()),
            ..file_problem(path, String::new())
        }
    }

    fn list(&self) -> Listing {
        let mut listing = Listing::default();
        for root in &self.roots {
            listing.visit(root, 0);
        }
        listing
    }
}

impl ManifestFile {
    /// Reads a file that was never read before, when nobody is writing it any more.
    pub(super) fn read(path: &Path) -> Self {
        let mut file = Self::default();
        let manifest = loop {
            match read_manifest(path) {
                Ok(manifest) => break manifest,
                Err(again) => std::thread::sleep(again),
            }
        };
        file.adopt(manifest);
        file
    }

    /// Reads a file that is open already.
    pub(super) fn read_from(path: &Path, content: impl Read) -> Self {
        let mut file = Self::default();
        let mut bytes = Vec::new();
        let read = content.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes);
        file.adopt(match text(read.map(|_| bytes)) {
            Ok(text) => Manifest::parse(path, &text),
            Err(reason) => Manifest::unreadable(file_problem(path, reason)),
        });
        file
    }

    /// Takes over what a file says now. In the place of what is refused counts its last good version, or else what
    /// stands in for it.
    pub(super) fn adopt(&mut self, manifest: Manifest) {
        let before = std::mem::take(&mut self.resources);
        let Manifest { resources, stand_ins, refused, unidentified, mut problems, ignored, .. } = manifest;
        (self.resources, self.ignored) = (resources, ignored);
        let good: BTreeSet<ResourceKey> =
            refused.iter().filter(|key| self.resources.contains_key(*key)).cloned().collect();
        for (key, given) in &before {
            // A stand-in is no version that was good. It stays only while it cannot be told what came of its resource.
            let keep = match given.resource.stands_in() {
                None => unidentified || refused.contains(key),
                Some(_) => unidentified && !refused.contains(key),
            };
            if keep {
                self.resources.entry(key.clone()).or_insert_with(|| given.clone());
            }
        }
        for (key, stand_in) in stand_ins {
            self.resources.entry(key).or_insert(stand_in);
        }
        for problem in &mut problems {
            let of = |key: &ResourceKey| problem.resource.as_deref() == Some(key.to_string().as_str());
            problem.served_instead = match refused.iter().find(|key| of(key)) {
                _ if problem.severity == Severity::Warning => None,
                // Another document of the file gives it.
                Some(key) if good.contains(key) => None,
                Some(key) => {
                    self.resources.get(key).map(|given| given.resource.stands_in().unwrap_or(LAST_GOOD))
                }
                None if problem.resource.is_none() && unidentified && !before.is_empty() => Some(LAST_GOOD),
                None => None,
            };
        }
        self.problems = problems;
    }
}

/// What lies in the directories.
#[derive(Debug, Default)]
struct Listing {
    files: BTreeMap<PathBuf, Option<Stamp>>,
    /// Directories that could not be read: what they gave stays.
    unlisted: Vec<PathBuf>,
    problems: Vec<Problem>,
}

impl Listing {
    fn visit(&mut self, directory: &Path, depth: usize) {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            // A directory below a root that has just been removed took its files with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && depth > 0 => return,
            Err(error) => return self.unlisted(directory, &format!("cannot be read: {error}")),
        };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            // Hidden are an editor's temporary files and the versions behind a mounted ConfigMap's links.
            let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
            // Follows links: a mounted ConfigMap is made of them.
            let Some(metadata) = fs::metadata(&path).ok().filter(|_| !hidden) else {
                continue;
            };
            if metadata.is_dir() && depth < MAX_DEPTH {
                self.visit(&path, depth + 1);
            } else if metadata.is_file() && is_manifest(&path) {
                if self.files.len() >= MAX_FILES {
                    return self.unlisted(directory, &format!("has more than {MAX_FILES} manifests"));
                }
                self.files.insert(path, Some(Stamp::of(&metadata)));
            }
        }
    }

    fn unlisted(&mut self, directory: &Path, reason: &str) {
        self.problems.push(file_problem(directory, reason.to_owned()));
        self.unlisted.push(directory.to_owned());
    }
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            modified: metadata.modified().ok(),
            length: metadata.len(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Whether a file of this name is read.
pub(super) fn is_manifest(path: &Path) -> bool {
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| EXTENSIONS.contains(&extension))
}

/// What a file says, or when to try again.
fn read_manifest(path: &Path) -> Result<Manifest, Duration> {
    match whole::read(path, MAX_FILE_BYTES + 1) {
        Reading::Unfinished(again) => Err(again),
        Reading::Done(bytes) => Ok(match text(bytes) {
            Ok(text) => Manifest::parse(path, &text),
            Err(reason) => Manifest::unreadable(file_problem(path, reason)),
        }),
    }
}

/// A file's text, or why it cannot be had.
fn text(bytes: io::Result<Vec<u8>>) -> Result<String, String> {
    let bytes = bytes.map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("is larger than {} MiB: split it", MAX_FILE_BYTES >> 20));
    }
    String::from_utf8(bytes).map_err(|error| format!("is not UTF-8 text: {error}"))
}

fn file_problem(path: &Path, reason: String) -> Problem {
    Problem {
        origin: Origin::File { file: path.to_owned(), line: 0, document_line: 0 },
        severity: Severity::Refused,
        resource: None,
        field: None,
        reason,
        served_instead: None,
    }
}

#[cfg(test)]
mod tests;
