//! What the certificates of peers are verified with: roots and revocation lists.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_xds::identity::Identity;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use tokio::sync::watch;
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::clock::{Clock, unix_time};
use super::peer::{PeerError, peer_identity};

/// Which side of a connection a peer is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerSide {
    /// It connected to us.
    Client,
    /// We connected to it.
    Server,
}

/// Where roots come from. Those of all sources are trusted: while roots are rotated, some sources have the new one
/// and some do not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RootSource {
    /// A file on the node.
    File,
    /// They came with the certificate of an identity.
    Authority(Arc<Identity>),
    /// They came with the last certificate of all. They stay when the identity it was for is no longer needed: that
    /// the last pod left says nothing about the tunnels that are still open.
    Latest,
}

/// What is known of certificates that were taken back.
#[derive(Default)]
pub enum Revocation {
    /// Nobody keeps lists.
    #[default]
    Unchecked,
    /// Certificates on these lists are refused. A certificate whose issuer has no list is accepted, and so is one
    /// whose issuer's list is out of date: an old list is better than none, and than a mesh that stands still.
    Lists(Vec<CertRevocationList<'static>>),
    /// There should be lists, but there are none, for this reason: everybody is refused.
    Missing(Arc<str>),
}

/// Roots, revocation lists and trust domains. Handshakes read the state of the moment.
pub struct Trust {
    domains: Box<[Arc<str>]>,
    provider: Arc<CryptoProvider>,
    clock: Arc<dyn Clock>,
    material: ArcSwap<Material>,
    sources: Mutex<Sources>,
    revision: watch::Sender<u64>,
}

/// What a verification needs, parsed.
struct Material {
    anchors: Vec<TrustAnchor<'static>>,
    revocation: Arc<Revocation>,
}

type Roots = HashSet<CertificateDer<'static>>;

struct Sources {
    by_source: BTreeMap<RootSource, Roots>,
    union: Roots,
}

impl Trust {
    /// Trusts nobody yet. The first of `domains` is the node's own trust domain, the others are aliases of it.
    pub fn new(domains: impl IntoIterator<Item = Arc<str>>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let material = Material { anchors: Vec::new(), revocation: Arc::default() };
        Arc::new(Self {
            domains: domains.into_iter().collect(),
            provider: Arc::new(aws_lc_rs::default_provider()),
            clock,
            material: ArcSwap::from_pointee(material),
            sources: Mutex::new(Sources { by_source: BTreeMap::new(), union: HashSet::new() }),
            revision: watch::Sender::new(0),
        })
    }

    /// Replaces the roots of a source; without any, the source is forgotten.
    ///
    /// # Errors
    /// When one of them cannot be a root. Nothing is changed then.
    pub fn set_roots(
        &self,
        source: RootSource,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<(), PeerError> {
        let roots: Roots = roots.into_iter().collect();
        anchors(&roots)?;
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        // With every certificate come the same roots again.
        let nothing_new = roots.is_subset(&sources.union);
        let old = if roots.is_empty() {
            sources.by_source.remove(&source)
        } else {
            sources.by_source.insert(source.clone(), roots)
        };
        let now = sources.by_source.get(&source);
        let nothing_gone = old.is_none_or(|old| now.is_some_and(|now| old.is_subset(now)));
        if nothing_new && nothing_gone {
            return Ok(());
        }
        let union: Roots = sources.by_source.values().flatten().cloned().collect();
        if union == sources.union {
            return Ok(());
        }
        let shrank = !union.is_superset(&sources.union);
        let anchors = anchors(&union)?;
        let revocation = Arc::clone(&self.material.load().revocation);
        self.material.store(Arc::new(Material { anchors, revocation }));
        sources.union = union;
        if shrank {
            self.revision.send_modify(|revision| *revision += 1);
        }
        Ok(())
    }

    /// The roots of all sources.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.union.iter().cloned().collect()
    }

    /// Replaces the revocation lists.
    pub fn set_revocation(&self, revocation: Revocation) {
        let _sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let anchors = self.material.load().anchors.clone();
        self.material.store(Arc::new(Material { anchors, revocation: Arc::new(revocation) }));
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// Grows when somebody may no longer be trusted who was: a root is gone, or there are other revocation lists.
    /// Connections that are open then are to be asked about with [`Self::still_trusted`].
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Whether a peer whose certificates were good at the handshake would still be accepted. A certificate that has
    /// only expired since is no reason to end a connection: the peer has renewed it for the next one.
    ///
    /// # Errors
    /// When its root is gone, or it was revoked.
    pub fn still_trusted(&self, side: PeerSide, chain: &[CertificateDer<'_>]) -> Result<(), PeerError> {
        let (leaf, intermediates) = chain.split_first().ok_or(PeerError::NoCertificate)?;
        let now = unix_time(self.clock.now());
        self.verify(side, leaf, intermediates, end_of(leaf)?.min(now))
    }

    /// Verifies that a chain leads to a root and that nothing in it is revoked; of clients, also the trust domain.
    pub(super) fn verify(
        &self,
        side: PeerSide,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        at: UnixTime,
    ) -> Result<(), PeerError> {
        self.material.load().verify(side, leaf, intermediates, at, &self.algorithms())?;
        match side {
            PeerSide::Client => self.check_trust_domain(&peer_identity(Some(slice::from_ref(leaf)))?),
            PeerSide::Server => Ok(()),
        }
    }

    /// Verifies a certificate of our own as peers will, on both sides of a connection, with the roots that came with
    /// it; with those that are trusted here where none did.
    pub(super) fn check_own(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        roots: &[CertificateDer<'static>],
    ) -> Result<(), PeerError> {
        let anchors = if roots.is_empty() { self.material.load().anchors.clone() } else { anchors(roots)? };
        let material = Material { anchors, revocation: Arc::default() };
        let now = unix_time(self.clock.now());
        for side in [PeerSide::Client, PeerSide::Server] {
            material.verify(side, leaf, intermediates, now, &self.algorithms())?;
        }
        Ok(())
    }

    fn check_trust_domain(&self, peer: &Identity) -> Result<(), PeerError> {
        if self.domains.contains(peer.trust_domain()) {
            return Ok(());
        }
        Err(PeerError::WrongTrustDomain { peer: peer.clone(), trusted: self.domains.join(" or ").into() })
    }

    pub(super) fn algorithms(&self) -> WebPkiSupportedAlgorithms {
        self.provider.signature_verification_algorithms
    }

    pub(super) fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }

    pub(super) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }
}

impl Material {
    fn verify(
        &self,
        side: PeerSide,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        at: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), PeerError> {
        let lists: Vec<&CertRevocationList<'_>> = match &*self.revocation {
            Revocation::Unchecked => Vec::new(),
            Revocation::Lists(lists) => lists.iter().collect(),
            Revocation::Missing(reason) => return Err(PeerError::NoRevocationList(Arc::clone(reason))),
        };
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        let usage = match side {
            PeerSide::Client => KeyUsage::client_auth(),
            PeerSide::Server => KeyUsage::server_auth(),
        };
        EndEntityCert::try_from(leaf)?.verify_for_usage(
            algorithms.all,
            &self.anchors,
            intermediates,
            at,
            usage,
            revocation,
            None,
        )?;
        Ok(())
    }
}

fn anchors<'a>(
    roots: impl IntoIterator<Item = &'a CertificateDer<'static>>,
) -> Result<Vec<TrustAnchor<'static>>, PeerError> {
    let anchor = |root| Ok(webpki::anchor_from_trusted_cert(root)?.to_owned());
    roots.into_iter().map(anchor).collect()
}

/// The last moment of a certificate.
fn end_of(certificate: &CertificateDer<'_>) -> Result<UnixTime, PeerError> {
    let (_, certificate) = X509Certificate::from_der(certificate)
        .map_err(|error| PeerError::Unusable(error.to_string().into()))?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or_default();
    Ok(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

impl fmt::Debug for Trust {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Trust").field("domains", &self.domains).finish_non_exhaustive()
    }
}
