//! An operator's files, in Istio's layout.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::{Change, Found, SourceError};
use crate::authority::signer::Material;

pub(super) const CERTIFICATE: &str = "ca-cert.pem";
pub(super) const KEY: &str = "ca-key.pem";
pub(super) const CHAIN: &str = "cert-chain.pem";
pub(super) const ROOTS: &str = "root-cert.pem";

/// A directory with the files, such as a mounted secret.
#[derive(Debug, Clone)]
pub(in crate::authority) struct Files {
    directory: PathBuf,
}

impl Files {
    pub(in crate::authority) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Files that are replaced one by one may not fit together for a moment; the signer is made of them only if
    /// they do, and the next look sees the rest.
    pub(super) fn read(&self, change: &Change) -> Result<Found, SourceError> {
        if matches!(change, Change::Rotate) {
            return Err(SourceError::Operators(self.directory.display().to_string()));
        }
        let material = Material {
            certificate: self.file(CERTIFICATE)?,
            key: self.file(KEY)?,
            chain: self.optional(CHAIN)?.unwrap_or_default(),
            roots: self.file(ROOTS)?,
        };
        Ok(Found { material, generations: None })
    }

    fn file(&self, name: &str) -> Result<String, SourceError> {
        self.optional(name)?.ok_or_else(|| SourceError::File {
            path: self.directory.join(name),
            reason: "is missing: put the file there, or name the directory that has it".to_owned(),
        })
    }

    fn optional(&self, name: &str) -> Result<Option<String>, SourceError> {
        let path = self.directory.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(SourceError::File { path, reason: format!("cannot be read: {error}") }),
        }
    }
}
