//! What the tests of several modules take: a time to start from, other agents that verify, and a client of a Kubernetes API.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kube::{Client, Config};
use mesh_lab::ApiServer;
use mesh_xds::identity::Identity;
use rcgen::KeyPair;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::certificates::Subject;
use super::generations::Lifetimes;
use super::signer::{Signed, Signer};

/// Some day in 2027, at a full second.
pub(super) fn start() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

pub(super) fn client(server: &ApiServer) -> Client {
    Client::try_from(Config::new(server.url().parse().unwrap())).unwrap()
}

pub(super) const fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours * 3600)
}

/// Short ones, of which a rotation takes four hours.
pub(super) fn lifetimes() -> Lifetimes {
    Lifetimes { leaf: hours(1), issuer: hours(12), root: hours(48), renew_root: hours(6), overlap: hours(2) }
}

pub(super) fn web() -> Identity {
    Identity::new("cluster.local", "shop", "web")
}

pub(super) fn sign(signer: &Signer, lifetime: Duration, now: SystemTime) -> Signed {
    signer.sign(&KeyPair::generate().unwrap(), Subject::Workload(&web()), lifetime, now).unwrap()
}

/// Verifies as a server verifies its client, with these roots, at this time.
pub(super) fn verify(chain: &[String], roots: &str, at: SystemTime) -> Result<(), rustls::Error> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).build().unwrap();
    let chain: Vec<_> =
        chain.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).collect();
    let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap());
    verifier.verify_client_cert(&chain[0], &chain[1..], at).map(drop)
}
