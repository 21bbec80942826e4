//! The last good configuration on disk, so that an agent that starts while the control server is away serves
//! what the mesh looked like when it last heard of it.
//!
//! The file holds the resources as they came over the wire, each with its version, so that the agent can also
//! tell the control server what it already has. It is never changed in place: a new file is written from the
//! old one and the changes since ([`Cache::merge`]), synced and renamed over it. No copy of the configuration
//! is kept in memory for that.
//!
//! Format, integers little-endian: `magic`, format version (u32), then per resource a length (u32) and an
//! `envoy.service.discovery.v3.Resource`; at the end `END` (u32), the number of resources (u64) and the CRC-32
//! of everything before it (u32). Format 1 was written by agents that did not ask for authorization policies.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use crc32fast::Hasher;
use mesh_xds::proto::discovery::Resource;
use prost::Message;

mod writer;

#[cfg(test)]
mod tests;

pub use writer::CacheWriter;

const MAGIC: [u8; 8] = *b"MESHCONF";
const FORMAT: u32 = 2;
const FORMAT_WITHOUT_POLICIES: u32 = 1;
const END: u32 = u32::MAX;
/// No single resource comes near this; a larger length is damage.
const MAX_RESOURCE: u32 = 16 << 20;

/// What identifies a resource: its type URL and its name.
pub type Key = (Arc<str>, Arc<str>);

/// What became of resources since the file was written: the new version, encoded, or `None` for one that is gone.
pub type Changes = HashMap<Key, Option<Bytes>>;

/// Whether the policies in the file are all there were. If not, it must not be served from: what they deny would be
/// allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policies {
    /// They are.
    Complete,
    /// There is no file, or it is from an agent that did not ask for policies.
    Unknown,
}

/// Why the file cannot be used. It is then ignored and replaced by the next good state.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("{path} is damaged ({reason}); it is ignored and will be written anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The file with the last good configuration.
#[derive(Debug, Clone)]
pub struct Cache {
    path: PathBuf,
}

impl Cache {
    /// The cache in directory `state`, which exists.
    pub fn new(state: &Path) -> Self {
        Self { path: state.join("configuration") }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Visits all resources, one at a time; none where there is no file yet.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged, which may show only at its end: nothing that was visited may be used
    /// then.
    pub fn load(&self, mut visit: impl FnMut(Resource)) -> Result<Policies, CacheError> {
        let format = self.scan(|resource, _| {
            visit(resource);
            Ok(())
        })?;
        Ok(if format == Some(FORMAT) { Policies::Complete } else { Policies::Unknown })
    }

    /// Replaces the file by one in which `changes` are done.
    ///
    /// # Errors
    /// When the old file is damaged or a file cannot be read or written; the old file is then as it was.
    pub fn merge(&self, changes: &Changes) -> Result<(), CacheError> {
        let fresh = self.path.with_extension("new");
        let io = |source| CacheError::Io { path: fresh.clone(), source };
        let mut output = Output::create(&fresh).map_err(io)?;
        self.scan(|resource, encoded| {
            if changes.contains_key(&key(&resource)) { Ok(()) } else { output.resource(encoded).map_err(io) }
        })?;
        for resource in changes.values().flatten() {
            output.resource(resource).map_err(io)?;
        }
        output.finish().map_err(io)?;
        fs::rename(&fresh, &self.path).map_err(io)?;
        if let Some(directory) = self.path.parent() {
            // The rename itself has to reach the disk too.
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)?;
        }
        Ok(())
    }

    /// Removes the file, so that the next [`merge`](Self::merge) starts from nothing.
    ///
    /// # Errors
    /// When there is a file and it cannot be removed.
    pub fn clear(&self) -> Result<(), CacheError> {
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(CacheError::Io { path: self.path.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// Visits all resources and returns the format of the file, if there is one.
    fn scan(&self, visit: impl Visit) -> Result<Option<u32>, CacheError> {
        match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CacheError::Io { path: self.path.clone(), source }),
            Ok(file) => {
                let input = Input { reader: BufReader::new(file), sum: Hasher::new(), path: &self.path };
                input.scan(visit).map(Some)
            }
        }
    }
}

/// Is given each resource, and the same as it is encoded.
trait Visit: FnMut(Resource, &[u8]) -> Result<(), CacheError> {}

impl<F: FnMut(Resource, &[u8]) -> Result<(), CacheError>> Visit for F {}

fn key(resource: &Resource) -> Key {
    let type_url = resource.resource.as_ref().map(|any| any.type_url.as_str()).unwrap_or_default();
    (type_url.into(), resource.name.as_str().into())
}

struct Input<'a, R> {
    reader: R,
    sum: Hasher,
    path: &'a Path,
}

impl<R: Read> Input<'_, R> {
    fn scan(mut self, mut visit: impl Visit) -> Result<u32, CacheError> {
        if self.bytes::<8>()? != MAGIC {
            return Err(self.damaged("it is not a configuration file"));
        }
        let format = u32::from_le_bytes(self.bytes()?);
        if !(FORMAT_WITHOUT_POLICIES..=FORMAT).contains(&format) {
            return Err(self.damaged(format!("format {format}, expected at most {FORMAT}")));
        }
        let mut count = 0_u64;
        let mut buffer = Vec::new();
        loop {
            let length = u32::from_le_bytes(self.bytes()?);
            if length == END {
                break;
            }
            if length > MAX_RESOURCE {
                return Err(self.damaged(format!("a resource of {length} bytes")));
            }
            buffer.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
            self.fill(&mut buffer)?;
            let resource = Resource::decode(&*buffer)
                .map_err(|error| self.damaged(format!("resource {count}: {error}")))?;
            visit(resource, &buffer)?;
            count += 1;
        }
        if u64::from_le_bytes(self.bytes()?) != count {
            return Err(self.damaged("resources are missing"));
        }
        let expected = self.sum.clone().finalize();
        if u32::from_le_bytes(self.bytes()?) != expected {
            return Err(self.damaged("the checksum does not match"));
        }
        Ok(format)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], CacheError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), CacheError> {
        self.reader.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged("it ends too early"),
            _ => CacheError::Io { path: self.path.to_owned(), source: error },
        })?;
        self.sum.update(buffer);
        Ok(())
    }

    fn damaged(&self, reason: impl Into<String>) -> CacheError {
        CacheError::Damaged { path: self.path.to_owned(), reason: reason.into() }
    }
}

struct Output {
    writer: BufWriter<File>,
    sum: Hasher,
    count: u64,
}

impl Output {
    fn create(path: &Path) -> io::Result<Self> {
        let mut output = Self { writer: BufWriter::new(File::create(path)?), sum: Hasher::new(), count: 0 };
        output.put(&MAGIC)?;
        output.put(&FORMAT.to_le_bytes())?;
        Ok(output)
    }

    fn resource(&mut self, encoded: &[u8]) -> io::Result<()> {
        let length = u32::try_from(encoded.len()).ok().filter(|length| *length <= MAX_RESOURCE);
        let Some(length) = length else {
            let size = encoded.len();
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("a resource of {size} bytes")));
        };
        self.put(&length.to_le_bytes())?;
        self.put(encoded)?;
        self.count += 1;
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.put(&END.to_le_bytes())?;
        self.put(&self.count.to_le_bytes())?;
        let sum = self.sum.clone().finalize();
        self.put(&sum.to_le_bytes())?;
        self.writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.writer.write_all(bytes)
    }
}
