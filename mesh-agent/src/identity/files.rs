//! Roots and revocation lists from files, read again when they change.
//!
//! Files are read by content every few seconds, not watched: a mounted ConfigMap changes by swapping a symbolic
//! link two directories up, and a file of a few kilobytes costs nothing to read.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use tokio::time::sleep;
use tracing::{error, info, warn};
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::trust::{Revocation, RootSource, Trust};

#[cfg(test)]
mod tests;

/// The files of an agent.
pub(super) struct TrustFiles {
    roots: Option<File>,
    lists: Option<File>,
    trust: Arc<Trust>,
}

struct File {
    path: PathBuf,
    /// What was found at the last look, good or not, so that only news are taken in and reported.
    last: Option<Result<Vec<u8>, String>>,
    /// Whether anything usable was ever in it.
    was_good: bool,
}

impl TrustFiles {
    /// Until the revocation lists have been read nobody is trusted.
    pub(super) fn new(roots: Option<PathBuf>, lists: Option<PathBuf>, trust: Arc<Trust>) -> Self {
        if let Some(path) = &lists {
            trust.set_revocation(Revocation::Missing(format!("{} is not read yet", path.display()).into()));
        }
        let file = |path| File { path, last: None, was_good: false };
        Self { roots: roots.map(file), lists: lists.map(file), trust }
    }

    /// Follows the files, for ever.
    pub(super) async fn follow(mut self, interval: Duration) {
        loop {
            self.look().await;
            if self.roots.is_none() && self.lists.is_none() {
                return std::future::pending().await;
            }
            sleep(interval).await;
        }
    }

    async fn look(&mut self) {
        let Self { roots, lists, trust } = self;
        if let Some(file) = roots
            && let Some(content) = file.news().await
        {
            match content.and_then(|pem| set_roots(trust, &pem)) {
                Ok(count) => info!(path = %file.path.display(), count, "roots read"),
                Err(reason) => {
                    warn!(path = %file.path.display(), %reason, "no roots read; the last good ones stay");
                }
            }
        }
        if let Some(file) = lists
            && let Some(content) = file.news().await
        {
            let path = file.path.display();
            match content.and_then(|pem| read_lists(&pem)) {
                Ok(lists) => {
                    info!(%path, count = lists.len(), "revocation lists read");
                    file.was_good = true;
                    trust.set_revocation(Revocation::Lists(lists));
                }
                Err(reason) if file.was_good => warn!(%path, %reason, "the last good revocation lists stay"),
                Err(reason) => {
                    error!(%path, %reason, "no revocation lists: every peer is refused");
                    trust.set_revocation(Revocation::Missing(format!("{path}: {reason}").into()));
                }
            }
        }
    }
}

impl File {
    /// What the file holds, if that is not what it held at the last look.
    async fn news(&mut self) -> Option<Result<Vec<u8>, String>> {
        let found = tokio::fs::read(&self.path).await.map_err(|error| error.to_string());
        if self.last.as_ref() == Some(&found) {
            return None;
        }
        self.last = Some(found.clone());
        Some(found)
    }
}

fn set_roots(trust: &Trust, pem: &[u8]) -> Result<usize, String> {
    let roots = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| error.to_string())?;
    if roots.is_empty() {
        return Err("it holds no certificate in PEM form".to_owned());
    }
    let count = roots.len();
    trust.set_roots(RootSource::File, roots).map_err(|error| error.to_string())?;
    Ok(count)
}

fn read_lists(pem: &[u8]) -> Result<Vec<CertRevocationList<'static>>, String> {
    let read = |list: Result<CertificateRevocationListDer<'_>, _>| {
        let list = list.map_err(|error: rustls_pki_types::pem::Error| error.to_string())?;
        let list = OwnedCertRevocationList::from_der(&list).map_err(|error| error.to_string())?;
        Ok(CertRevocationList::from(list))
    };
    let lists =
        CertificateRevocationListDer::pem_slice_iter(pem).map(read).collect::<Result<Vec<_>, String>>()?;
    // An empty file is more likely half written than meant to take all revocations back.
    if lists.is_empty() { Err("it holds no revocation list in PEM form".to_owned()) } else { Ok(lists) }
}
