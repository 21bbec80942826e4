//! The archive of an image: an OCI image layout in a tar file, as `ctr images import`, `docker load`, podman and skopeo take it.
//!
//! Formats: the OCI image specification 1.1 (image-layout, manifest, config, layer).

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::{
    Image,
    root::{Entry, Root},
};

/// The name that container runtimes give an image when it comes in.
const FULL_NAME: &str = "io.containerd.image.name";
/// The tag that other tools show.
const TAG: &str = "org.opencontainers.image.ref.name";

/// What was written.
pub(super) struct Written {
    /// Size of the archive.
    pub(super) bytes: u64,
    /// Digest of the image's manifest.
    pub(super) digest: String,
}

/// A part of an image, found by its digest.
struct Blob {
    content: Vec<u8>,
    digest: String,
}

impl Blob {
    fn new(content: Vec<u8>) -> Self {
        Self { digest: digest(&content), content }
    }

    fn json(value: &Value) -> Self {
        Self::new(value.to_string().into_bytes())
    }

    /// How another part refers to it; `more` is what that says about it besides.
    fn descriptor(&self, media_type: &str, more: Value) -> Value {
        let mut descriptor = json!({
            "mediaType": format!("application/vnd.oci.image.{media_type}"),
            "digest": self.digest,
            "size": self.content.len(),
        });
        if let (Value::Object(descriptor), Value::Object(more)) = (&mut descriptor, more) {
            descriptor.extend(more);
        }
        descriptor
    }
}

/// The digest of a blob.
pub(super) fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Writes the archive of an image.
pub(super) fn write(image: &Image, path: &Path) -> Result<Written> {
    let unpacked = layer(&image.root()?)?;
    let settings = Blob::json(&settings(image, &digest(&unpacked)));
    let layer = Blob::new(compressed(&unpacked)?);
    let manifest = Blob::json(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": settings.descriptor("config.v1+json", json!({})),
        "layers": [layer.descriptor("layer.v1.tar+gzip", json!({}))],
    }));
    let tag = image.reference.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    let names = json!({
        "annotations": { FULL_NAME: image.reference, TAG: tag },
        "platform": { "architecture": architecture(), "os": "linux" },
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest.descriptor("manifest.v1+json", names)],
    });

    // Beside and renamed at the end, so that what is there is whole.
    let beside = path.with_extension("new");
    let file = File::create(&beside).with_context(|| format!("cannot write {}", beside.display()))?;
    let mut archive = Builder::new(BufWriter::new(file));
    add_file(
        &mut archive,
        "oci-layout",
        json!({ "imageLayoutVersion": "1.0.0" }).to_string().as_bytes(),
        false,
    )?;
    for folder in ["blobs", "blobs/sha256"] {
        add(&mut archive, Path::new(folder), header(EntryType::Directory, 0o755, 0), &[])?;
    }
    for blob in [&settings, &layer, &manifest] {
        add_file(&mut archive, &format!("blobs/{}", blob.digest.replace(':', "/")), &blob.content, false)?;
    }
    add_file(&mut archive, "index.json", index.to_string().as_bytes(), false)?;
    archive.into_inner()?.flush()?;
    std::fs::rename(&beside, path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Written { bytes: path.metadata()?.len(), digest: manifest.digest })
}

/// How the image is run. Times are left out: an image is what it holds.
fn settings(image: &Image, layer: &str) -> Value {
    let ports: serde_json::Map<String, Value> =
        image.ports.iter().map(|port| (format!("{port}/tcp"), json!({}))).collect();
    json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "User": image.user,
            "Env": ["PATH=/usr/bin"],
            "Entrypoint": image.entrypoint,
            "Cmd": image.command,
            "ExposedPorts": ports,
            "WorkingDir": "/",
        },
        "rootfs": { "type": "layers", "diff_ids": [layer] },
        "history": [{ "created_by": "cargo xtask images" }],
    })
}

/// The names that Go, and with it OCI, has for processors.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn layer(root: &Root) -> Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    for (path, entry) in root.entries() {
        match entry {
            Entry::Folder => {
                let mode = if path == Path::new("tmp") { 0o1777 } else { 0o755 };
                add(&mut layer, path, header(EntryType::Directory, mode, 0), &[])?;
            }
            Entry::File { content, executable } => {
                add_file(&mut layer, &path.display().to_string(), content, *executable)?;
            }
            Entry::Link(target) => {
                layer.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target)?;
            }
        }
    }
    Ok(layer.into_inner()?)
}

fn compressed(content: &[u8]) -> Result<Vec<u8>> {
    // Fast: of programs, the best takes ten times as long for a twentieth less.
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(content)?;
    Ok(gzip.finish()?)
}

fn add_file<W: Write>(tar: &mut Builder<W>, path: &str, content: &[u8], executable: bool) -> Result<()> {
    let mode = if executable { 0o755 } else { 0o644 };
    add(tar, Path::new(path), header(EntryType::Regular, mode, content.len() as u64), content)
}

fn add<W: Write>(tar: &mut Builder<W>, path: &Path, mut header: Header, content: &[u8]) -> Result<()> {
    Ok(tar.append_data(&mut header, path, content)?)
}

/// Root's, of no time.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}
