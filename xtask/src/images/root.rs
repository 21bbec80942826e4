//! The root of an image: programs in `/usr/bin`, and the shared libraries that they need, where the loader looks for them.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

const PROGRAMS: &str = "usr/bin";
/// Names of services come from the cluster's DNS, after what the kubelet writes to /etc/hosts.
const NAME_LOOKUP: &str = "hosts: files dns\n";

/// Something in the root.
pub(super) enum Entry {
    Folder,
    File { content: Vec<u8>, executable: bool },
    Link(PathBuf),
}

/// What is in an image, by path without the leading slash.
pub(super) struct Root {
    entries: BTreeMap<PathBuf, Entry>,
}

impl Root {
    /// Programs and what they need.
    pub(super) fn collect(programs: &[PathBuf]) -> Result<Self> {
        let mut root = Self { entries: BTreeMap::new() };
        for program in programs {
            let name = program.file_name().with_context(|| format!("{} has no name", program.display()))?;
            root.add(Path::new(PROGRAMS).join(name), executable(stripped(program)?));
            for library in libraries(program)? {
                let content = read(&library)?;
                root.add(library.strip_prefix("/").unwrap_or(&library).to_owned(), executable(content));
            }
        }
        root.add("etc/nsswitch.conf".into(), Entry::File { content: NAME_LOOKUP.into(), executable: false });
        root.add("tmp".into(), Entry::Folder);
        Ok(root)
    }

    /// Another name of the first program.
    pub(super) fn link(&mut self, name: &str, programs: &[PathBuf]) {
        let target = programs.first().and_then(|program| program.file_name());
        if let Some(target) = target {
            self.add(Path::new(PROGRAMS).join(name), Entry::Link(target.into()));
        }
    }

    /// Everything, folders before what is in them.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&Path, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_path(), entry))
    }

    /// Writes everything into a folder.
    pub(super) fn unpack(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for (path, entry) in self.entries() {
            let path = folder.join(path);
            let written = match entry {
                Entry::Folder => fs::create_dir_all(&path),
                Entry::Link(target) => symlink(target, &path),
                Entry::File { content, executable } => fs::write(&path, content).and_then(|()| {
                    fs::set_permissions(
                        &path,
                        fs::Permissions::from_mode(if *executable { 0o755 } else { 0o644 }),
                    )
                }),
            };
            written.with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn add(&mut self, path: PathBuf, entry: Entry) {
        let folders = path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty());
        for folder in folders.map(Path::to_owned).collect::<Vec<_>>() {
            self.entries.entry(folder).or_insert(Entry::Folder);
        }
        self.entries.insert(path, entry);
    }
}

fn executable(content: Vec<u8>) -> Entry {
    Entry::File { content, executable: true }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A program without what only debuggers read: of one that is not optimised, most of it.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let beside = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    let told = Command::new("strip")
        .args(["--strip-debug", "-o"])
        .arg(beside.path())
        .arg(program)
        .output()
        .context("cannot start `strip`, which comes with the C compiler")?;
    if !told.status.success() {
        bail!("`strip {}` failed: {}", program.display(), String::from_utf8_lossy(&told.stderr));
    }
    read(beside.path())
}

/// The shared libraries of a program, the loader among them; none if it is static.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let told = Command::new("ldd").arg(program).output().context("cannot start `ldd`")?;
    if !told.status.success() {
        let said = String::from_utf8_lossy(&told.stderr).into_owned();
        if said.contains("not a dynamic executable") || said.contains("not a valid dynamic program") {
            return Ok(Vec::new());
        }
        bail!("`ldd {}` failed: {said}", program.display());
    }
    Ok(String::from_utf8_lossy(&told.stdout).lines().filter_map(library).collect())
}

/// The path in a line of `ldd`: "libc.so.6 => /lib/... (0x...)" names a library, "/lib64/ld-... (0x...)" the loader.
fn library(line: &str) -> Option<PathBuf> {
    let mut words = line.split_whitespace();
    let path = match (words.next()?, words.next()) {
        (_, Some("=>")) => words.next()?,
        (path, _) => path,
    };
    path.starts_with('/').then(|| path.into())
}
